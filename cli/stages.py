"""`edgekd run` and its single stages: train, distill, export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.cli import bundle_options, options
from edgekd.cli.render import Outcome, facts
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import typer

    from edgekd.pipeline import Combination, RunResult, Stage
    from edgekd.recipe import Recipe

__all__ = ["DETAILS", "STAGES", "carry_out", "register", "show_plan"]

STAGES: dict[str, tuple[Stage, str]] = {
    "run": ("report", "Do everything that a recipe asks for."),
    "train": ("train", "Train the teacher, or take it from its weights."),
    "distill": ("distill", "Train the student, with the teacher and alone."),
    "export": ("export", "Write ONNX files and engines, checked against torch."),
}
DETAILS = """Stages whose result is there are skipped, so a command that was stopped goes on where it was.

\b
edgekd {verb} recipe.toml
edgekd {verb} recipe.toml --set seed=1 --out runs/second
"""


SWEEP_EXAMPLE = "edgekd distill recipe.toml --sweep distill.losses.1.tau=1,2,4\n"
BUNDLE_EXAMPLE = "edgekd export recipe.toml --bundle digits.zip\n"


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    own: dict[str, tuple[str, Callable[..., Outcome]]] = {
        "distill": (SWEEP_EXAMPLE, _distill),
        "export": (BUNDLE_EXAMPLE, _export),
    }
    for verb, (until, summary) in STAGES.items():
        more, command = own.get(verb) or ("", _verb(until))
        app.command(verb, help=f"{summary}\n\n{DETAILS.format(verb=verb)}{more}")(command)


def _verb(until: Stage) -> Callable[..., Outcome]:
    def verb(
        recipe: options.RecipeFile,
        set_values: options.SetValues = None,
        out: options.OptionalOut = None,
        check: options.Check = False,
        overwrite: options.Overwrite = False,
        as_json: options.AsJson = False,
        quiet: options.Quiet = False,
    ) -> Outcome:
        if check:
            return show_plan(recipe, set_values or [], out, as_json=as_json, quiet=quiet)
        return carry_out(recipe, set_values or [], until, out=out, overwrite=overwrite, as_json=as_json, quiet=quiet)

    return verb


def _export(
    recipe: options.RecipeFile,
    set_values: options.SetValues = None,
    bundle: bundle_options.BundleOption = None,
    out: options.OptionalOut = None,
    check: options.Check = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    done = _verb("export")(recipe, set_values, out, check, overwrite, as_json, quiet)
    if bundle is None or check:
        return done
    from edgekd import pipeline

    written = pipeline.pack(out or _default_out(_load(recipe, set_values or [])), bundle, overwrite=overwrite)
    told = f"Bundle: {bundle}, {len(written.files)} files"
    return replace(done, shown=lambda: [*done.shown(), told])


def _distill(
    recipe: options.RecipeFile,
    set_values: options.SetValues = None,
    sweep: options.SweepValues = None,
    max_combinations: options.MaxCombinations = None,
    out: options.OptionalOut = None,
    check: options.Check = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    if not sweep:
        if max_combinations is not None:
            raise UsageError("--max-combinations belongs to --sweep, which was not given.")
        verb = _verb("distill")
        return verb(recipe, set_values, out, check, overwrite, as_json, quiet)
    asked = _Sweep(recipe, set_values or [], sweep, max_combinations, out)
    if check:
        return asked.shown(as_json=as_json, quiet=quiet)
    return asked.carried_out(overwrite=overwrite, as_json=as_json, quiet=quiet)


@dataclass(frozen=True)
class _Sweep:
    """A sweep as the command line asks for it."""

    path: Path
    overrides: list[str]
    texts: list[str]
    most: int | None
    out: Path | None

    def carried_out(self, *, overwrite: bool, as_json: bool, quiet: bool) -> Outcome:
        """Train every combination, showing progress; the ranking is the result."""
        from edgekd.cli.progress import watching

        with watching(quiet=quiet) as watcher:
            from edgekd import pipeline
            from edgekd.pipeline._planned import planned_sweep

            recipe = _load(self.path, self.overrides)
            chosen = self._chosen(recipe)
            watcher.plan(planned_sweep([one.recipe for one in chosen]))
            out = self.out or _default_out(recipe)
            result = pipeline.sweep(
                recipe, chosen, out=out, recipe_file=self.path, overwrite=overwrite, watcher=watcher
            )
        from edgekd.report import render_sweep_terminal, sweep_to_json

        return Outcome(
            as_json,
            lambda: sweep_to_json(result.found),
            lambda: [*render_sweep_terminal(result.found), f"Sweep: {result.out / 'sweep.md'}"],
        )

    def shown(self, *, as_json: bool, quiet: bool) -> Outcome:
        """Check every combination and show what would be trained."""
        import json

        from edgekd.cli.progress import watching

        with watching(quiet=quiet):
            from edgekd import pipeline

            recipe = _load(self.path, self.overrides)
            plan: dict[str, Any] = pipeline.check_sweep(recipe, self._chosen(recipe), recipe_file=self.path)
        return Outcome(as_json, lambda: json.dumps(plan, indent=2), lambda: [facts("Plan", plan)])

    def _chosen(self, recipe: Recipe) -> list[Combination]:
        from edgekd import pipeline

        grid = pipeline.read_grid(self.texts)
        most = pipeline.MOST if self.most is None else self.most
        return pipeline.combinations(recipe, grid, recipe_file=self.path, most=most)


def carry_out(
    path: Path,
    overrides: list[str],
    until: Stage,
    *,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    finish: Callable[[RunResult], RunResult] | None = None,
) -> Outcome:
    """Run a recipe up to a stage, showing progress; its report, as `finish` leaves it, is the result."""
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd import pipeline
        from edgekd.pipeline._planned import planned

        recipe = _load(path, overrides)
        watcher.plan(planned(recipe, until))
        result = pipeline.run(
            recipe,
            out=out or _default_out(recipe),
            recipe_file=path,
            until=until,
            overwrite=overwrite,
            watcher=watcher,
        )
        result = result if finish is None else finish(result)
    from edgekd.report import render_terminal, to_json

    return Outcome(
        as_json,
        lambda: to_json(result.report),
        lambda: [*render_terminal(result.report), f"Report: {result.out / 'report.html'}"],
        result.exit_code,
    )


def show_plan(path: Path, overrides: list[str], out: Path | None, *, as_json: bool, quiet: bool) -> Outcome:
    """Check a recipe and show what would be done."""
    import json

    from edgekd.cli.progress import watching

    with watching(quiet=quiet):
        from edgekd import pipeline

        recipe = _load(path, overrides)
        plan: dict[str, Any] = pipeline.check(recipe, recipe_file=path, out=out or _default_out(recipe))
    return Outcome(as_json, lambda: json.dumps(plan, indent=2), lambda: [facts("Plan", plan)])


def _load(path: Path, overrides: list[str]) -> Recipe:
    from edgekd.recipe import load_recipe

    return load_recipe(path, overrides)


def _default_out(recipe: Recipe) -> Path:
    return Path("runs") / recipe.name
