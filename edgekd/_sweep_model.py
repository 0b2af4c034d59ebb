"""What a sweep found out: every combination with its seeds, ranked; the contract of sweep.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from edgekd._ladder import Paired
from edgekd._repeats import Repeats
from edgekd.spec import Frozen

__all__ = ["Sweep", "SweepRow"]


class _Record(Frozen):
    model_config = ConfigDict(allow_inf_nan=False)


class SweepRow(_Record):
    """One combination, or the student alone.

    Args:
        rank: 1 is the best on validation; None for the student alone and for a training that diverged.
        changes: keys of the recipe and their values.
        students: folders of its students, one for each seed; the first belongs to the recipe's seed.
        baseline: place in `baselines` of the same student alone, counted from 0; None for the student alone itself.
        val, test: accuracy over seeds, fractions.
        difference: validation accuracy minus that of the student alone, seed by seed.
        test_paired: the first seed's student against the one alone, on the same test samples.
        agreement: with the teacher on the test split, mean over seeds.
        failed: why there are no numbers.
    """

    rank: int | None = None
    changes: dict[str, Any] = Field(default_factory=dict)
    students: list[str] = Field(default_factory=list)
    baseline: int | None = None
    val: Repeats | None = None
    test: Repeats | None = None
    difference: Repeats | None = None
    test_paired: Paired | None = None
    agreement: float | None = None
    failed: str | None = None


class Sweep(_Record):
    """A grid over keys of a recipe, every combination trained and ranked; the contract of sweep.json.

    Args:
        schema_version: 1.
        name: of the recipe.
        created_utc: ISO 8601 time.
        edgekd_version: of the program that made it.
        recipe: resolved, before any change.
        grid: the values of every key.
        seeds: how many each combination was trained with.
        n_val, n_test: samples of the two splits.
        baselines: the student without a teacher; several if the grid changes how it is trained.
        rows: the combinations, the best on validation first, those that diverged last.
    """

    schema_version: Literal[1] = 1
    name: str
    created_utc: str
    edgekd_version: str
    recipe: dict[str, Any]
    grid: dict[str, list[Any]]
    seeds: int
    n_val: int
    n_test: int
    baselines: list[SweepRow]
    rows: list[SweepRow]
