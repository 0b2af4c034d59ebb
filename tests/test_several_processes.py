"""Two real processes over gloo do what one does: one launch for most of it, since starting them is what costs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import several_processes as work
import torch
from torch import Tensor, nn

from edgekd import _group, _shared_teacher
from edgekd._synced_norm import restored, synced
from edgekd.errors import BackendMissing, UsageError

CLOSE = 1e-4
"""Sums over rows in another order, through a few steps of training: rounding, and nothing else."""


def launched(script: Path, *arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Start processes as `torchrun` does, on a free port."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints pass from one number of processes to another."""
    made = tmp_path_factory.mktemp("processes")
    for name in ("one", "two"):
        (made / name).mkdir()
    work.stopped_and_resumed(made / "one", stop_after=0)
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return _found("quick", folder)


@pytest.fixture(scope="module")
def more_found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The same, of what takes longer."""
    return _found("slow", tmp_path_factory.mktemp("more"))


def _found(what: str, folder: Path) -> list[dict[str, Any]]:
    if os.name == "nt":
        pytest.skip("gloo over a local launcher needs a POSIX system")
    done = launched(Path(work.__file__), what, str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def farthest(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference between two states with the same names."""
    assert list(ours) == list(theirs)
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)


def test_one_process_talks_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert _group.launched() == (0, 1)
    _group.join(cpu=True)
    assert (_group.index(), _group.count(), _group.local_index(), _group.is_main()) == (0, 1, 0, True)
    value = object()
    assert _group.from_main(lambda: value) is value
    assert _group.gather(value)[0] is value
    assert [_group.agreed(flag) for flag in (False, True)] == [False, True]


def test_a_number_without_a_launcher_starts_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    # a cluster may set these two for the whole job
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert _group.launched() == (0, 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _group.launched() == (1, 4)


def test_lost_process_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    told = r"^Another process of this run ended .* the same command again\.$"
    with pytest.raises(BackendMissing, match=told), _group.losing_contact():
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer")
    with pytest.raises(RuntimeError, match=r"^a fault$"), _group.losing_contact():
        raise RuntimeError("a fault")


def test_processes_tell_each_other(found: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(found):
        told = one["talked"]
        assert (told["index"], told["count"], told["main"]) == (rank, 2, rank == 0)
        assert told["from_main"] == {"made by": 0, "count": 1}, "the main process works alone meanwhile"
        assert told["gathered"] == ["of 0", "of 1"]
        assert told["agreed"] == [False, True, True]
        assert told["copied"].tolist() == [0.0, 0.0]
        assert told["alone"] == [1, 0, ["one"], rank]


def test_tensors_add_up_as_torch_adds_them(found: list[dict[str, Any]]) -> None:
    for one in found:
        told = one["added"]
        for name in ("empty", "one", "chunks", "large"):
            by_sockets = name != "large"
            assert told[name] == {"by sockets": by_sockets, "equal": True, "stacked": True, "largest": True}, name
        assert told["other types"] == [[[[0.5] * 2] * 3, [[1.5] * 2] * 3], 2**61 + 1]


def test_error_of_the_main_process_reaches_the_others(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["talked"]["usage"] == ["UsageError", "no such thing", 2]
        assert one["talked"]["recipe"][1:] == ["here: 2 problems\n  one\n  two", 2]


@pytest.mark.parametrize("rows", work.ROWS)
def test_batch_normalisation_is_of_the_whole_batch(found: list[dict[str, Any]], rows: str) -> None:
    whole = work.normalised(work.ROWS[rows])
    parts = [one["normalised"][rows] for one in found]
    for name in ("output", "inputs"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], rtol=1e-5, atol=2e-6)
    for name in ("weight", "bias"):
        # of a process's rows alone: the wrapper's mean over the processes is that of the losses' mean
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name], rtol=1e-5, atol=2e-6)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(parts[0][name], parts[1][name])
        torch.testing.assert_close(parts[0][name], whole[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("shape", [(6, 4, 5, 5), (8, 4), (8, 4, 7), (2, 4, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_synced_layer_is_the_plain_one_in_one_process(
    shape: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype
) -> None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    torch.manual_seed(0)
    inputs, upstream = (torch.randn(shape) * 3 + 20).to(dtype), torch.randn(shape)
    results = []
    for switched in (False, True):
        layer = kind(4, **options)
        seen: list[Tensor] = []
        layer.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 0.7)
        if switched:
            synced([layer])
            assert isinstance(layer, kind)
            assert type(layer) is not kind
        leaf = inputs.clone().requires_grad_()
        layer(inputs)
        output = layer(leaf)
        (output.float() * upstream).sum().backward()
        assert len(seen) == 2, "hooks stay"
        layer.eval()
        evaluated = layer(inputs)
        restored([layer])
        assert type(layer) is kind
        state = {name: value.float() for name, value in layer.state_dict().items()}
        results.append([output, leaf.grad, *(one.grad for one in layer.parameters()), evaluated, *state.values()])
    for ours, theirs in zip(*results, strict=True):
        # bfloat16 has 8 bits, and the largest gradients here are about 2
        close = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


class _Odd(nn.BatchNorm2d):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + 1.0


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm has it: a dropout and an activation behind the normalisation, in a forward of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(inputs)))  # type: ignore[no-any-return]


def test_layer_with_a_forward_of_its_own_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), _Odd(2))
    with pytest.raises(UsageError, match=r"^Layer '1' is a _Odd, .* compute\.sync_batch_norm = false"):
        synced([network])


def test_layer_with_an_activation_behind_keeps_it() -> None:
    layer, inputs = BatchNormAct2d(2), torch.randn(4, 2, 3, 3)
    wanted = layer(inputs)
    synced([layer])
    torch.testing.assert_close(layer(inputs), wanted)
    assert type(layer).__name__ == "SyncedBatchNormAct2d"


def test_timms_own_layer_is_known_by_its_name() -> None:
    layers = pytest.importorskip("timm.layers", exc_type=(ImportError, RuntimeError))
    assert layers.BatchNormAct2d.__name__ == BatchNormAct2d.__name__
    assert {"drop", "act"} <= set(dict(layers.BatchNormAct2d(2).named_children()))


def test_one_value_a_channel_is_refused() -> None:
    layer = nn.BatchNorm1d(3)
    synced([layer])
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(torch.randn(1, 3))


@pytest.mark.parametrize("batch", [7, 60])
def test_predictions_are_bit_for_bit_those_of_one_process(found: list[dict[str, Any]], batch: int) -> None:
    alone = work.predicted(50, batch)
    assert alone.n == 50
    for one in found:
        logits, labels = one["predicted"][batch]
        assert (logits == alone.logits).all()
        assert (labels == alone.labels).all()


@pytest.fixture(scope="module")
def calibrated() -> dict[str, dict[str, tuple[float, float]]]:
    """The ranges that one process finds."""
    return work.calibrated()


@pytest.mark.parametrize("how", ["three", "one", "recalled", "tracked"])
def test_ranges_are_bit_for_bit_those_of_one_process(
    found: list[dict[str, Any]], calibrated: dict[str, dict[str, tuple[float, float]]], how: str
) -> None:
    assert len(calibrated[how]) >= 4
    assert [one["calibrated"][how] for one in found] == [calibrated[how]] * 2


def test_ranges_depend_on_what_was_seen(calibrated: dict[str, dict[str, tuple[float, float]]]) -> None:
    assert calibrated["one"] == calibrated["recalled"]
    assert calibrated["one"] != calibrated["three"]
    assert calibrated["one"] != calibrated["tracked"]


def test_shared_teacher_gives_the_same_outputs_from_half_the_weights(found: list[dict[str, Any]]) -> None:
    shards = [one["sharded"] for one in found]
    assert all(one["equal"] and one["again"] for one in shards)
    assert sum(one["here"] for one in shards) == shards[0]["all"]
    assert max(one["here"] for one in shards) < 0.6 * shards[0]["all"]
    assert [one["blocks"] for one in shards] == [[1, 3]] * 2


@pytest.mark.parametrize(("index", "said"), [(0, "has no weights of its own to share"), (1, "is a graph that reads")])
def test_teacher_that_cannot_be_shared_is_refused(found: list[dict[str, Any]], index: int, said: str) -> None:
    for one in found:
        told = one["sharded"]["refused"]
        assert len(told) == 2
        assert told[index].startswith("compute.shard_teacher: this teacher ")
        assert said in told[index]


def test_nothing_is_shared_in_one_process_or_without_weights() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    _shared_teacher.shard(network)
    assert type(network) is nn.Sequential


def test_student_of_a_shared_teacher_is_the_same(found: list[dict[str, Any]]) -> None:
    assert farthest(found[0]["taught_by_shards"], found[0]["trained"]["kd", True]) < 1e-6


def test_losses_that_gather_are_all_here() -> None:
    assert set(work.BATCHWISE) >= {"dist", "pkt", "rkd_angle", "rkd_distance", "similarity_preserving", "ofd"}


@pytest.mark.parametrize("name", work.LOSSES)
def test_two_processes_train_the_student_of_one(found: list[dict[str, Any]], name: str) -> None:
    _check_trained(found, name, norm=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", work.LOSSES)
def test_two_processes_train_the_student_of_one_without_normalisation(
    more_found: list[dict[str, Any]], name: str
) -> None:
    _check_trained(more_found, name, norm=False)


def _check_trained(found: list[dict[str, Any]], name: str, *, norm: bool) -> None:
    alone = work.trained(name, norm=norm)
    start = work.method_of(name, norm=norm).student.state_dict()
    trained = {key: value for key, value in alone.items() if key.startswith("student.")}
    assert farthest(trained, {f"student.{key}": value for key, value in start.items()}) > 10 * CLOSE
    both = [one["trained"][name, norm] for one in found]
    assert farthest(*both) == 0.0
    assert farthest(both[0], alone) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("name", work.METHODS)
def test_two_processes_learn_together_what_one_does(more_found: list[dict[str, Any]], name: str) -> None:
    both = [one["together"][name] for one in more_found]
    assert farthest(*both) == 0.0
    assert farthest(both[0], work.together(name)) < CLOSE


def test_training_goes_on_with_another_number_of_processes(found: list[dict[str, Any]], folder: Path) -> None:
    undisturbed = work.stopped_and_resumed(folder, stop_after=None, whole=True)
    assert farthest(found[0]["resumed"], undisturbed) < CLOSE, "from one to two"
    assert farthest(work.stopped_and_resumed(folder / "two", stop_after=None), undisturbed) < CLOSE, "from two to one"
