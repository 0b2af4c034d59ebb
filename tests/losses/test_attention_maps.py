from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.attention_maps import AttentionMaps, attention_maps


def made(**options: object) -> AttentionMaps:
    return AttentionMaps(AttentionMaps.Options.model_validate({"student_taps": ["s"], "teacher_taps": ["t"]} | options))


def outputs(**taps: Tensor) -> Outputs:
    return Outputs(torch.zeros(4, 2), taps)


def random_maps(heads: int = 3) -> tuple[Tensor, Tensor]:
    """Probabilities of a student and a teacher, (2, heads, 4, 4)."""
    return torch.randn(2, heads, 4, 4).softmax(-1), torch.randn(2, heads, 4, 4).softmax(-1)


def test_values_worked_by_hand():
    student = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]])
    teacher = torch.tensor([[[[0.75, 0.25], [0.5, 0.5]]]])
    # differences 1/4, 1/4, 0, 0; rows' KL 3/4 ln(3/2) + 1/4 ln(1/2) and 0
    assert attention_maps(student, teacher).item() == pytest.approx(2 / 16 / 4)
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert attention_maps(student, teacher, distance="kl").item() == pytest.approx(expected, abs=1e-6)
    scores = torch.tensor([[[[math.log(3), 0.0], [7.0, 7.0]]]])  # softmax gives the teacher above
    value = attention_maps(torch.zeros(1, 1, 2, 2), scores, distance="kl", softmax=True)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_values_equal_the_loop_over_heads_and_rows(distance):
    student, teacher = random_maps()
    terms = []
    for b in range(2):
        for h in range(3):
            for row in range(4):
                s, t = student[b, h, row], teacher[b, h, row]
                terms.append((s - t).pow(2).mean() if distance == "mse" else (t * (t / s).log()).sum())
    torch.testing.assert_close(attention_maps(student, teacher, distance=distance), torch.stack(terms).mean())


@pytest.mark.parametrize("heads", ["match", "mean"])
@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_scores_and_their_probabilities_give_the_same(distance, heads):
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    scores = attention_maps(student, teacher, distance=distance, softmax=True, heads=heads)
    maps = attention_maps(student.softmax(-1), teacher.softmax(-1), distance=distance, heads=heads)
    torch.testing.assert_close(scores, maps)


def test_mean_over_heads_joins_different_numbers_of_heads():
    student, (teacher, _) = random_maps(2)[0], random_maps(6)
    value = attention_maps(student, teacher, heads="mean")
    torch.testing.assert_close(value, (student.mean(1) - teacher.mean(1)).pow(2).mean())
    same = attention_maps(student, student.repeat(1, 3, 1, 1), heads="mean", distance="kl")
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_order_of_heads_counts_only_when_they_are_matched():
    student, teacher = random_maps()
    turned = teacher.flip(1)
    assert attention_maps(student, turned) != attention_maps(student, teacher)
    torch.testing.assert_close(
        attention_maps(student, turned, heads="mean"), attention_maps(student, teacher, heads="mean")
    )


def test_kl_is_never_negative_and_zero_at_the_teacher():
    student, teacher = random_maps()
    assert attention_maps(student, teacher, distance="kl") > 0
    assert attention_maps(teacher, teacher, distance="kl").item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_kl_and_gradient_are_finite_when_probabilities_are_zero(dtype):
    student = torch.eye(4, dtype=dtype).expand(8, 4, 4, 4).clone().requires_grad_()
    value = attention_maps(student, torch.eye(4, dtype=dtype).flip(0).expand(8, 4, 4, 4), distance="kl")
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_value_falls_when_the_scores_learn():
    torch.manual_seed(0)
    scores, teacher = torch.zeros(2, 3, 4, 4, requires_grad=True), random_maps()[1].log()
    loss = made(softmax=True, distance="kl")
    loss.connect(outputs(s=scores), outputs(t=teacher))
    optimizer = torch.optim.SGD([scores], lr=10.0)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        both = (outputs(s=scores), (outputs(t=teacher),))
        value = loss(Step(*both, torch.zeros(4, 2), torch.arange(4), epoch=0, progress=0.0))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]


def test_pairs_add_up():
    ours = {f"b.{i}": random_maps()[0] for i in range(2)}
    theirs = {f"b.{i}": random_maps()[0] for i in range(4)}
    loss = made(
        student_taps=["b.{}"], teacher_taps=["b.{}"], student_layers=2, teacher_layers=4, layer_map="last"
    )  # fmt: skip
    loss.connect(outputs(**ours), outputs(**theirs))
    step = Step(outputs(**ours), (outputs(**theirs),), torch.zeros(4, 2), torch.arange(4), epoch=0, progress=0.0)
    expected = attention_maps(ours["b.0"], theirs["b.2"]) + attention_maps(ours["b.1"], theirs["b.3"])
    torch.testing.assert_close(loss(step), expected)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 5, 8), (2, 3, 5, 5), r"needs taps of shape \(B, h, N, N\), got student tap 's' of shape \(2, 5, 8\)"),
        ((2, 3, 5, 5), (2, 3, 6, 6), r"'t' of shape \(2, 3, 6, 6\): the numbers of tokens differ"),
        ((2, 3, 5, 5), (2, 6, 5, 5), r"3 and 6 heads\. Compare their means with heads = \"mean\""),
    ],
)
def test_error_names_both_taps_and_shapes_when_they_cannot_be_joined(student, teacher, message):
    with pytest.raises(MismatchError, match=message):
        made().connect(outputs(s=torch.zeros(student)), outputs(t=torch.zeros(teacher)))


def test_different_numbers_of_heads_are_taken_when_their_means_are_compared():
    made(heads="mean").connect(outputs(s=torch.zeros(2, 3, 5, 5)), outputs(t=torch.zeros(2, 6, 5, 5)))
