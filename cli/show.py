"""`edgekd show`: what a run or an artifact is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli import options
from edgekd.cli.render import Outcome, facts, size, table

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.artifact import Artifact
    from edgekd.report import Report

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("show")(show)


def show(folder: options.Folder, as_json: options.AsJson = False) -> Outcome:
    """Show a run's results and artifacts, or one artifact's manifest.

    \b
    edgekd show runs/digits
    edgekd show runs/digits/student-1a2b3c4d
    """
    from edgekd.artifact import open_artifact

    if (folder / "manifest.json").exists():
        artifact = open_artifact(folder, verify=False)
        return Outcome(as_json, lambda: artifact.manifest.model_dump_json(indent=2), lambda: _artifact(artifact))
    from edgekd.cli.progress import watching

    with watching(quiet=True):
        from edgekd import pipeline

        report = pipeline.open_report(folder)
    from edgekd.report import render_terminal, to_json

    return Outcome(as_json, lambda: to_json(report), lambda: [_lineage(report), *render_terminal(report)])


def _artifact(artifact: Artifact) -> list[RenderableType]:
    manifest = artifact.manifest
    about = {"path": str(artifact.path), **manifest.model_dump(include={"kind", "stage", "id", "key", "seconds"})}
    parents = [(link.role, link.kind, link.id[:12]) for link in manifest.parents]
    files = [(name, (artifact.path / name), digest) for name, digest in sorted(manifest.files.items())]
    sizes = [
        (name, size(path.stat().st_size) if path.is_file() else "missing", code[:12]) for name, path, code in files
    ]
    interface = [
        (spec.name, way, spec.dtype, " x ".join(str(side) for side in spec.shape))
        for way, specs in (
            (("in", manifest.spec.inputs), ("out", manifest.spec.outputs)) if manifest.spec is not None else ()
        )
        for spec in specs
    ]
    shown: list[RenderableType] = [facts("Artifact", about), table("Files", ("file", "size", "SHA-256"), sizes)]
    if parents:
        shown.append(table("Made from", ("role", "kind", "id"), parents))
    if interface:
        shown.append(table("Interface", ("tensor", "way", "type", "shape"), interface))
    if manifest.metrics:
        shown.append(facts("Metrics", manifest.metrics))
    return [*shown, facts("Decided by", manifest.recipe)]


def _lineage(report: Report) -> RenderableType:
    names = {row.id: row.stage for row in report.lineage}
    rows = [
        (row.stage, row.kind, row.id[:12], ", ".join(names.get(parent, parent[:12]) for parent in row.parents))
        for row in report.lineage
    ]
    return table("Artifacts", ("stage", "kind", "id", "made from"), rows)
