"""Where each target's quantizers stand, read from prepared graphs of small networks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from odd_networks import images, odd_network
from torch import nn
from torch.fx import GraphModule, Node

from edgekd import quantize
from edgekd.calibration._fake_quantize import ActivationQuantizer, WeightQuantizer, quantizers
from edgekd.calibration.minmax import MinMax
from edgekd.catalog import CATALOGS
from edgekd.spec import Options
from edgekd.targets._annotate import TargetQuantizer
from edgekd.targets._base import Numerics

X86, TENSORRT = "onnxruntime_x86", "tensorrt"


def numerics(target: str) -> Numerics:
    found: Numerics = CATALOGS["targets"].load(target).member.numerics
    return found


def prepared(
    network: str | nn.Module, target: str = X86, *, taps: Sequence[str] = (), reduce_range: bool = False
) -> GraphModule:
    module = odd_network(network) if isinstance(network, str) else network
    return quantize.prepare(
        module,
        images(2),
        numerics=numerics(target),
        calibrator=MinMax(Options()),
        reduce_range=reduce_range,
        taps=taps,
    )


def layout(graph: GraphModule) -> list[str]:
    """Every operator with its inputs: q quantized activation, w quantized weight, - float."""
    lines = []
    for node in graph.graph.nodes:
        if node.op == "call_function":
            kinds = ",".join(_kind(graph, one) for one in node.all_input_nodes)
            lines.append(f"{str(node.target).split('.')[1]}({kinds})")
    return lines


def _kind(graph: GraphModule, node: Node) -> str:
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return {ActivationQuantizer: "q"}.get(type(module), "w" if isinstance(module, WeightQuantizer) else "-")


def output_quantized(graph: GraphModule) -> bool:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    return _kind(graph, output.args[0][0]) == "q"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(torch.relu(self.conv(x) + x), 2)
        logits: torch.Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def test_every_group_is_quantized_on_inputs_and_output_when_the_target_wants_outputs() -> None:
    graph = prepared(Residual())
    assert layout(graph) == [
        "conv2d(q,w,-)",
        "relu(-)",  # inside the group: nothing between convolution and ReLU
        "conv2d(q,w,-)",
        "add(q,q)",
        "relu(-)",
        "max_pool2d(q)",
        "adaptive_avg_pool2d(q)",
        "flatten(q)",
        "linear(q,w,-)",
    ]
    assert not output_quantized(graph)  # logits of a fully connected layer stay float


def test_only_weighted_operators_and_the_skip_are_quantized_when_the_target_wants_inputs() -> None:
    assert layout(prepared(Residual(), TENSORRT)) == [
        "conv2d(q,w,-)",
        "relu(-)",
        "conv2d(q,w,-)",
        "add(-,q)",  # the convolution's own result joins the add in the accumulator's precision
        "relu(-)",
        "max_pool2d(-)",
        "adaptive_avg_pool2d(-)",
        "flatten(-)",
        "linear(q,w,-)",
    ]


def test_skip_is_quantized_whichever_side_it_comes_from() -> None:
    class Swapped(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            return self.fc(self.pool(torch.relu(x + self.conv(x))).flatten(1))  # type: ignore[no-any-return]

    assert "add(q,-)" in layout(prepared(Swapped(), TENSORRT))


def test_arm_stands_where_x86_stands() -> None:
    assert layout(prepared(Residual(), "onnxruntime_arm")) == layout(prepared(Residual()))


def test_one_quantizer_serves_both_sides_of_what_only_moves_values() -> None:
    graph = prepared(Residual())
    example = images(4)
    quantize.calibrate(graph, [example])
    found = [
        (str(node.target).split(".")[1], graph.get_submodule(str(node.args[0].target)), _reader(graph, node))
        for node in graph.graph.nodes
        if node.op == "call_function" and str(node.target).split(".")[1] in ("max_pool2d", "flatten")
    ]
    assert [name for name, _, _ in found] == ["max_pool2d", "flatten"]
    for name, before, after in found:
        assert before is after, name


def _reader(graph: GraphModule, node: Node) -> nn.Module:
    (user,) = node.users
    return graph.get_submodule(str(user.target))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("Branches", ["cat(q,q)", "cat(q,q)"]),
        ("AddBroadcast", ["add(q,q)"]),
        ("AddItself", ["add(q)"]),
        ("AddConstant", ["add(q,q)"]),
        ("Gates", ["sigmoid(q)", "mul(q,q)", "sigmoid(q)", "mul(q,q)"]),
        ("ReluAfterMaxPool", ["max_pool2d(q)", "max_pool2d(q)"]),
        ("OneDimensional", ["conv1d(q,w,-)"]),
        ("SamePadding", ["conv2d(q,w,-)", "conv2d(q,w,-)"]),
        ("MeanAsPool", ["adaptive_avg_pool2d(q)", "adaptive_avg_pool2d(q)", "add(q,q)"]),
        ("PreActivation", ["conv2d(q,w,-)"] * 5),
    ],
)
def test_operator_is_fed_by_quantizers_however_it_is_written(network: str, expected: list[str]) -> None:
    wanted = {line.partition("(")[0] for line in expected}
    assert [line for line in layout(prepared(network)) if line.partition("(")[0] in wanted] == expected


@pytest.mark.parametrize(
    ("network", "activations"),
    [
        ("FunctionalRelu6", ["hardtanh(-)", "hardtanh(-)"]),
        ("Clamps", ["relu(-)", "hardtanh(-)", "relu(-)"]),
        ("InPlace", ["hardtanh(-)", "relu(-)"]),
        ("InPlaceThenReadAgain", ["relu(-)"]),
        ("ReluAfterMaxPool", ["relu(-)"]),
        ("TwoReaders", ["relu(q)", "relu(-)"]),  # the first shares its input with the add: no convolution can have it
    ],
)
def test_activation_joins_the_operator_before_it_however_it_is_written(network: str, activations: list[str]) -> None:
    found = [line for line in layout(prepared(network)) if line.startswith(("relu", "hardtanh", "clamp"))]
    assert found == activations


def test_quantizers_do_not_depend_on_taps() -> None:
    for target in (X86, TENSORRT):
        plain = prepared("PreActivation", target)
        tapped = prepared("PreActivation", target, taps=["stem", "norm1", "conv1.0", "conv1.1"])
        without = [line for line in layout(tapped) if not line.startswith(("sub", "div"))]
        assert without == layout(plain)
        assert len(list(quantizers(tapped))) == len(list(quantizers(plain)))


def test_branch_that_only_a_tap_reads_stays_float() -> None:
    class Auxiliary(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            self.side(x)
            return self.fc(self.pool(x).flatten(1))  # type: ignore[no-any-return]

    lines = layout(prepared(Auxiliary(), taps=["side"]))
    assert sorted(line for line in lines if line.startswith("conv2d")) == ["conv2d(q,-,-)", "conv2d(q,w,-)"]


@pytest.mark.parametrize("reduce_range", [False, True])
def test_neighbouring_weights_share_their_bits_when_the_range_is_reduced(reduce_range: bool) -> None:
    graph = prepared(Residual(), reduce_range=reduce_range)
    weights = [one for _, one in quantizers(graph) if isinstance(one, WeightQuantizer)]
    assert [(one.quant_min, one.quant_max, one.ch_axis, one.pairs) for one in weights] == [
        (-127, 127, 0, reduce_range)
    ] * 3


def test_depthwise_weights_keep_all_their_bits_when_the_range_is_reduced() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 12, 3, groups=6))
    graph = prepared(network, reduce_range=True)
    weights = [one for _, one in quantizers(graph) if isinstance(one, WeightQuantizer)]
    assert [one.pairs for one in weights] == [True, False, True]


@pytest.mark.parametrize(
    ("target", "dtype", "bounds", "zero_point"),
    [
        (X86, torch.uint8, (0, 255), 0),
        ("onnxruntime_arm", torch.int8, (-128, 127), -128),
        (TENSORRT, torch.int8, (-128, 127), 0),
    ],
)
def test_grid_is_the_target_s(target: str, dtype: torch.dtype, bounds: tuple[int, int], zero_point: int) -> None:
    graph = prepared(Residual(), target)
    quantize.calibrate(graph, [images(4)])
    found = [one for _, one in quantizers(graph) if isinstance(one, ActivationQuantizer)]
    assert {one.dtype for one in found} == {dtype}
    assert {(one.quant_min, one.quant_max) for one in found} == {bounds}
    after_relu = [one for one in found if float(one.minimum) == 0.0]
    assert after_relu
    assert {int(one.calculate_qparams()[1]) for one in after_relu} == {zero_point}


class Scaled(nn.Module):
    """A normalised input, and a convolution whose result is scaled channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.gamma = nn.Parameter(torch.rand(3, 1, 1)), nn.Parameter(torch.rand(4, 1, 1))
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(x + self.mean) * self.gamma)  # type: ignore[no-any-return]


def test_constant_is_added_in_float_to_what_comes_in_float_and_multiplied_as_codes_with_codes() -> None:
    quantizer = TargetQuantizer(numerics(X86), calibrator=MinMax(Options()), reduce_range=False)
    graph = torch.export.export(Scaled().eval(), (torch.randn(2, 3, 8, 8),)).module()
    assert isinstance(graph, GraphModule)
    names = quantizer.quantized_groups(graph)
    assert len(names) == 3
    assert not any("add" in name for name in names)
    assert any("mul" in name for name in names)
