"""Rows of the report about what stages and trainings cost: time, memory, and where the time of a step went."""

from __future__ import annotations

from edgekd._step_clock import together
from edgekd.artifact import Artifact
from edgekd.pipeline._run import Run, StageTime
from edgekd.pipeline._training import history_of
from edgekd.report import Stage, TrainingCost

__all__ = ["stage_row", "training_costs"]


def training_costs(name: str, artifact: Artifact) -> list[TrainingCost]:
    """What the training of a stage cost; nothing for a stage that trained nothing."""
    history = history_of(artifact)
    if history is None:
        return []
    profile = together(record.profile for record in history.history)
    parts = {name: 1000 * seconds / profile.steps for name, seconds in profile.seconds.items()} if profile else {}
    memory = _memory(artifact)
    return [
        TrainingCost(
            stage=name,
            epochs=len(history.history),
            steps=history.steps,
            seconds=sum(record.seconds for record in history.history),
            timed_steps=profile.steps if profile else 0,
            images_per_s=profile.images_per_s if profile else None,
            step_ms=sum(parts.values()) if profile else None,
            parts_ms=parts,
            peak_memory_mib=memory[0],
            gpu_memory_mib=memory[1],
            resumed_step=history.resumed_step or None,
            compiled=history.compiled.kept if history.compiled else None,
            compile_reason=history.compiled.reason if history.compiled else None,
        )
    ]


def stage_row(run: Run, time: StageTime) -> Stage:
    """Time and memory of a stage; of one that was there already, those of when it was made."""
    made = run.made.get(time.stage)  # the teacher's cache is no artifact of the run
    memory = (None, None) if made is None else _memory(made)
    return Stage(
        stage=time.stage,
        seconds=round(time.seconds, 2),
        cached=time.cached,
        peak_memory_mib=memory[0],
        gpu_memory_mib=memory[1],
    )


def _memory(artifact: Artifact) -> tuple[float | None, float | None]:
    """What a stage needed when it was made: resident and of a GPU, MiB, as far as that is known."""
    metrics = artifact.manifest.metrics
    return metrics.get("peak_memory_mib"), metrics.get("gpu_memory_mib")
