"""Preparing, calibrating, training, converting and restoring: faithful to the float network at every step."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from odd_networks import CLASSES, ODD, SIZE, images, odd_network
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.batches import Batches
from edgekd.calibration._base import Calibrator
from edgekd.calibration._fake_quantize import ActivationQuantizer, Phase, quantizers
from edgekd.calibration._pair_sums import largest_pair
from edgekd.catalog import CATALOGS
from edgekd.datasets._base import InMemorySamples
from edgekd.engine import EpochRecord, Hooks, fit
from edgekd.errors import DataError, MismatchError
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.hint import Hint
from edgekd.losses.kd import KD
from edgekd.methods._base import WeightedLoss
from edgekd.methods.offline import Offline
from edgekd.recipe import ComputeSettings, TrainSettings
from edgekd.spec import Preprocessing
from edgekd.taps import Tapped, TupleOutputs
from edgekd.targets._base import Numerics

TARGETS = CATALOGS["targets"].names()
_MEMBERS = {name: CATALOGS["models"].load(name).member for name in CATALOGS["models"].names()}
FAMILIES = sorted(
    name
    for name, one in _MEMBERS.items()
    if not (one.takes_argument or one.ready_made or one.needs_teacher_network)  # what is built from options alone
)
X86 = "onnxruntime_x86"


def numerics(target: str) -> Numerics:
    found: Numerics = CATALOGS["targets"].load(target).member.numerics
    return found


def calibrator(name: str = "minmax") -> Calibrator:
    member = CATALOGS["calibration"].load(name).member
    made: Calibrator = member(member.Options())
    return made


def prepared(network: nn.Module, target: str = X86, *, taps: Sequence[str] = (), method: str = "minmax") -> GraphModule:
    return quantize.prepare(
        network,
        images(4),
        numerics=numerics(target),
        calibrator=calibrator(method),
        reduce_range=target == X86,
        taps=taps,
    )


@cache
def _ready(name: str, target: str) -> GraphModule:
    graph = prepared(odd_network(name), target)
    quantize.calibrate(graph, images(64).split(32))
    return graph


def ready(name: str = "InPlace", target: str = X86) -> GraphModule:
    """A calibrated graph of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(_ready(name, target))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> list[str]:
    after = module.state_dict()
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def operators(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


# faithful: with its quantizers off, a prepared graph is the float network


@pytest.mark.parametrize("name", ODD)
def test_prepared_graph_equals_the_network_however_it_is_written(name: str) -> None:
    network = odd_network(name)
    before = tensors(network)
    graph = prepared(network)
    assert quantize.faithful_db(graph, network, images(16, seed=7)) > 100
    assert not any("batch_norm" in one for one in operators(graph))
    assert changed(before, network) == []
    assert not network.training


@pytest.mark.parametrize("name", ["BiasAndNorm", "LinearAndNorm", "PreActivation", "SharedConvolutionTwoNorms"])
@pytest.mark.parametrize("eps", [1e-3, 1e-5, 0.1])
def test_prepared_graph_keeps_the_network_s_eps_when_variances_are_tiny(name: str, eps: float) -> None:
    # torchao's own preparation for training writes eps 1e-5 into the graph: 0.5 dB here with eps 1e-3
    network = odd_network(name, eps=eps, variance=(5e-4, 2e-3))
    assert quantize.faithful_db(prepared(network), network, images(16)) > 100


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_momentum_of_batch_norm_changes_nothing(momentum: float | None) -> None:
    network = odd_network("InPlace")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    graph = prepared(network)
    assert quantize.faithful_db(graph, network, images(16)) > 100
    assert torch.equal(graph(images(3))[0], prepared(odd_network("InPlace"))(images(3))[0])


def test_network_in_training_mode_is_prepared_as_it_computes_in_evaluation() -> None:
    network = odd_network("Dropouts").train()
    before = tensors(network)
    graph = prepared(network)
    with torch.no_grad():
        wanted = odd_network("Dropouts")(images(16))
        assert quantize.sqnr_db(wanted, graph(images(16))[0]) > 100
    assert torch.equal(graph(images(4))[0], graph(images(4))[0])  # dropout draws nothing
    assert network.training
    assert changed(before, network) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_family_is_prepared_for_every_target(family: str, target: str) -> None:
    factory = CATALOGS["models"].load(family).member
    small: dict[str, Any] = {"resnet": {"depth": 8}, "wrn": {"depth": 10, "width": 1.0}}.get(family, {})
    torch.manual_seed(0)
    network = factory(factory.Options(**small)).build(CLASSES, (3, SIZE, SIZE)).eval()
    graph = prepared(network, target)
    assert quantize.faithful_db(graph, network, images(8)) > 100
    assert not any("batch_norm" in one for one in operators(graph))
    assert len([one for _, one in quantizers(graph) if isinstance(one, ActivationQuantizer)]) >= 4


def test_families_are_all_here() -> None:
    assert len(FAMILIES) >= 4
    assert len(TARGETS) >= 3


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_any_batch_goes_through_when_the_example_had_one_sample(batch: int) -> None:
    network = odd_network("ViewByBatch")
    graph = quantize.prepare(network, images(1), numerics=numerics(X86), calibrator=calibrator(), reduce_range=False)
    with torch.no_grad():
        assert quantize.sqnr_db(network(images(batch)), graph(images(batch))[0]) > 100


# taps


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("InPlace", ["a.0", "a", "relu6", "b", "relu"]),
        ("PreActivation", ["stem", "norm1", "conv1.0", "conv1", "norm2"]),
        ("LinearAndNorm", ["first", "norm"]),
        ("NormOnInputAndFeatures", ["norm0", "conv.0", "norm1"]),
        ("Branches", ["left.0", "joined", "head.pool"]),
    ],
)
def test_taps_equal_the_network_s_own_tensors_even_in_front_of_a_folded_norm(name: str, taps: list[str]) -> None:
    network = odd_network(name)
    graph = prepared(network, taps=taps)
    with torch.no_grad():
        wanted, found = Tapped(network, taps)(images(8)), graph(images(8))
    assert len(found) == 1 + len(taps)
    for label, ours, theirs in zip(["logits", *taps], found, wanted, strict=True):
        assert quantize.sqnr_db(theirs, ours) > 100, label


def test_faithfulness_is_the_worst_of_logits_and_taps() -> None:
    network = odd_network("InPlace")
    graph = prepared(network, taps=["a"])
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.head.fc.bias.add_(1e-4)  # type: ignore[union-attr, operator]
    whole = quantize.faithful_db(graph, network, images(4), taps=["a"])
    assert 40 < quantize.faithful_db(graph, other, images(4), taps=["a"]) < whole


@pytest.mark.parametrize("target", TARGETS)
def test_program_does_not_depend_on_taps(target: str) -> None:
    network = odd_network("PreActivation")
    programs = []
    for taps in ([], ["stem", "norm1", "conv1.0", "conv1.1"]):
        graph = prepared(network, target, taps=taps)
        quantize.calibrate(graph, [images(32)])
        programs.append(quantize.convert(graph, images(2), numerics=numerics(target)))
    assert operators(programs[0]) == operators(programs[1])
    with torch.no_grad():
        assert torch.equal(programs[0](images(8)), programs[1](images(8)))


# what cannot be prepared


class _DependsOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        logits: Tensor = self.fc(x if x.sum() > 0 else -x)
        return logits


class _Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


class _DependsOnMode(nn.Module):
    """Computes something else when it is exported: what no check of layers would see."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits * 2 if torch.compiler.is_exporting() else logits


class _NotANumber(_DependsOnMode):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits * math.nan


def test_control_flow_on_values_is_refused_by_name() -> None:
    with pytest.raises(MismatchError, match=r"torch\.export cannot capture _DependsOnValues: .*control flow"):
        prepared(_DependsOnValues())


def test_refusal_names_the_error_when_it_has_no_text() -> None:
    with pytest.raises(MismatchError, match=r"torch.export cannot capture _Silent: AssertionError"):
        prepared(_Silent())


def test_batch_that_the_network_fixes_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, -1)[:, :CLASSES]

    with pytest.raises(MismatchError, match=r"torch\.export cannot capture Fixed"):
        prepared(Fixed())


def test_graph_that_computes_something_else_is_refused_with_its_distance() -> None:
    # doubled: the error is as large as the signal
    with pytest.raises(quantize.NotFaithful, match=r"differs from the float student: 0\.0 dB, at least 60 dB"):
        prepared(_DependsOnMode())


def test_graph_is_refused_when_it_gives_no_number() -> None:
    with pytest.raises(quantize.NotFaithful, match="-inf dB"):
        prepared(_NotANumber())


# calibration


def test_calibration_moves_the_quantizers_ranges_and_nothing_else() -> None:
    graph = prepared(odd_network("PreActivation"))
    before = tensors(graph)
    assert quantize.calibrate(graph, images(20).split(8)) == 20
    moved = changed(before, graph)
    assert moved
    assert {name.rpartition(".")[2] for name in moved} <= {"minimum", "maximum", "ratio"}


def test_ranges_are_those_of_the_tensors_when_nothing_is_clipped() -> None:
    graph = ready("LinearOnly")
    batch = images(64)
    network = odd_network("LinearOnly")
    with torch.no_grad():
        first = network.first(batch.flatten(1))  # type: ignore[operator]
    found = list(quantize.ranges(graph).values())
    assert (float(batch.min()), float(batch.max())) in found
    assert any(pair == pytest.approx((float(first.min()), float(first.max())), rel=1e-5) for pair in found)


def test_ranges_are_the_same_when_the_data_comes_in_other_batches() -> None:
    graph = prepared(odd_network("LinearOnly"), method="mse")
    found = []
    for batches in (images(32).split(32), images(32).split(5)):
        quantize.calibrate(graph, batches)
        found.append(quantize.ranges(graph))
    for name, pair in found[0].items():
        # matrix products over another number of rows may be summed in another order
        assert found[1][name] == pytest.approx(pair, rel=1e-4), name


def test_second_calibration_forgets_the_first() -> None:
    graph = prepared(odd_network("LinearOnly"))
    quantize.calibrate(graph, [images(8) * 100])
    quantize.calibrate(graph, [images(8)])
    assert max(high for _, high in quantize.ranges(graph).values()) < 50


@pytest.mark.parametrize("batches", [[], [torch.empty(0, 3, SIZE, SIZE)]])
def test_calibration_without_data_says_what_to_do(batches: list[Tensor]) -> None:
    graph = prepared(odd_network("LinearOnly"))
    with pytest.raises(DataError, match=r"Calibration saw no data\. Give quantize\.calibration_samples"):
        quantize.calibrate(graph, batches)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_calibration_refuses_values_that_are_no_numbers(value: float) -> None:
    graph = prepared(odd_network("LinearOnly"))
    bad = images(4)
    bad[2, 1, 3, 3] = value
    with pytest.raises(DataError, match="Calibration met a NaN or infinite value"):
        quantize.calibrate(graph, [images(4), bad])


def test_calibrated_graph_is_close_to_the_float_network_with_every_calibrator() -> None:
    network = odd_network("Branches")
    quality = {}
    for name in CATALOGS["calibration"].names():
        graph = prepared(network, "onnxruntime_arm", method=name)
        quantize.calibrate(graph, images(64).split(32))
        with torch.no_grad():
            quality[name] = quantize.sqnr_db(network(images(64)), graph(images(64))[0])
    # 8 bits give about 50 dB a tensor; a handful of tensors and clipping take some of it
    assert min(quality.values()) > 30, quality


# conversion


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["InPlace", "PreActivation", "SharedConvolution", "DeadChannels", "Branches"])
def test_program_equals_the_graph_exactly_when_biases_stay_float(name: str, target: str) -> None:
    graph = ready(name, target)
    program = quantize.convert(graph, images(2), numerics=dataclasses.replace(numerics(target), bias="float"))
    with torch.no_grad():
        assert quantize.sqnr_db(graph(images(32, seed=3))[0], program(images(32, seed=3))) == math.inf


@pytest.mark.parametrize("name", ["InPlace", "PreActivation", "DeadChannels", "Branches", "LinearAndNorm"])
def test_program_moves_less_than_int8_itself_when_biases_are_rounded(name: str) -> None:
    network, graph = odd_network(name), ready(name)
    program = quantize.convert(graph, images(2), numerics=numerics(X86))
    inputs = images(64, seed=3)
    with torch.no_grad():
        by_int8 = quantize.sqnr_db(network(inputs), graph(inputs)[0])
        by_rounding = quantize.sqnr_db(graph(inputs)[0], program(inputs))
    assert by_rounding > by_int8 + 6


def test_program_s_biases_lie_on_the_grid_of_their_accumulators() -> None:
    program = quantize.convert(ready("SharedConvolution"), images(2), numerics=numerics(X86))
    steps = []
    for node in program.graph.nodes:
        if str(node.target) not in ("aten.conv2d.default", "aten.linear.default"):
            continue
        data, weight, bias = node.args[:3]
        scale = data.args[1] * getattr(program, weight.args[1].target).double()
        values = program.get_parameter(bias.target) if "." in bias.target else getattr(program, bias.target)
        steps.append((values.double() / scale - torch.round(values.double() / scale)).abs().max())
    # the shared convolution runs twice, on data of different scales: each use has a bias of its own
    assert len(steps) == 4
    assert max(steps) < 0.05  # float32 holds a code of a million to a tenth


def test_converting_leaves_the_graph_as_it_was() -> None:
    graph = ready()
    before, output = tensors(graph), graph(images(4))[0]
    quantize.convert(graph, images(2), numerics=numerics(X86))
    assert changed(before, graph) == []
    assert torch.equal(graph(images(4))[0], output)


def test_program_gives_logits_only_and_stores_int8_weights() -> None:
    graph = prepared(odd_network("InPlace"), taps=["a", "b"])
    quantize.calibrate(graph, [images(8)])
    program = quantize.convert(graph, images(2), numerics=numerics(X86))
    assert program(images(3)).shape == (3, CLASSES)
    stored = [value for value in program.state_dict().values() if value.ndim >= 2]
    assert len(stored) == 3
    assert {value.dtype for value in stored} == {torch.int8}
    assert max(int(value.abs().max()) for value in stored) <= 127
    assert max(int(largest_pair(value.int()).max()) for value in stored) <= 128  # the reduced range


def test_program_s_weights_use_all_bits_when_the_range_is_not_reduced() -> None:
    program = quantize.convert(ready(target="onnxruntime_arm"), images(2), numerics=numerics("onnxruntime_arm"))
    codes = [value for value in program.state_dict().values() if value.ndim >= 2]
    assert all(int(value.abs().max()) == 127 for value in codes)


def test_conversion_takes_seconds_when_a_norm_has_no_convolution_before_it() -> None:
    # torchao searches a graph with batch normalisation for 24 patterns that it exports anew: half a minute at best
    graph = ready("PreActivation")
    assert not any("norm" in one for one in operators(graph))


@pytest.mark.parametrize("batch", [1, 5])
def test_program_takes_any_batch(batch: int) -> None:
    program = quantize.convert(ready("ViewByBatch"), images(2), numerics=numerics(X86))
    assert program(images(batch)).shape == (batch, CLASSES)


# saving and restoring


def test_restored_graph_gives_identical_outputs() -> None:
    graph = ready()
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.mul_(1.1)
    state = tensors(graph)
    again = prepared(odd_network("InPlace"))
    quantize.restore(again, state)
    assert torch.equal(again(images(8))[0], graph(images(8))[0])
    assert quantize.ranges(again) == quantize.ranges(graph)
    programs = [quantize.convert(one, images(2), numerics=numerics(X86)) for one in (graph, again)]
    assert torch.equal(programs[0](images(8)), programs[1](images(8)))


def test_restoring_another_graph_names_what_differs() -> None:
    with pytest.raises(MismatchError, match=r"has another graph: model\.a\.0\.bias, .* on one side only"):
        quantize.restore(prepared(odd_network("InPlace")), tensors(ready("PreActivation")))


def test_restoring_another_width_names_both_shapes() -> None:
    graph = prepared(odd_network("LinearOnly"))
    state = tensors(graph)
    state["model.first.weight"] = torch.zeros(3, 3)
    before = tensors(graph)
    with pytest.raises(MismatchError, match=r"model\.first\.weight is \[3, 3\], here \[32, 768\]"):
        quantize.restore(graph, state)
    assert changed(before, graph) == []


# training


def trained(*, freeze_at: float) -> tuple[GraphModule, dict[str, Tensor], list[Mapping[str, tuple[float, float]]]]:
    """A graph after six steps of the engine, its state before, and its ranges before every step and at the end."""
    graph = prepared(odd_network("InPlace"), taps=["a"])
    quantize.calibrate(graph, [images(16)])
    before = tensors(graph)
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 0.5),
        WeightedLoss("kd", KD(KD.Options()), 0.5),
        WeightedLoss("hint", Hint(Hint.Options(student_tap="a", teacher_tap="a")), 1.0),
    ]
    method = Offline(TupleOutputs(graph, ["a"]), [odd_network("InPlace")], losses)
    # brighter than what was calibrated on, so that a tracked range has somewhere to go
    pixels = torch.rand(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 4
    data = InMemorySamples(pixels, torch.arange(24) % CLASSES)
    plain = Preprocessing(size=[SIZE, SIZE], channels=3, mean=[0.0] * 3, std=[0.5] * 3)
    seen: list[Mapping[str, tuple[float, float]]] = []

    def on_step(progress: float) -> None:
        seen.append(quantize.ranges(graph))
        quantize.set_phase(graph, "track" if progress < freeze_at else "frozen")

    fit(
        method,
        Batches(data, batch_size=8, classes=CLASSES, preprocessing=plain, seed=0),
        settings=TrainSettings(epochs=2, lr=0.01, batch_size=8, warmup_epochs=0.0),
        compute=ComputeSettings(device="cpu"),
        hooks=Hooks(on_step=on_step, set_training=lambda module, training: None),
    )
    return graph, before, [*seen, quantize.ranges(graph)]


def test_training_moves_weights_and_ranges_and_the_ranges_stop_when_frozen() -> None:
    graph, before, seen = trained(freeze_at=0.5)
    assert len(seen) == 7
    moved = changed(before, graph)
    weights = [name for name, _ in graph.named_parameters()]
    assert set(weights) <= set(moved)
    # three steps track, three are frozen; the first call comes before the first step
    assert seen[0] != seen[1] != seen[2] != seen[3]
    assert seen[3] == seen[4] == seen[5] == seen[6]
    assert [name for name in moved if name not in weights and not name.endswith(("minimum", "maximum"))] == []


def test_ranges_never_move_when_they_are_frozen_from_the_start() -> None:
    graph, before, seen = trained(freeze_at=0.0)
    assert all(ranges == seen[0] for ranges in seen)
    assert set(changed(before, graph)) == {name for name, _ in graph.named_parameters()}


def test_trained_graph_converts_to_what_it_computes() -> None:
    graph, _, _ = trained(freeze_at=0.5)
    program = quantize.convert(graph, images(2), numerics=dataclasses.replace(numerics(X86), bias="float"))
    with torch.no_grad():
        assert torch.equal(program(images(8)), graph(images(8))[0])


def test_every_trained_parameter_gets_a_gradient_through_the_quantizers() -> None:
    graph = ready("PreActivation")
    graph(images(8))[0].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in graph.named_parameters()}
    assert len(gradients) >= 12  # five convolutions (two of them were norms) and a layer, each with a bias
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0] == []


# ranges that learn, in the engine


def learned(
    tmp_path: Path | None = None, *, stop_after: int | None = None, optimizer: Literal["sgd", "adamw"] = "adamw"
) -> tuple[GraphModule, dict[str, Tensor]]:
    """A graph after two epochs of learning ranges, and its state before."""
    graph = ready("InPlace")
    quantize.learn_ranges(graph, rate=5.0)
    before = tensors(graph)
    losses = [WeightedLoss("kd", KD(KD.Options()), 1.0)]
    method = Offline(TupleOutputs(graph), [odd_network("InPlace")], losses)

    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == stop_after:
            raise KeyboardInterrupt

    fit(
        method,
        pictures(),
        settings=TrainSettings(epochs=2, lr=2e-3, batch_size=8, warmup_epochs=0.0, optimizer=optimizer),
        compute=ComputeSettings(device="cpu"),
        checkpoint=tmp_path / "checkpoint.pt" if tmp_path else None,
        hooks=Hooks(
            on_step=lambda progress: quantize.set_phase(graph, "learn"),
            on_epoch=on_epoch,
            set_training=lambda module, training: quantize.set_phase(graph, "frozen"),
        ),
    )
    return graph, before


def pictures() -> Batches:
    # brighter than what was calibrated on, so that a range has somewhere to go
    pixels = torch.rand(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 8
    return batches_of(pixels, torch.arange(24) % CLASSES)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_engine_trains_every_scale_and_the_settled_graph_is_an_int8_program(
    optimizer: Literal["sgd", "adamw"],
) -> None:
    graph, before = learned(optimizer=optimizer)
    moved = changed(before, graph)
    scales = [name for name in before if name.endswith((".gain", ".shift"))]
    assert len(scales) >= 7
    assert [name for name in scales if name not in moved] == []
    assert not any(name.endswith(("minimum", "maximum", "ratio", "scale")) for name in moved)
    output = graph(images(8))[0]
    quantize.settle_ranges(graph)
    program = quantize.convert(graph, images(2), numerics=dataclasses.replace(numerics(X86), bias="float"))
    with torch.no_grad():
        assert torch.equal(program(images(8)), output)


def test_learning_ranges_go_on_bit_for_bit_when_training_was_interrupted(tmp_path: Path) -> None:
    whole, _ = learned()
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path, stop_after=0)
    resumed, _ = learned(tmp_path)
    assert changed(tensors(whole), resumed) == []


@pytest.mark.parametrize("settled", [True, False])
def test_learned_state_is_restored_into_a_graph_that_tracks(settled: bool) -> None:
    graph, _ = learned()
    if settled:
        quantize.settle_ranges(graph)
    again = prepared(odd_network("InPlace"))
    quantize.restore(again, tensors(graph))
    assert torch.equal(again(images(8))[0], graph(images(8))[0])
    assert quantize.ranges(again) == quantize.ranges(graph)
    # and tracks from there
    quantize.set_phase(again, "track")
    before = quantize.ranges(again)
    again(images(8) * 3)
    assert quantize.ranges(again) != before


def test_tracked_state_is_restored_into_a_graph_that_learns() -> None:
    tracked, _, _ = trained(freeze_at=0.5)
    graph = prepared(odd_network("InPlace"), taps=["a"])
    quantize.calibrate(graph, [images(16)])
    quantize.learn_ranges(graph)
    quantize.restore(graph, tensors(tracked))
    assert torch.equal(graph(images(8))[0], tracked(images(8))[0])
    quantize.learn_ranges(graph)
    quantize.set_phase(graph, "learn")
    assert torch.equal(graph(images(8))[0], tracked(images(8))[0])


def test_refused_state_leaves_a_learning_graph_as_it_was() -> None:
    graph, _ = learned()
    before = tensors(graph)
    with pytest.raises(MismatchError, match="has another graph"):
        quantize.restore(graph, tensors(ready("PreActivation")))
    assert changed(before, graph) == []


def test_guard_s_term_is_trained_and_logged_by_the_engine() -> None:
    graph = ready("InPlace")
    guard = quantize.OscillationGuard(graph, quantize.OscillationOptions(dampening=0.5, freeze_above=0.3))
    method = Offline(TupleOutputs(graph), [odd_network("InPlace")], [WeightedLoss("kd", KD(KD.Options()), 1.0)])
    result = fit(
        method,
        pictures(),
        settings=TrainSettings(epochs=2, lr=0.01, batch_size=8, warmup_epochs=0.0),
        compute=ComputeSettings(device="cpu"),
        hooks=Hooks(
            on_step=guard.step,
            set_training=lambda module, training: quantize.set_phase(graph, "frozen"),
            terms=guard.terms,
        ),
    )
    guard.close()
    assert set(result.history[-1].terms) == {"kd", "dampening"}
    assert result.history[-1].terms["dampening"].raw > 0
    quantize.restore(prepared(odd_network("InPlace")), tensors(graph))


# distillation without labels


@pytest.mark.parametrize("labels", ["wrong", "all the same"])
def test_student_follows_the_teacher_when_labels_say_something_else(labels: str) -> None:
    torch.manual_seed(0)
    seen, unseen = images(256, seed=8), images(256, seed=9)
    pooled = [nn.AvgPool2d(4), nn.Flatten()]
    teacher = nn.Sequential(*pooled, nn.Linear(48, CLASSES)).eval()
    student = nn.Sequential(*pooled, nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, CLASSES)).eval()
    nn.init.normal_(teacher[2].weight)  # type: ignore[arg-type]
    with torch.no_grad():
        answers, taught = teacher(seen).argmax(1), teacher(unseen)
    graph = prepared(student)
    quantize.calibrate(graph, seen.split(32))
    before = agreement(graph, unseen, taught)
    given = (answers + 1) % CLASSES if labels == "wrong" else torch.zeros_like(answers)
    method = Offline(TupleOutputs(graph), [teacher], [WeightedLoss("kd", KD(KD.Options(tau=1.0)), 1.0)])
    result = fit(
        method,
        batches_of(seen, given),
        settings=TrainSettings(
            epochs=15, lr=5e-3, batch_size=8, warmup_epochs=0.0, optimizer="adamw", weight_decay=0.0
        ),
        compute=ComputeSettings(device="cpu"),
        hooks=Hooks(
            on_step=lambda progress: quantize.set_phase(graph, "track" if progress < 0.5 else "frozen"),
            set_training=lambda module, training: quantize.set_phase(graph, "frozen"),
        ),
    )
    assert set(result.history[0].terms) == {"kd"}
    assert result.history[-1].terms["kd"].raw < result.history[0].terms["kd"].raw / 10
    assert agreement(graph, unseen, taught) > before + 0.5
    assert agreement(graph, seen, nn.functional.one_hot(given, CLASSES).float()) < 0.3


def batches_of(inputs: Tensor, labels: Tensor) -> Batches:
    """Training batches whose normalised inputs are these."""
    plain = Preprocessing(size=[SIZE, SIZE], channels=3, mean=[0.0] * 3, std=[1.0] * 3)
    return Batches(InMemorySamples(inputs, labels), batch_size=8, classes=CLASSES, preprocessing=plain, seed=0)


def agreement(graph: GraphModule, inputs: Tensor, taught: Tensor) -> float:
    with torch.no_grad():
        return float((graph(inputs)[0].argmax(1) == taught.argmax(1)).float().mean())


# compiled


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["frozen", "track", "learn"])
def test_compiled_graph_gives_the_same_loss_and_gradients(phase: Phase) -> None:
    losses, gradients = [], []
    for compiled in (False, True):
        graph = ready("InPlace")
        if phase == "learn":
            quantize.learn_ranges(graph)
        quantize.set_phase(graph, phase)
        run = torch.compile(graph) if compiled else graph
        for seed in range(2):
            graph.zero_grad()
            loss = nn.functional.cross_entropy(run(images(8, seed=seed))[0], torch.arange(8) % CLASSES)
            loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({name: parameter.grad for name, parameter in graph.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, gradient in gradients[0].items():
        assert quantize.sqnr_db(gradient, gradients[1][name]) > 40, name  # type: ignore[arg-type]


# numbers


def test_sqnr_is_the_one_worked_by_hand() -> None:
    # errors of a tenth: a hundredth of the power
    assert quantize.sqnr_db(torch.tensor([10.0, 10.0]), torch.tensor([9.0, 11.0])) == pytest.approx(20.0)
    assert quantize.sqnr_db(torch.ones(3), torch.ones(3)) == math.inf
    assert quantize.sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf
    assert quantize.sqnr_db(torch.zeros(3), torch.zeros(3)) == math.inf
    for bad in (math.nan, math.inf):
        assert quantize.sqnr_db(torch.tensor([bad]), torch.tensor([1.0])) == -math.inf
        assert quantize.sqnr_db(torch.tensor([1.0]), torch.tensor([bad])) == -math.inf
