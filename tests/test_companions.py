"""What trained beside a student goes on with it when it is trained further."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgekd import pipeline
from edgekd.losses.cross_entropy import CrossEntropy
from edgekd.losses.hint import Hint
from edgekd.methods._base import WeightedLoss
from edgekd.methods.offline import Offline
from edgekd.models.tiny import Tiny
from edgekd.pipeline._training import COMPANIONS
from edgekd.recipe import parse_recipe
from edgekd.weights import read_weights

EXAMPLE = torch.zeros(2, 1, 8, 8)
RECIPE = {
    "name": "companions",
    "compute": {"device": "cpu", "threads": 1},
    "data": {"name": "synthetic", "classes": 4, "samples": 120, "test_samples": 40, "size": [8, 8]},
    "teacher": {"model": "tiny", "width": 6, "train": {"epochs": 1, "batch_size": 32, "lr": 0.02}},
    "student": {"model": "tiny", "width": 4},
    "distill": {
        "baseline": False,
        "losses": [
            {"name": "cross_entropy", "weight": 1.0},
            {"name": "hint", "weight": 10.0, "student_tap": "layer2", "teacher_tap": "layer2"},
        ],
        "train": {"epochs": 1, "batch_size": 32, "lr": 0.02},
    },
    "quantize": {"calibration_samples": 64, "epochs": 1},
}


def network(width: int) -> nn.Module:
    return Tiny(Tiny.Options(width=width)).build(4, (1, 8, 8))


def method(*, tap: str = "layer2", width: int = 6) -> Offline:
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 1.0),
        WeightedLoss("hint", Hint(Hint.Options(student_tap="layer2", teacher_tap=tap)), 1.0),
    ]
    made = Offline(network(4), [network(width)], losses)
    made.prepare(EXAMPLE)
    return made


def test_connectors_are_taken_over_and_the_student_is_not() -> None:
    first, second = method(), method()
    before = [one.clone() for one in second.student.parameters()]
    second.join(first.companions())
    for name, value in first.companions().items():
        assert torch.equal(second.companions()[name], value)
    assert all(torch.equal(ours, old) for ours, old in zip(second.student.parameters(), before, strict=True))
    assert all("student" not in name for name in first.companions())


def test_what_has_another_shape_starts_anew() -> None:
    first, second = method(), method(width=3)
    before = {name: value.clone() for name, value in second.companions().items()}
    second.join({**first.companions(), "nobody": torch.zeros(3)})
    assert torch.equal(
        second.companions()["connectors.hint.connector.weight"], before["connectors.hint.connector.weight"]
    )


def test_a_run_keeps_them_beside_the_student_and_int8_starts_from_them(tmp_path: Path) -> None:
    result = pipeline.run(parse_recipe(RECIPE), out=tmp_path / "run", until="quantize")
    [student] = result.out.glob("student-*")
    kept = read_weights(student / COMPANIONS)
    assert set(kept) == {"connectors.hint.connector.weight", "connectors.hint.connector.bias"}
    assert not any("connector" in name for name in read_weights(student / "model.safetensors"))
    [int8] = result.out.glob("int8-*")
    assert not (int8 / COMPANIONS).exists()
    # the first int8 epoch goes on where the float one ended, and not from a connector that knows nothing
    rows = {row.stage: row.terms["hint"] for row in result.report.curves if row.stage.startswith(("student", "int8"))}
    assert rows[f"int8-{int8.name.split('-')[1]}"] < 1.2 * rows["student"]
