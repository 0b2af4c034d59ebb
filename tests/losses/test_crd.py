from __future__ import annotations

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from edgekd.errors import MismatchError, UsageError
from edgekd.losses import crd as module
from edgekd.losses._base import Outputs, Split, Step
from edgekd.losses._relations import unit
from edgekd.losses.crd import CRD, crd

SIZE, CLASSES = 40, 4
LABELS = torch.arange(SIZE) % CLASSES


def outputs(tap: str, values: torch.Tensor) -> Outputs:
    return Outputs(torch.zeros(len(values), CLASSES), {tap: values})


def step(ids: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor, epoch: int = 0) -> Step:
    return Step(outputs("s", student), (outputs("t", teacher),), torch.zeros(len(ids), CLASSES), ids, epoch, epoch / 10)


def made(labels: torch.Tensor = LABELS, **options: object) -> CRD:
    torch.manual_seed(0)
    loss = CRD(CRD.Options(student_tap="s", teacher_tap="t", **{"dim": 8, "negatives": 16, **options}))
    loss.split = Split(labels, CLASSES)
    loss.connect(outputs("s", torch.zeros(2, 6)), outputs("t", torch.zeros(2, 5)))
    return loss


def batch(*ids: int, epoch: int = 0) -> Step:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(SIZE, 6, generator=generator), torch.randn(SIZE, 5, generator=generator)
    return step(torch.tensor(ids), student[list(ids)], teacher[list(ids)], epoch)


def test_value_worked_by_hand_with_two_negatives():
    # e^g = 3 for the pair, 1 and 2 for the negatives; N = 2, size 4, Z = 1: N / size = 1/2
    # -ln(3 / 3.5) - ln(0.5 / 1.5) - ln(0.5 / 2.5)
    similar, others = torch.tensor([3.0]).log(), torch.tensor([[1.0, 2.0]]).log()
    expected = -math.log(3 / 3.5) - math.log(1 / 3) - math.log(1 / 5)
    assert crd(similar, others, size=4).item() == pytest.approx(expected, abs=1e-6)
    # Z = 2 halves e^g: 1.5, 0.5 and 1
    expected = -math.log(1.5 / 2) - math.log(0.5 / 1) - math.log(0.5 / 1.5)
    assert crd(similar, others, size=4, log_z=math.log(2)).item() == pytest.approx(expected, abs=1e-6)


def test_value_is_a_mean_over_the_batch_and_finite_when_the_temperature_is_tiny():
    similar, others = torch.randn(5), torch.randn(5, 7)
    rows = torch.stack([crd(similar[i : i + 1], others[i : i + 1], size=9) for i in range(5)])
    torch.testing.assert_close(crd(similar, others, size=9), rows.mean())
    assert crd(1e4 * similar, 1e4 * others, size=9).isfinite()


def test_step_equals_the_loop_over_samples_and_negatives():
    loss, given = made(), batch(3, 11, 20)
    with torch.no_grad():
        ours = unit(loss.student_head(given.student.taps["s"]))
        theirs = unit(loss.teacher_head(given.teacher.taps["t"]))
    chosen = loss._others.draw(given.ids, 16, seed=int(loss.draws), epoch=0)
    total = 0.0
    for anchors, partners, memory in (
        (ours, theirs, loss.teacher_memory.clone()),
        (theirs, ours, loss.student_memory.clone()),
    ):
        scores = [
            [math.exp(float(a @ p) / 0.07)] + [math.exp(float(a @ memory[row]) / 0.07) for row in rows]
            for a, p, rows in zip(anchors, partners, chosen, strict=True)
        ]
        z = SIZE * sum(map(sum, scores)) / (3 * 17)
        for row in scores:
            beliefs = [score / z / (score / z + 16 / SIZE) for score in row]
            total -= (math.log(beliefs[0]) + sum(math.log(1 - h) for h in beliefs[1:])) / 3
    assert loss(given).item() == pytest.approx(total, rel=1e-4)


def test_negatives_are_of_other_classes_and_depend_on_id_and_epoch_only():
    others, ids = made()._others, torch.tensor([5, 0, 33])
    drawn = others.draw(ids, 4000, seed=1, epoch=2)
    assert (LABELS[drawn] != LABELS[ids][:, None]).all()
    shares = torch.bincount(drawn[0], minlength=SIZE)[LABELS != 5 % CLASSES] / 4000
    assert (shares - 1 / 30).abs().max() < 0.015  # 5 standard deviations
    assert others.draw(ids.flip(0), 4000, seed=1, epoch=2).equal(drawn.flip(0))
    assert not others.draw(ids, 4000, seed=1, epoch=3).equal(drawn)
    assert not others.draw(ids, 4000, seed=2, epoch=2).equal(drawn)


def test_negatives_are_found_when_classes_are_uneven_or_missing():
    labels = torch.tensor([2, 2, 0, 2, 3, 2])
    drawn = made(labels)._others.draw(torch.arange(6), 200, seed=0, epoch=0)
    for i, row in enumerate(drawn):
        assert set(row.tolist()) == {j for j in range(6) if labels[j] != labels[i]}


def test_memory_takes_the_batch_in_with_momentum_after_the_loss_and_in_training_only():
    loss, given = made(momentum=0.75), batch(3, 11)
    before = loss.student_memory.clone()
    loss.eval()
    quiet = loss(given)
    assert loss.student_memory.equal(before)
    assert loss.log_z.isnan().all()
    loss.train()
    torch.testing.assert_close(loss(given), quiet)
    fresh = unit(loss.student_head(given.student.taps["s"])).detach()
    torch.testing.assert_close(loss.student_memory[[3, 11]], unit(0.75 * before[[3, 11]] + 0.25 * fresh))
    untouched = torch.tensor([i for i in range(SIZE) if i not in (3, 11)])
    assert loss.student_memory[untouched].equal(before[untouched])
    torch.testing.assert_close(loss.teacher_memory.norm(dim=1), torch.ones(SIZE))


def test_z_is_estimated_once():
    loss = made()
    loss(batch(1, 2, 3))
    first = loss.log_z.clone()
    loss(batch(7, 8))
    assert first.isfinite().all()
    assert loss.log_z.equal(first)


def test_run_goes_on_bit_for_bit_from_a_state_dict():
    loss = made()
    loss(batch(1, 2, 3))
    torch.manual_seed(99)
    again = CRD(loss.options)
    again.split = loss.split
    again.connect(outputs("s", torch.zeros(2, 6)), outputs("t", torch.zeros(2, 5)))
    again.load_state_dict(loss.state_dict())
    for given in (batch(4, 5, epoch=1), batch(1, 6, epoch=2)):
        assert loss(given).equal(again(given))
    assert loss.student_memory.equal(again.student_memory)


def test_other_process_is_remembered_and_counts_in_z(monkeypatch):
    """Two processes with half a batch each end with the state of one process with all of it."""
    whole, half = batch(1, 2, 3, 4), [batch(1, 2), batch(3, 4)]
    alone, ranks = made(), [made(), made()]
    alone(whole)
    sent: list[list[torch.Tensor]] = []
    for rank in range(2):  # what each sends, in its order; nothing of the first step depends on what comes back
        sent.append([])
        monkeypatch.setattr(module, "gathered", lambda values, rank=rank: sent[rank].append(values) or values)
        copy.deepcopy(ranks[rank])(half[rank])
    for rank in range(2):
        rows = zip(*sent, strict=True)
        monkeypatch.setattr(module, "gathered", lambda values, rows=rows: torch.cat(next(rows)))
        ranks[rank](half[rank])
        torch.testing.assert_close(ranks[rank].log_z, alone.log_z)
        torch.testing.assert_close(ranks[rank].student_memory, alone.student_memory)
        torch.testing.assert_close(ranks[rank].teacher_memory, alone.teacher_memory)


def test_both_heads_and_the_student_learn_and_the_teacher_does_not():
    loss = made(tau=0.2)
    student, teacher = torch.randn(SIZE, 6, requires_grad=True), torch.randn(SIZE, 5, requires_grad=True)
    optimizer = torch.optim.SGD([student, *loss.parameters()], lr=0.1)
    values = []
    for epoch in range(25):
        value = loss(step(torch.arange(SIZE), student, teacher, epoch))
        optimizer.zero_grad()
        value.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in (student, *loss.parameters()))
        optimizer.step()
        values.append(value.item())
    assert teacher.grad is None
    assert values[-1] < 0.8 * values[0]


def test_backward_works_after_the_memories_have_changed():
    loss = made()
    values = [loss(batch(1, 2)), loss(batch(2, 3))]
    sum(values).backward()
    assert loss.student_head.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (None, "split, which is not known here"),
        (Split(torch.tensor([0, 1, -1]), 2), "samples without a label"),
        (Split(torch.zeros(3, dtype=torch.int64), 2), "one class only"),
    ],
)
def test_error_when_there_are_no_other_classes_to_draw_from(split, message):
    loss = CRD(CRD.Options(student_tap="s", teacher_tap="t"))
    loss.split = split
    with pytest.raises(UsageError, match=message):
        loss.connect(outputs("s", torch.zeros(2, 6)), outputs("t", torch.zeros(2, 5)))


def test_error_names_both_taps_when_one_is_no_embedding():
    loss = CRD(CRD.Options(student_tap="s", teacher_tap="t"))
    loss.split = Split(LABELS, CLASSES)
    with pytest.raises(MismatchError, match=r"crd needs .* student 's' has \(2, 6\), teacher 't' has \(2,\)"):
        loss.connect(outputs("s", torch.zeros(2, 6)), outputs("t", torch.zeros(2)))


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"momentum": 1.0}, {"negatives": 0}, {"dim": 1}])
def test_options_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        CRD.Options(student_tap="s", teacher_tap="t", **options)
