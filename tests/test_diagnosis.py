"""_diagnosis: the batch, the weight or the layer that broke a training, and what to set when memory ran out."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd import quantize
from edgekd._diagnosis import diagnose, is_out_of_memory, out_of_memory
from edgekd.calibration.minmax import MinMax
from edgekd.errors import OutOfMemory
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.kd import KD
from edgekd.methods._base import Batch, WeightedLoss
from edgekd.methods.alone import Alone
from edgekd.methods.offline import Offline
from edgekd.models.tiny import Tiny
from edgekd.recipe import ComputeSettings, TrainSettings
from edgekd.taps import Tapped, TupleOutputs
from edgekd.targets.onnxruntime_x86 import OnnxRuntimeX86

NAN, INFINITE = float("nan"), float("inf")


def batch(rows: int = 6) -> Batch:
    inputs = torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = nn.functional.one_hot(torch.arange(rows) % 3, 3).float()
    return Batch(inputs, labels, ids=torch.arange(rows) * 10 + 7, epoch=0, progress=0.0)


def tiny(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return Tiny(Tiny.Options(width=width)).build(3, (1, 8, 8))


def alone(student: nn.Module) -> Alone:
    return Alone(student, [], [WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 1.0)])


class Broken(nn.Module):
    """Gives what it is given, but one value is another."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, inputs: Tensor) -> Tensor:
        result = inputs.clone()
        result.view(-1)[0] = self.value
        return result


class Between(nn.Module):
    """Breaks its values between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Flatten(), nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs) / 0.0)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_sound_training_is_told_so_and_nothing_moved():
    student = tiny().train()
    student.fc = nn.Sequential(nn.Dropout(0.5), student.fc)
    before, random = state(student), torch.get_rng_state()
    found = diagnose(alone(student), batch())
    assert found == (
        "In the batch of samples 7, 17, 27, 37 and 2 more, every layer of student and teachers gives numbers,"
        " so the term itself overflowed."
    )
    assert any("running_mean" in name for name in before)
    assert same(before, state(student))
    assert student.training
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_sample_is_named_when_its_input_is_no_number():
    broken = batch()
    broken.inputs[2, 0, 3, 3] = NAN
    broken.inputs[4, 0, 0, 0] = INFINITE
    assert diagnose(alone(tiny()), broken) == (
        "In the batch of samples 7, 17, 27, 37 and 2 more, the input of sample 27, and that of 1 more, holds NaN."
    )
    labels = batch(2)
    labels.labels[1, 0] = INFINITE
    assert diagnose(alone(tiny()), labels) == "In the batch of samples 7, 17, the label of sample 17 holds infinity."


def test_weight_is_named_when_it_is_no_number():
    student = tiny()
    with torch.no_grad():
        student.fc.weight[0, 0] = NAN
    assert diagnose(alone(student), batch()).endswith("weight 'student.fc.weight' holds NaN.")
    student = tiny()
    student.register_buffer("scale", torch.tensor(NAN))
    student.register_buffer("never_seen", torch.tensor(INFINITE))
    assert diagnose(alone(student), batch()).endswith("buffer 'student.scale' holds NaN.")


def test_weight_that_broke_later_is_only_a_hint():
    student = tiny()
    with torch.no_grad():
        student.fc.bias[0] = INFINITE
    assert "layer 'fc'" in diagnose(alone(student), batch(), later=12)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    student.spare = nn.Parameter(torch.tensor(NAN))
    found = diagnose(alone(student), batch(), later=12)
    assert "is the first to give NaN" not in found
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    student[1].register_parameter("spare", nn.Parameter(torch.tensor(NAN)))
    assert diagnose(alone(student), batch(), later=12).endswith(
        "weight 'student.1.spare' holds NaN now, 12 steps later."
    )


@pytest.mark.parametrize(
    ("value", "words"), [(NAN, "NaN"), (INFINITE, "infinity"), (-INFINITE, "-infinity"), (3e31, "3.0e+31")]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_first_layer_is_named_in_the_order_of_execution(value, words, wrapped):
    student = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 8), Broken(value)), nn.Linear(8, 3))
    network = Tapped(student, ["1.0"]) if wrapped else student
    assert diagnose(alone(network), batch()).endswith(
        f"layer '1.1' (Broken) of the student is the first to give {words}."
    )


def test_what_breaks_between_two_layers_is_told_by_the_next():
    found = diagnose(alone(Between()), batch())
    assert found.endswith(
        "what is computed before layer 'second' (Linear) of the student is the first to give infinity."
    )


def test_teacher_is_named_when_it_is_the_one():
    teachers = [tiny(6).eval(), nn.Sequential(tiny(6), Broken(NAN)).eval()]
    method = Offline(tiny(), teachers, [WeightedLoss("kd", KD(KD.Options()), 1.0)])
    assert diagnose(method, batch()).endswith("layer '1' (Broken) of teacher 2 is the first to give NaN.")
    with torch.no_grad():
        teachers[0].fc.weight[0, 0] = NAN
    assert diagnose(method, batch()).endswith("weight 'teacher.fc.weight' holds NaN.")


class Refusing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        raise ValueError("I want\nmore")


def test_network_that_cannot_run_again_does_not_hide_the_rest():
    found = diagnose(alone(Refusing()), batch())
    assert found.endswith("the layers of the student could not be looked at (ValueError: I want).")
    method = Offline(Refusing(), [nn.Sequential(tiny(), Broken(NAN))], [WeightedLoss("kd", KD(KD.Options()), 1.0)])
    assert "of the teacher is the first to give NaN" in diagnose(method, batch())


def test_precision_of_the_step_is_that_of_the_look():
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        student[1].weight.fill_(3e4)

    def half() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.float16)

    assert "the term itself overflowed" in diagnose(alone(student), batch())
    found = diagnose(alone(student), batch(), autocast=half)
    assert re.search(r"layer '1' \(Linear\) of the student is the first to give -?infinity\.$", found)


def exported(network: nn.Module) -> torch.fx.GraphModule:
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    return torch.export.export(network.eval(), (torch.randn(2, 1, 8, 8),), dynamic_shapes=dynamic).module()


def test_graph_is_looked_at_node_by_node():
    graph = exported(Tapped(Between(), ["first"]))
    before = state(graph)
    found = diagnose(alone(TupleOutputs(graph, ["first"])), batch())
    assert re.search(r"node 'div\w*'( \(layer '[\w.]+'\))? of the student is the first to give (-|)infinity\.$", found)
    assert same(before, state(graph))
    assert "the term itself overflowed" in diagnose(alone(TupleOutputs(exported(Tapped(tiny(), [])))), batch())


class Masked(nn.Module):
    """Minus infinity as it is meant: softmax makes it 0."""

    def __init__(self, *, broken: bool) -> None:
        super().__init__()
        self.head, self.broken = nn.Linear(64, 3), broken

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.flatten(1)
        shares = torch.softmax(values.masked_fill(values < 0, -INFINITE), dim=1)
        return self.head(shares.log() if self.broken else shares)


def test_mask_of_a_graph_is_told_only_if_nothing_else_is_found():
    sound = diagnose(alone(TupleOutputs(exported(Masked(broken=False)))), batch())
    assert "node 'masked_fill" in sound
    broken = diagnose(alone(TupleOutputs(exported(Masked(broken=True)))), batch())
    assert "node 'masked_fill" not in broken
    assert re.search(r"layer 'head'\) of the student is the first to give (NaN|infinity)", broken)


def test_ranges_of_a_graph_that_tracks_them_are_put_back():
    inputs = batch().inputs
    minmax, numerics = MinMax(MinMax.Options()), OnnxRuntimeX86().numerics
    graph = quantize.prepare(tiny().eval(), inputs, numerics=numerics, calibrator=minmax, reduce_range=False)
    quantize.calibrate(graph, [inputs / 4])
    quantize.set_phase(graph, "track")
    before = state(graph)
    assert "the term itself overflowed" in diagnose(alone(TupleOutputs(graph)), batch())
    assert same(before, state(graph))
    graph(inputs)
    assert not same(before, state(graph))


def _allocator_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


def test_errors_of_full_memory_are_known():
    assert is_out_of_memory(_allocator_error())
    with pytest.raises(MemoryError) as caught:
        np.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_message_says_how_large_the_batch_was_and_what_to_set():
    error = out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        TrainSettings(batch_size=256, accumulate=2),
        ComputeSettings(),
        processes=2,
        teachers=1,
        kept="The last checkpoint is kept in runs/a.",
    )
    assert isinstance(error, OutOfMemory)
    assert error.exit_code == 3
    assert str(error) == (
        "Training ran out of memory (it asked for 2.00 GiB) with train.batch_size = 256 over 2 processes, 2 parts each:"
        " 64 samples at a time. Set train.accumulate = 4 (32 samples at a time; the same result where losses and layers"
        " look at samples one by one); or compute.precision = 'bfloat16'; or [distill.cache], so that no teacher runs;"
        " or compute.shard_teacher = true; or a smaller data.size. The last checkpoint is kept in runs/a."
    )


def test_only_what_can_still_be_set_is_proposed():
    error = str(out_of_memory(MemoryError(), TrainSettings(batch_size=1), ComputeSettings(precision="bfloat16")))
    assert error == (
        "Training ran out of memory with train.batch_size = 1: 1 samples at a time. Set a smaller data.size."
    )
    error = str(out_of_memory(_allocator_error(), TrainSettings(batch_size=9, accumulate=3), ComputeSettings()))
    assert "(it asked for 3,725,290 GiB) with train.batch_size = 9 in 3 parts: 3 samples at a time" in error
    assert "train.accumulate = 6 (2 samples at a time" in error
    assert "distill.cache" not in error
    sharded = out_of_memory(MemoryError(), TrainSettings(), ComputeSettings(shard_teacher=True), teachers=1)
    assert "shard_teacher" not in str(sharded)


@pytest.mark.slow
def test_processes_agree_on_the_finding_that_is_nearest_to_the_cause(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = textwrap.dedent("""
        import sys, torch
        import test_diagnosis as t
        rank, port = int(sys.argv[1]), sys.argv[2]
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        one = t.batch()
        if rank == 1:
            one.inputs[3, 0, 0, 0] = float("nan")
        print(t.diagnose(t.alone(t.tiny()), one))
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(port)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in (0, 1)
    ]
    found = [one.communicate(timeout=120)[0].strip() for one in both]
    assert found[0].endswith("the input of sample 37 holds NaN.")
    assert found[0] == found[1]
