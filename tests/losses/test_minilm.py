from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs, Step
from edgekd.losses.minilm import MiniLM, minilm


def made(**options: object) -> MiniLM:
    values: dict[str, object] = {"student_taps": ["s"], "teacher_taps": ["t"], "heads": 2}
    return MiniLM(MiniLM.Options.model_validate(values | options))


def outputs(**taps: Tensor) -> Outputs:
    return Outputs(torch.zeros(2, 2), taps)


def step(student: Outputs, teacher: Outputs) -> Step:
    return Step(student, (teacher,), torch.zeros(2, 2), torch.arange(2), epoch=0, progress=0.0)


def parts(width: int) -> list[Tensor]:
    """Queries, keys and values, (2, 5, width)."""
    return [torch.randn(2, 5, width) for _ in range(3)]


def test_value_worked_by_hand():
    # one sample, two tokens, one head of width 4. Teacher: q_0 . k_0 / sqrt(4) = 2 ln 3 / 2, all other scores 0, so its
    # attention is (3/4, 1/4) for token 0 and even for token 1; the student's is even; values are all equal
    teacher = torch.zeros(1, 2, 4)
    teacher[0, 0, 0] = 1.0
    keys = torch.zeros(1, 2, 4)
    keys[0, 0, 0] = 2 * math.log(3)
    even = torch.zeros(1, 2, 4)
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    value = minilm([even, even, even], [teacher, keys, even], heads=1)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("relations", [["qk", "vv"], ["qq", "kk", "vv"], ["kv"]])
def test_value_equals_the_loop_over_samples_heads_and_tokens(relations):
    student, teacher, heads = parts(4), parts(6), 2
    total = torch.zeros(())
    for left, right in relations:
        for b in range(2):
            for a in range(heads):
                rows = []
                for side in (student, teacher):
                    width = side[0].shape[2] // heads
                    x, y = (side["qkv".index(one)][b, :, a * width : (a + 1) * width] for one in (left, right))
                    rows.append((x @ y.T / width**0.5).softmax(-1))
                for token in range(5):
                    total += (rows[1][token] * (rows[1][token] / rows[0][token]).log()).sum() / (2 * heads * 5)
    torch.testing.assert_close(minilm(student, teacher, heads=heads, relations=relations), total)


def test_query_key_relation_is_the_networks_own_attention():
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    inputs = torch.randn(2, 5, 8)
    _, maps = attention(inputs, inputs, inputs, average_attn_weights=False)
    q, k, v = (inputs @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    even = torch.zeros(2, 5, 8)  # KL(maps || even) = ln 5 - entropy
    value = minilm([even, even, even], [q, k, v], heads=2, relations=["qk"])
    torch.testing.assert_close(value, (math.log(5) + (maps * maps.log()).sum(-1)).mean())


def test_values_of_a_self_relation_are_the_same_when_a_head_is_rotated():
    student, teacher = parts(4), parts(4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    turned = [one @ rotation for one in student]
    for relations in (["vv"], ["qk"], ["qq", "kk"]):
        torch.testing.assert_close(
            minilm(turned, teacher, heads=1, relations=relations),
            minilm(student, teacher, heads=1, relations=relations),
        )


def test_tap_that_holds_all_three_equals_three_taps():
    student, teacher = parts(4), parts(6)
    together = made()
    together.connect(outputs(s=torch.cat(student, -1)), outputs(t=torch.cat(teacher, -1)))
    value = together(step(outputs(s=torch.cat(student, -1)), outputs(t=torch.cat(teacher, -1))))
    torch.testing.assert_close(value, minilm(student, teacher, heads=2))
    apart = made(student_taps=["q", "k", "v"])
    ours = outputs(**dict(zip("qkv", student, strict=True)))
    assert apart.student_taps() == ("q", "k", "v")
    apart.connect(ours, outputs(t=torch.cat(teacher, -1)))
    torch.testing.assert_close(apart(step(ours, outputs(t=torch.cat(teacher, -1)))), value)


def test_value_falls_when_the_student_learns():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 5, 24)
    loss = made(relations=["qq", "kk", "vv"])
    loss.connect(outputs(s=student), outputs(t=teacher))
    optimizer = torch.optim.SGD([student], lr=2.0)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(step(outputs(s=student), outputs(t=teacher)))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 12), r"student taps of shape \(B, N, 3D\).*got \{'s': \(2, 12\)\}"),
        ((2, 5, 9), r"cannot split student tap 's' of shape \(2, 5, 9\) into 6 parts \(2 heads\)"),
        (
            (2, 6, 12),
            r"'s' of shape \(2, 6, 12\) and teacher tap 't' of shape \(2, 5, 24\): the numbers of tokens differ",
        ),
    ],
)
def test_error_names_taps_and_shapes_when_they_cannot_be_joined(shape, message):
    with pytest.raises(MismatchError, match=message):
        made().connect(outputs(s=torch.zeros(shape)), outputs(t=torch.zeros(2, 5, 24)))


def test_error_says_so_when_three_taps_differ_in_shape():
    taps = {"q": torch.zeros(2, 5, 8), "k": torch.zeros(2, 5, 8), "v": torch.zeros(2, 5, 4)}
    with pytest.raises(MismatchError, match=r"teacher taps of shape .* got \{'q': \(2, 5, 8\), .*'v': \(2, 5, 4\)\}"):
        made(teacher_taps=["q", "k", "v"]).connect(outputs(s=torch.zeros(2, 5, 12)), outputs(**taps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_taps": ["q", "k"]}, "student_taps must be one tap .* or three taps, got 2"),
        ({"teacher_taps": []}, "teacher_taps must be one tap .* or three taps, got 0"),
        ({"relations": ["vv", "vv"]}, "relations must not repeat"),
        ({"relations": ["xx"]}, "relations"),
        ({"relations": []}, "relations"),
        ({"heads": 0}, "heads"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        made(**options)
