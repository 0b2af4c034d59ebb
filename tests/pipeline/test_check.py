"""pipeline.check: says what a run would do, and does none of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.conftest import TARGET

from edgekd import pipeline
from edgekd.models.tiny import Tiny
from edgekd.recipe import Recipe


def parameters(width: int) -> int:
    network = Tiny(Tiny.Options(width=width)).build(4, (1, 8, 8))
    return sum(parameter.numel() for parameter in network.parameters())


def test_plan_counts_what_a_run_would_use(small_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    plan = pipeline.check(small_recipe(), out=tmp_path / "out")
    assert plan["name"] == "small"
    # a tenth of 240 is kept for validation
    assert plan["data"] == {"train": 216, "val": 24, "test": 80, "classes": 4, "input": [1, 8, 8]}
    assert plan["parameters"] == {"teacher": parameters(6), "student": parameters(4)}
    assert plan["device"] == "cpu"
    assert plan["targets"][TARGET]["missing"] is None
    # a tenth of three epochs, rounded up, at a hundredth of the rate
    assert plan["quantization_aware_training"]["epochs"] == 1
    assert plan["quantization_aware_training"]["lr"] == 0.02 / 100


def test_plan_of_post_training_quantization_has_no_training(small_recipe: Callable[..., Recipe]) -> None:
    assert pipeline.check(small_recipe({"quantize": {"mode": "ptq"}}))["quantization_aware_training"] is None


def test_check_writes_nothing(small_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    pipeline.check(small_recipe(), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_stages_of_the_plan_are_those_of_the_run(
    finished: pipeline.RunResult, small_recipe: Callable[..., Recipe]
) -> None:
    from edgekd.pipeline._planned import planned

    assert list(planned(small_recipe(), "report")) == [stage.stage for stage in finished.report.stages]
