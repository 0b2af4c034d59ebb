"""From the artifacts of a run to its report: the ladder, paired differences, verdict and everything measured."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import edgekd
from edgekd._report_sensitivity import mixed_sentences
from edgekd._sensitivity_model import MixedPrecision, Sensitivity
from edgekd.artifact import Artifact
from edgekd.evaluate import Paired, Predictions, accuracy, paired, rung
from edgekd.pipeline._bench_rows import bench_fields, bench_notes
from edgekd.pipeline._cost_rows import stage_row, training_costs
from edgekd.pipeline._mentors import wanted
from edgekd.pipeline._mixing import MIXED, SENSITIVITY
from edgekd.pipeline._quality import quality_of
from edgekd.pipeline._quantize_plan import plan_of
from edgekd.pipeline._run import Run
from edgekd.pipeline._shipping import FLOAT_STEM, INT8_STEM, pieces, predictions_name
from edgekd.pipeline._training import PREDICTIONS, WEIGHTS, history_of, predictions_of
from edgekd.pipeline._verdict import verdict_of
from edgekd.report import (
    Curve,
    Engine,
    Fusion,
    Lineage,
    ParityRow,
    Report,
    Rung,
)

__all__ = ["assemble"]


def assemble(run: Run, targets: Sequence[str]) -> Report:
    """The report of what this run has so far."""
    ladder = _ladder(run, targets)
    benches = {target: pieces(run.made[f"bench-{target}"]) for target in targets if f"bench-{target}" in run.made}
    exports = {target: run.made[f"export-{target}"] for target in targets if f"export-{target}" in run.made}
    mixtures = {target: run.made[f"mixed-{target}"] for target in targets if f"mixed-{target}" in run.made}
    report = Report(
        name=run.recipe.name,
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        edgekd_version=edgekd.__version__,
        recipe=run.recipe.resolved(),
        ladder=[entry for entry, _ in ladder],
        paired=_paired(ladder),
        distillation=quality_of(run.made["quality"]) if "quality" in run.made else None,
        fusion=[Fusion(**export.manifest.metrics["audit"]) for export in exports.values() if _audited(export)],
        sensitivity={
            target: Sensitivity.model_validate_json(made.file(SENSITIVITY).read_bytes())
            for target, made in mixtures.items()
        },
        mixed={
            target: MixedPrecision.model_validate_json(made.file(MIXED).read_bytes())
            for target, made in mixtures.items()
        },
        parity=[
            ParityRow(
                **row,
                min_agreement=run.recipe.export.min_agreement if row["file"].startswith(f"{INT8_STEM}.") else None,
            )
            for export in exports.values()
            for row in export.manifest.metrics["parity"]
        ],
        engines=[Engine(**row) for export in exports.values() for row in export.manifest.metrics["engines"]],
        curves=[row for name, artifact in run.made.items() for row in _curves(name, artifact)],
        training=[row for name, artifact in run.made.items() for row in training_costs(name, artifact)],
        lineage=[_lineage(run, name, artifact) for name, artifact in run.made.items()],
        stages=[stage_row(run, time) for time in run.times],
        environment=run.environment,
        notes=[
            *_notes(run, targets),
            *(f"{name}: {note}" for name, one in benches.items() for note in bench_notes(one)),
        ],
        **bench_fields(benches),
    )
    return report.model_copy(update={"verdict": verdict_of(run.recipe.bench, report)})


_Ladder = list[tuple[Rung, Predictions]]


def _ladder(run: Run, targets: Sequence[str]) -> _Ladder:
    # a teacher that was asked before the run may know nothing of the test split: then it is no rung
    there = [name for name in (*wanted(run), "student_alone", "student") if _predicts(run, name)]
    teacher = predictions_of(run.made["teacher"]) if "teacher" in there else None
    rows: _Ladder = []
    for name in there:
        rows.append(_float_rung(run, name, teacher))
    for target in targets:
        for name in ("int8_ptq", "int8", "mixed"):
            if (artifact := run.made.get(f"{name}-{target}")) is not None:
                rows.append(_row(name, predictions_of(artifact), teacher, artifact, target=target))
        if (export := run.made.get(f"export-{target}")) is not None:
            suffix = run.target(target).suffix
            for name, file in (("onnx_float", FLOAT_STEM + suffix), ("onnx_int8", INT8_STEM + suffix)):
                found = predictions_of(export, predictions_name(file))
                size = export.file(file).stat().st_size
                rows.append((rung(name, found, teacher=teacher, target=target, size_bytes=size), found))
    return rows


def _predicts(run: Run, name: str) -> bool:
    return name in run.made and PREDICTIONS in run.made[name].manifest.files


def _float_rung(run: Run, name: str, teacher: Predictions | None) -> tuple[Rung, Predictions]:
    repeats = [artifact for stage, artifact in run.made.items() if stage == name or stage.startswith(f"{name}-seed")]
    seeds = [accuracy(predictions_of(artifact)).value for artifact in repeats]
    own = predictions_of(run.made[name])
    return _row(
        name, own, None if name == "teacher" else teacher, run.made[name], seeds=seeds if len(seeds) > 1 else ()
    )


def _row(
    name: str,
    found: Predictions,
    teacher: Predictions | None,
    artifact: Artifact,
    *,
    target: str | None = None,
    seeds: Sequence[float] = (),
) -> tuple[Rung, Predictions]:
    entry = rung(
        name,
        found,
        teacher=teacher,
        target=target,
        # the file of an int8 program holds float weights and ranges: its size would mislead
        size_bytes=artifact.file(WEIGHTS).stat().st_size if artifact.manifest.kind == "checkpoint" else None,
        parameters=artifact.manifest.metrics.get("parameters"),
        seeds=seeds,
    )
    return entry, found


def _paired(ladder: _Ladder) -> list[Paired]:
    floats = {entry.rung: found for entry, found in ladder if entry.target is None}
    rows = []
    for name, found in floats.items():
        if name != "student" and "student" in floats:
            rows.append(paired((name, found), ("student", floats["student"])))
    for target in dict.fromkeys(entry.target for entry, _ in ladder if entry.target):
        own = {entry.rung: found for entry, found in ladder if entry.target == target} | {
            name: found for name, found in floats.items() if name == "student"
        }
        for a, b in (
            ("student", "int8_ptq"),
            ("student", "int8"),
            ("int8_ptq", "int8"),
            ("student", "mixed"),
            ("student", "onnx_int8"),
        ):
            if a in own and b in own:
                names = [name if name in floats else f"{name} {target}" for name in (a, b)]
                rows.append(paired((names[0], own[a]), (names[1], own[b])))
    return rows


def _curves(name: str, artifact: Artifact) -> list[Curve]:
    history = history_of(artifact)
    if history is None:
        return []
    return [
        Curve(
            stage=name,
            epoch=record.epoch + 1,
            terms={**{term: mean.weighted for term, mean in record.terms.items()}, "total": record.loss},
            val_accuracy=record.val,
            lr=record.lr,
            seconds=record.seconds,
        )
        for record in history.history
    ]


def _lineage(run: Run, name: str, artifact: Artifact) -> Lineage:
    return Lineage(
        stage=name,
        kind=artifact.manifest.kind,
        id=artifact.id,
        key=artifact.manifest.key,
        parents=[parent.id for parent in artifact.manifest.parents],
        path=artifact.path.relative_to(run.out).as_posix(),
    )


def _audited(export: Artifact) -> bool:
    return export.manifest.metrics["audit"] is not None


def _notes(run: Run, targets: Sequence[str]) -> list[str]:
    notes = []
    for target in targets:
        quantized = run.made.get(f"int8-{target}")
        if quantized is not None and quantized.manifest.metrics.get("kept") == "int8_ptq":
            notes.append(
                f"{target}: quantization-aware training scored below post-training quantization on validation, so"
                " int8 is the post-training model."
            )
        notes += [f"{target}: {line}" for line in _origin(run, target)]
        any_int8 = run.made.get(f"int8_ptq-{target}")
        if any_int8 is not None and any_int8.manifest.metrics.get("reduce_range"):
            notes.append(f"{target}: neighbouring weights share 8 bits (reduce_range): x86 without VNNI sums exactly.")
        if f"export-{target}" in run.made and f"bench-{target}" not in run.made:
            reason = run.target(target).absent_here()
            if reason:
                notes.append(f"{target}: latency was not measured; it {reason}.")
    return notes


def _origin(run: Run, target: str) -> list[str]:
    """Where weights and ranges of a target's int8 model come from, if not from a training of its own."""
    lines = []
    if (quantized := run.made.get(f"int8-{target}")) is not None:
        plan = plan_of(quantized)
        if plan.made_by == "re-emitted":
            here = quantized.manifest.metrics.get("calibrated_here", [])
            more = f"; calibrated here is what only this target quantizes ({', '.join(here)})" if here else ""
            lines.append(f"re-emitted from the codes that were trained for {plan.made_for}{more}.")
        if plan.made_by == "re-calibrated":
            lines.append(f"the weights were trained for {plan.made_for}, the ranges calibrated here.")
    if (placement := run.made.get(f"placement-{target}")) is not None:
        metrics = placement.manifest.metrics
        lines.append(f"placement search chose '{metrics['chosen']}'. {' '.join(metrics['notes'])}".rstrip())
    if (mixed := run.made.get(f"mixed-{target}")) is not None:
        found = MixedPrecision.model_validate_json(mixed.file(MIXED).read_bytes())
        lines += [line.removeprefix(f"{target}: ") for line in mixed_sentences({target: found})]
    return lines
