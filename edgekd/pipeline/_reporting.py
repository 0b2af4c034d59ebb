"""From the artifacts of a run to its report: the ladder, paired differences, verdict and everything measured."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import edgekd
from edgekd._report_model import Outcome
from edgekd._report_sensitivity import mixed_sentences
from edgekd._sensitivity_model import MixedPrecision, Sensitivity
from edgekd.artifact import Artifact
from edgekd.evaluate import Paired, Predictions, accuracy, paired, rung
from edgekd.pipeline._bench_rows import int8_vs_float_rows, latency_rows, mobile_rows, operator_rows
from edgekd.pipeline._cost_rows import stage_row, training_costs
from edgekd.pipeline._mentors import wanted
from edgekd.pipeline._mixing import MIXED, SENSITIVITY
from edgekd.pipeline._quality import quality_of
from edgekd.pipeline._quantize_plan import plan_of
from edgekd.pipeline._run import Run
from edgekd.pipeline._shipping import FLOAT_STEM, INT8_STEM, pieces, predictions_name
from edgekd.pipeline._training import PREDICTIONS, WEIGHTS, history_of, predictions_of
from edgekd.recipe import BenchSettings
from edgekd.report import (
    Curve,
    Engine,
    Fusion,
    Lineage,
    ParityRow,
    Report,
    Rung,
    Verdict,
)

__all__ = ["assemble", "verdict_of"]


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
        latency=[row for target, bench in benches.items() for row in latency_rows(target, bench)],
        latency_samples={
            _label(name, target, benches): latency["samples_ms"]
            for target, bench in benches.items()
            for name, latency in bench["latency"].items()
        },
        int8_vs_float=[row for target, bench in benches.items() for row in int8_vs_float_rows(target, bench)],
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
        mobile=[row for target, bench in benches.items() for row in mobile_rows(target, bench)],
        operators=[row for target, bench in benches.items() for row in operator_rows(target, bench)],
        curves=[row for name, artifact in run.made.items() for row in _curves(name, artifact)],
        training=[row for name, artifact in run.made.items() for row in training_costs(name, artifact)],
        lineage=[_lineage(run, name, artifact) for name, artifact in run.made.items()],
        stages=[stage_row(run, time) for time in run.times],
        environment=run.environment,
        notes=_notes(run, targets),
    )
    return report.model_copy(update={"verdict": verdict_of(run.recipe.bench, report, benches)})


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


def _label(name: str, target: str, benches: dict[str, Any]) -> str:
    return name if len(benches) == 1 else f"{name} {target}"


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


def verdict_of(
    chosen: BenchSettings, report: Report, benches: dict[str, Any], *, rung: str = "onnx_int8"
) -> Verdict | None:
    """One answer from every gate: parity and fusion must hold, and the budget at the stated percentile."""
    if not report.parity and not report.latency:
        return None
    failures = [
        f"{row.target}: {row.file} agrees with its torch program on {row.top1_agreement:.3%} of {row.n} samples, at"
        f" least {row.min_agreement:.3%} is needed."
        for row in report.parity
        if row.min_agreement is not None and _differing(row) > max(1, int((1 - row.min_agreement) * row.n))
    ]
    failures += [
        f"{row.target}: {row.quantizable - row.int8} of {row.quantizable} quantizable operators stay float; first:"
        f" {row.float_islands[0].op} '{row.float_islands[0].name}': {row.float_islands[0].cause}"
        for row in report.fusion
        if row.coverage < 1.0
    ]
    rows = [row for row in report.latency if row.rung == rung]
    failures += [f"{row.target} on {row.device}: {row.reason}" for row in rows if row.verdict == "FAIL"]
    unsure = [f"{row.target} on {row.device}: {row.reason}" for row in rows if row.verdict == "INCONCLUSIVE"]
    if not rows:
        unsure.append("Latency was not measured for any target.")
    passed = [f"{row.target} on {row.device}: {row.reason}" for row in rows if row.verdict == "PASS"]
    overall: Outcome = "FAIL" if failures else "INCONCLUSIVE" if unsure else "PASS"
    worst = max(rows, key=lambda row: row.mean_ms, default=None)
    return Verdict(
        overall=overall,
        reasons=failures + unsure + passed,
        rung=rung if worst else None,
        target=worst.target if worst else None,
        device=worst.device if worst else None,
        budget_ms=chosen.budget_ms,
        percentile=chosen.percentile,
        confidence=chosen.confidence,
        measured_ms=_percentile_of(benches, worst.target, rung) if worst and worst.target else None,
    )


def _differing(row: ParityRow) -> int:
    """Samples whose class differs; a single one, two logits that tie, says nothing on a small split."""
    return round((1 - row.top1_agreement) * row.n)


def _percentile_of(benches: dict[str, Any], target: str, rung: str) -> float | None:
    value: float | None = benches[target]["latency"][rung]["percentile_ms"]
    return value
