from __future__ import annotations

import copy
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.batches import Batches, RawBatch, Share
from edgekd.datasets._base import InMemorySamples
from edgekd.engine import EpochRecord, FitResult, Hooks, Tick, fit
from edgekd.errors import (
    ArtifactError,
    BackendMissing,
    MismatchError,
    StorageError,
    TrainingDiverged,
    UsageError,
)
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.hint import Hint
from edgekd.losses.kd import KD
from edgekd.methods._base import Method, WeightedLoss
from edgekd.methods.alone import Alone
from edgekd.methods.offline import Offline
from edgekd.methods.two_views import TwoViews
from edgekd.models.tiny import Tiny
from edgekd.recipe import AugmentSettings, ComputeSettings, TrainSettings
from edgekd.spec import Preprocessing
from edgekd.taps import Tapped, TupleOutputs, logits_of

CPU = ComputeSettings(device="cpu")
PIXELS = Preprocessing(size=[6, 6], channels=1, mean=[0.5], std=[0.5])
RUN = {"batch_size": 16, "lr": 0.05, "warmup_epochs": 0.5}


def samples(count: int = 48) -> InMemorySamples:
    """Three classes, told apart by which third of the image is bright."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(count) % 3
    pixels = torch.rand(count, 1, 6, 6, generator=generator) * 0.6
    for index, label in enumerate(labels.tolist()):
        pixels[index, :, 2 * label : 2 * label + 2] += 0.4
    return InMemorySamples(pixels, labels)


def batches(**options: object) -> Batches:
    return Batches(samples(), batch_size=16, classes=3, preprocessing=PIXELS, seed=3, **options)


def network(width: int = 4, classes: int = 3) -> nn.Module:
    return Tiny(Tiny.Options(width=width)).build(classes, (1, 6, 6))


def alone(student: nn.Module | None = None) -> Alone:
    torch.manual_seed(1)
    return Alone(student or network(), [], [WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 1.0)])


def distilled() -> Offline:
    """A student with dropout (which draws random numbers), a teacher, and a trained connector."""
    torch.manual_seed(1)
    student = network()
    student.fc = nn.Sequential(nn.Dropout(0.3), student.fc)
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 0.3),
        WeightedLoss("kd", KD(KD.Options()), 0.7),
        WeightedLoss("hint", Hint(Hint.Options(student_tap="layer1", teacher_tap="layer1")), 1.0),
    ]
    return Offline(student, [network(8).eval()], losses)


def accuracy(model: nn.Module) -> float:
    data = samples()
    predicted = logits_of(model(PIXELS.normalise(data.images(torch.arange(len(data)))))).argmax(1)
    return (predicted == data.labels).double().mean().item()


def equal(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def told(result: FitResult) -> list[dict[str, object]]:
    """What a history says beside its times."""
    return [record.model_dump(exclude={"seconds", "profile"}) for record in result.history]


def interrupt_after(epoch: int) -> Hooks:
    def stop(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise KeyboardInterrupt

    return Hooks(on_epoch=stop)


class BrokenAt:
    """The batches of another source, with one value that is not a number in one step."""

    def __init__(self, source: Batches, step: int) -> None:
        self.source, self.step = source, step

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, epoch: int, *, start: int = 0, share: Share = Share()) -> Iterator[RawBatch]:  # noqa: B008
        for index, batch in enumerate(self.source.epoch(epoch, start=start, share=share), start=start):
            if epoch * len(self) + index == self.step:
                batch.inputs[0, 0, 0, 0] = float("nan")
            yield batch


def test_network_learns_and_history_tells():
    method = alone()
    ticks: list[Tick] = []
    result = fit(
        method,
        batches(),
        settings=TrainSettings(epochs=12, **RUN),
        compute=CPU,
        evaluate=accuracy,
        progress=ticks.append,
    )
    assert result.history[-1].val == accuracy(method.exported()) > 0.95
    assert result.history[-1].loss < 0.5 * result.history[0].loss
    assert [record.epoch for record in result.history] == list(range(12))
    assert result.steps == 36 == len(ticks)
    assert [tick.step for tick in ticks] == list(range(1, 37))
    assert all(tick.steps == 36 and tick.loss is not None for tick in ticks)
    assert not method.exported().training
    assert FitResult.model_validate_json(result.model_dump_json()) == result


def test_terms_are_logged_raw_and_weighted():
    record = fit(distilled(), batches(), settings=TrainSettings(epochs=1, **RUN), compute=CPU).history[0]
    assert list(record.terms) == ["cross_entropy", "kd", "hint"]
    for name, weight in [("cross_entropy", 0.3), ("kd", 0.7), ("hint", 1.0)]:
        assert record.terms[name].weighted == pytest.approx(weight * record.terms[name].raw)
    assert record.loss == pytest.approx(sum(term.weighted for term in record.terms.values()))
    assert record.val is None


def test_one_sgd_step_equals_the_update_written_out():
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    start = copy.deepcopy(student)
    settings = TrainSettings(epochs=1, lr=0.1, warmup_epochs=0, momentum=0.0, weight_decay=0.01, schedule="constant")
    source = Batches(samples(), batch_size=48, classes=3, preprocessing=PIXELS, seed=3)
    fit(alone(student), source, settings=settings, compute=CPU)
    batch = next(iter(source.epoch(0)))
    loss = -(batch.labels * start(batch.inputs).log_softmax(1)).sum(1).mean()
    loss.backward()
    weight, bias = start[1].weight, start[1].bias
    torch.testing.assert_close(student[1].weight, weight - 0.1 * (weight.grad + 0.01 * weight))
    torch.testing.assert_close(student[1].bias, bias - 0.1 * bias.grad)  # a bias does not decay


def test_update_is_bounded_when_the_gradient_is_clipped():
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    start = torch.cat([one.detach().flatten().clone() for one in student.parameters()])
    settings = TrainSettings(
        epochs=1, lr=0.5, warmup_epochs=0, momentum=0.0, weight_decay=0.0, schedule="constant", clip_grad_norm=1e-3
    )
    source = Batches(samples(), batch_size=48, classes=3, preprocessing=PIXELS, seed=3)
    fit(alone(student), source, settings=settings, compute=CPU)
    moved = torch.cat([one.detach().flatten() for one in student.parameters()]) - start
    assert moved.norm().item() == pytest.approx(0.5 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_weights_are_bit_identical_when_interrupted_and_resumed(tmp_path, optimizer, ema_decay):
    settings = TrainSettings(epochs=4, optimizer=optimizer, ema_decay=ema_decay, **RUN)
    augment = AugmentSettings(crop=1, flip=True, mixup=0.2)
    whole, parts = distilled(), distilled()
    options = {"settings": settings, "compute": CPU, "seed": 5, "evaluate": accuracy}
    undisturbed = fit(whole, batches(augment=augment), **options)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, batches(augment=augment), checkpoint=tmp_path / "c", hooks=interrupt_after(1), **options)
    torch.manual_seed(99)  # another process starts with other random numbers and other fresh weights
    parts = distilled()
    resumed = fit(parts, batches(augment=augment), checkpoint=tmp_path / "c", **options)
    assert resumed.resumed_at == 2
    assert undisturbed.resumed_at == 0
    assert equal(whole.exported(), parts.exported())
    assert equal(whole.connectors, parts.connectors)
    assert told(undisturbed) == told(resumed)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "c.best.safetensors"]


def test_finished_run_gives_the_same_result_when_called_again(tmp_path):
    settings = TrainSettings(epochs=2, ema_decay=0.9, **RUN)
    first, second = alone(), alone()
    one = fit(first, batches(), settings=settings, compute=CPU, checkpoint=tmp_path / "c")
    two = fit(second, batches(), settings=settings, compute=CPU, checkpoint=tmp_path / "c")
    assert two.resumed_at == 2
    assert two.history == one.history
    assert equal(first.exported(), second.exported())


@pytest.mark.parametrize("change", ["tag", "seed", "settings"])
def test_checkpoint_is_left_aside_when_it_belongs_to_another_run(tmp_path, change):
    base = {
        "settings": TrainSettings(epochs=1, **RUN),
        "compute": CPU,
        "seed": 0,
        "tag": "a",
        "checkpoint": tmp_path / "c",
    }
    fit(alone(), batches(), **base)
    assert fit(alone(), batches(), **base).resumed_at == 1
    other = {"tag": "b", "seed": 1, "settings": TrainSettings(epochs=1, **(RUN | {"lr": 0.04}))}
    assert fit(alone(), batches(), **(base | {change: other[change]})).resumed_at == 0


def test_error_when_the_checkpoint_is_damaged(tmp_path):
    options = {"settings": TrainSettings(epochs=1, **RUN), "compute": CPU, "checkpoint": tmp_path / "c"}
    fit(alone(), batches(), **options)
    content = (tmp_path / "c").read_bytes()
    for length in (0, 10, len(content) // 2):
        (tmp_path / "c").write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"is damaged and cannot be resumed\. Delete it"):
            fit(alone(), batches(), **options)


def test_divergence_names_step_epoch_and_term_and_keeps_the_checkpoint(tmp_path):
    options = {"settings": TrainSettings(epochs=3, **RUN), "compute": CPU, "checkpoint": tmp_path / "c"}
    with pytest.raises(
        TrainingDiverged, match=r"step 5 \(epoch 2\): loss term 'cross_entropy' is nan.*last checkpoint is kept in .*c"
    ):
        fit(alone(), BrokenAt(batches(), step=4), **options)
    method = alone()
    assert fit(method, batches(), **options).resumed_at == 1
    assert all(value.isfinite().all() for value in method.exported().state_dict().values())


def test_divergence_names_the_weight_when_the_last_update_breaks_it(tmp_path):
    settings = TrainSettings(epochs=1, batch_size=48, lr=1e38, warmup_epochs=0, weight_decay=0.0)
    source = Batches(samples(), batch_size=48, classes=3, preprocessing=PIXELS, seed=3)
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with torch.no_grad():
        student[1].weight.mul_(100)
    with pytest.raises(TrainingDiverged, match=r"epoch 1\): weight 'student\.1\..*' is not finite"):
        fit(alone(student), ScaledUp(source), settings=settings, compute=CPU, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()


class ScaledUp:
    def __init__(self, source: Batches) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, epoch: int, *, start: int = 0, share: Share = Share()) -> Iterator[RawBatch]:  # noqa: B008
        for batch in self.source.epoch(epoch, start=start, share=share):
            yield RawBatch(batch.inputs * 1e3, batch.labels, batch.ids, batch.total)


def test_old_checkpoint_stays_when_the_disk_refuses(tmp_path):
    options = {"settings": TrainSettings(epochs=2, **RUN), "compute": CPU, "checkpoint": tmp_path / "c"}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(record: EpochRecord) -> None:
        while not (tmp_path / "c").exists():  # it is written while training goes on
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with pytest.raises(StorageError, match=r"Cannot write .*: File too large"):
            fit(alone(), batches(), hooks=Hooks(on_epoch=fill_the_disk), **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fit(alone(), batches(), **options).resumed_at == 1


@pytest.mark.slow
def test_run_goes_on_when_the_process_was_killed(tmp_path):
    script = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        import time, test_engine as t
        from pathlib import Path
        t.fit(t.alone(), t.batches(), settings=t.TrainSettings(epochs=3, **t.RUN), compute=t.CPU,
              checkpoint=Path({str(tmp_path / "c")!r}),
              hooks=t.Hooks(on_epoch=lambda record: time.sleep(60 * (record.epoch == 1))))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        seen = _wait_for_second_write(tmp_path / "c", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert seen
    killed, whole = alone(), alone()
    settings = TrainSettings(epochs=3, **RUN)
    assert fit(killed, batches(), settings=settings, compute=CPU, checkpoint=tmp_path / "c").resumed_at == 2
    threads = torch.get_num_threads()
    fit(whole, batches(), settings=settings, compute=CPU)
    assert torch.get_num_threads() == threads
    for ours, theirs in zip(killed.exported().parameters(), whole.exported().parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)  # the other process may have had another number of threads


def _wait_for_second_write(path: Path, process: subprocess.Popen[bytes]) -> bool:
    inodes: set[int] = set()
    for _ in range(600):
        if path.exists():
            inodes.add(os.stat(path).st_mtime_ns)
        if len(inodes) == 2 or process.poll() is not None:
            break
        time.sleep(0.05)
    return (
        process.poll() is None
        and path.exists()
        and len(torch.load(path, weights_only=True)["state"]["course"]["history"]) == 2
    )


def test_average_is_the_result_and_the_metric_when_ema_is_on():
    seen: list[float] = []

    def remember(model: nn.Module) -> float:
        seen.append(model.fc.weight.sum().item())
        return 0.0

    live, averaged = alone(), alone()
    run = {"epochs": 3, **RUN}
    fit(live, batches(), settings=TrainSettings(**run), compute=CPU)
    result = fit(averaged, batches(), settings=TrainSettings(ema_decay=0.9, **run), compute=CPU, evaluate=remember)
    assert result.averaged
    assert not equal(live.exported(), averaged.exported())
    assert seen[-1] == averaged.exported().fc.weight.sum().item()


def test_mismatch_is_found_before_the_first_step():
    method = Offline(network(classes=3), [network(classes=5)], [WeightedLoss("kd", KD(KD.Options()), 1.0)])
    before = copy.deepcopy(method.exported())
    with pytest.raises(MismatchError, match="disagree on classes: 3 and 5"):
        fit(method, batches(), settings=TrainSettings(epochs=1, **RUN), compute=CPU)
    assert equal(before, method.exported())


def test_teacher_is_untouched_and_connector_is_trained():
    method = distilled()
    teacher = copy.deepcopy(method.teachers[0])
    fit(method, batches(), settings=TrainSettings(epochs=1, **RUN), compute=CPU)
    assert equal(teacher, method.teachers[0])
    connector = method.losses[2].loss.connector
    assert connector.bias.abs().sum() > 0  # it starts at zero


def test_training_runs_in_bfloat16_when_asked():
    method = distilled()
    compute = ComputeSettings(device="cpu", precision="bfloat16")
    result = fit(method, batches(), settings=TrainSettings(epochs=2, **RUN), compute=compute)
    exact = fit(distilled(), batches(), settings=TrainSettings(epochs=2, **RUN), compute=CPU)
    assert {parameter.dtype for parameter in method.exported().parameters()} == {torch.float32}
    assert result.history[0].loss != exact.history[0].loss
    assert result.history[0].loss == pytest.approx(exact.history[0].loss, rel=0.05)


def test_hooks_see_every_step_and_switch_the_students_mode():
    fractions: list[float] = []
    modes: list[bool] = []

    def switch(module: nn.Module, training: bool) -> None:
        modes.append(training)
        module.train(training)

    hooks = Hooks(on_step=fractions.append, set_training=switch)
    fit(distilled(), batches(), settings=TrainSettings(epochs=2, **RUN), compute=CPU, evaluate=accuracy, hooks=hooks)
    assert fractions == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert modes == [True, False, True, False, False]


def test_exported_graph_is_trained_with_its_taps():
    student = network().eval()
    example = torch.randn(2, 1, 6, 6)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    graph = torch.export.export(Tapped(student, ["layer1"]), (example,), dynamic_shapes=dynamic).module()
    before = copy.deepcopy(dict(graph.named_parameters()))
    losses = [WeightedLoss("hint", Hint(Hint.Options(student_tap="layer1", teacher_tap="layer1")), 1.0)]
    method = Offline(TupleOutputs(graph, ["layer1"]), [network(8)], losses)
    hooks = Hooks(set_training=lambda module, training: None)  # the graph refuses train() and eval()
    result = fit(
        method, batches(), settings=TrainSettings(epochs=2, **RUN), compute=CPU, evaluate=accuracy, hooks=hooks
    )
    assert result.history[1].loss < result.history[0].loss
    assert not torch.equal(graph.get_parameter("model.stem.0.weight"), before["model.stem.0.weight"])


def test_layout_is_the_default_again_when_training_ends():
    method = distilled()
    fit(method, batches(), settings=TrainSettings(epochs=1, **RUN), compute=CPU)
    assert all(value.is_contiguous() for value in method.exported().state_dict().values())


class Viewing(nn.Module):
    """Counts on the default memory layout, as many a user's network does."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(64, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolution(inputs).view(inputs.shape[0], -1))


def test_network_that_views_its_maps_is_trained():
    result = fit(alone(Viewing()), batches(), settings=TrainSettings(epochs=4, **RUN), compute=CPU)
    assert result.history[-1].loss < result.history[0].loss


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_error_when_cuda_is_asked_and_not_here():
    with pytest.raises(BackendMissing, match="torch finds no CUDA device here"):
        fit(alone(), batches(), settings=TrainSettings(epochs=1, **RUN), compute=ComputeSettings(device="cuda"))


class Short:
    def __len__(self) -> int:
        return 5

    def epoch(self, epoch: int, *, start: int = 0, share: Share = Share()) -> Iterator[RawBatch]:  # noqa: B008
        return batches().epoch(epoch, start=start, share=share)


def test_error_when_batches_are_fewer_than_promised():
    with pytest.raises(UsageError, match="promised 5 batches an epoch and gave 3"):
        fit(alone(), Short(), settings=TrainSettings(epochs=1, **RUN), compute=CPU)


def test_best_epoch_is_told_and_the_last_weights_are_kept():
    values = iter([0.2, 0.9, 0.9, 0.1])
    method: Method = alone()
    result = fit(
        method, batches(), settings=TrainSettings(epochs=4, **RUN), compute=CPU, evaluate=lambda model: next(values)
    )
    assert result.best_epoch == 1
    unrated = alone()
    fit(unrated, batches(), settings=TrainSettings(epochs=4, **RUN), compute=CPU)
    assert equal(method.exported(), unrated.exported())


def test_best_weights_are_the_result_when_asked_for(tmp_path):
    """The epoch that validated best, with a stop and a resume after it, equals a training that is stopped there."""
    seen: list[dict[str, torch.Tensor]] = []

    def rated(model: nn.Module) -> float:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return [0.2, 0.9, 0.9, 0.1][len(seen) - 1]

    options = {"settings": TrainSettings(epochs=4, keep="best", **RUN), "compute": CPU, "evaluate": rated}
    first, method = alone(), alone()
    with pytest.raises(KeyboardInterrupt):
        fit(first, batches(), checkpoint=tmp_path / "c", hooks=interrupt_after(2), **options)
    result = fit(method, batches(), checkpoint=tmp_path / "c", **options)
    assert (result.best_epoch, result.kept, result.resumed_at) == (1, "best", 3)
    assert all(torch.equal(value, seen[1][name]) for name, value in method.exported().state_dict().items())
    assert any(not torch.equal(value, seen[3][name]) for name, value in method.exported().state_dict().items())


class Often:
    """Asks for a checkpoint after every step, and stops at one."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, tick: Tick) -> None:
        if tick.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("stop", [1, 4, 5, 8, 9])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_weights_are_bit_identical_when_stopped_in_the_middle_of_an_epoch(tmp_path, stop, ema_decay):
    """Three steps an epoch, three epochs; Ctrl-C in step `stop` writes the state after it."""
    settings = TrainSettings(epochs=3, ema_decay=ema_decay, **RUN)
    options = {"settings": settings, "compute": CPU, "seed": 5, "evaluate": accuracy}
    augment = AugmentSettings(crop=1, flip=True, mixup=0.2)
    whole = distilled()
    undisturbed = fit(whole, batches(augment=augment), **options)
    with pytest.raises(KeyboardInterrupt):
        fit(distilled(), batches(augment=augment), checkpoint=tmp_path / "c", progress=Often(stop), **options)
    torch.manual_seed(99)
    parts = distilled()
    resumed = fit(parts, batches(augment=augment), checkpoint=tmp_path / "c", **options)
    assert (resumed.resumed_at, resumed.resumed_step) == (stop // 3, stop)
    assert equal(whole, parts)
    assert told(undisturbed) == told(resumed)


def test_state_is_written_by_time_within_an_epoch(tmp_path):
    """A process that is killed between two writes loses what came after the last one, no more."""
    compute = ComputeSettings(device="cpu", checkpoint_seconds=1e-6)
    settings = TrainSettings(epochs=1, **RUN)

    def kill(tick: Tick) -> None:
        if tick.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(alone(), batches(), settings=settings, compute=compute, checkpoint=tmp_path / "c", progress=kill)
    parts, whole = alone(), alone()
    resumed = fit(parts, batches(), settings=settings, compute=compute, checkpoint=tmp_path / "c")
    assert resumed.resumed_step == 2
    fit(whole, batches(), settings=settings, compute=CPU)
    assert equal(parts, whole)


def test_second_ctrl_c_stops_at_once(tmp_path):
    steps: list[int] = []

    def impatient(tick: Tick) -> None:
        steps.append(tick.step)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        steps.append(-1)

    with pytest.raises(KeyboardInterrupt):
        fit(alone(), batches(), settings=TrainSettings(epochs=2, **RUN), compute=CPU, progress=impatient)
    assert steps == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("parts", [2, 3, 16, 100])
def test_batch_in_parts_has_the_gradient_of_the_whole(parts):
    """A network without batch statistics, and losses that look at samples one by one."""
    torch.manual_seed(1)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    histories = []
    for network_, count in zip(networks, (1, parts), strict=True):
        settings = TrainSettings(epochs=2, accumulate=count, **RUN)
        histories.append(fit(alone(network_), batches(), settings=settings, compute=CPU).history)
    for ours, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert histories[0][-1].loss == pytest.approx(histories[1][-1].loss, rel=1e-5)


def test_history_says_where_the_time_went():
    result = fit(alone(), batches(), settings=TrainSettings(epochs=2, **RUN), compute=CPU)
    assert result.profile is not None
    assert result.profile.steps == 6
    assert result.profile.images == 96
    assert {"data", "forward", "backward", "optimizer"} <= set(result.profile.seconds)
    assert sum(result.profile.seconds.values()) <= sum(record.seconds for record in result.history)


def test_error_when_halves_that_belong_together_would_be_cut():
    losses = [WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 1.0)]
    method = TwoViews(network(), [], [*losses, WeightedLoss("kd", KD(KD.Options()), 1.0)])
    settings = TrainSettings(epochs=1, accumulate=2, **RUN)
    with pytest.raises(UsageError, match=r"train\.accumulate = 2 cuts batches into parts.*Set it to 1"):
        fit(method, batches(sampling="two_views"), settings=settings, compute=CPU)
