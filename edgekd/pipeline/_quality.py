"""The quality stage: how close the students came to those they learned from, and how honest their probabilities are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd._compute import threads
from edgekd.artifact import Artifact, Draft
from edgekd.batches import calibration_ids, evaluation_batches
from edgekd.distillation_quality import (
    CkaSums,
    Distillation,
    Fidelity,
    LayerSimilarity,
    StudentQuality,
    agreement_floor,
    calibration,
    gram,
    mean_kl,
)
from edgekd.errors import UsageError
from edgekd.evaluate import Predictions, accuracy, agreement, kl_to, paired, predict
from edgekd.losses._base import Outputs
from edgekd.methods._observe import observe_frozen
from edgekd.pipeline._mentors import Mentor, parents_of
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import PREDICTIONS, network_of, networks_of, predictions_of, weighted_losses
from edgekd.taps import logits_of, tapped

__all__ = ["QUALITY", "quality_of", "quality_stage"]

QUALITY = "quality.json"
_SAMPLES, _BATCH = 10_000, 256
_LOGITS = "logits"
_STUDENT = re.compile(r"student(_alone)?(-seed\d+)?")

Pair = tuple[str, str]
"""A tap of the student and one of a teacher; two empty names are the logits."""


def quality_stage(run: Run, mentors: Sequence[Mentor]) -> Artifact:
    """Measure every float student of this run against everyone it could learn from.

    Args:
        run: its students are made.
        mentors: teachers and assistants.
    """
    students = {name: run.made[name] for name in _students(run.made)}
    pairs = _pairs(run, len(mentors))
    settings = {
        "samples": _SAMPLES,
        "batch": _BATCH,
        "seed": run.recipe.seed,
        "pairs": pairs,
        "device": run.device.type,
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        with threads(run.recipe.compute.threads):
            found = _measured(run, mentors, students, pairs)
        (draft.folder / QUALITY).write_text(found.model_dump_json(indent=1), encoding="utf-8")

    parents = {**parents_of(mentors), **students}
    return run.stage("quality", kind="quality", settings=settings, parents=parents, make=make)


def quality_of(artifact: Artifact) -> Distillation:
    """What is kept in a quality artifact."""
    return Distillation.model_validate_json(artifact.file(QUALITY).read_bytes())


def _students(made: Mapping[str, Artifact]) -> list[str]:
    """The stages of float students, distilled ones first."""
    found = [name for name in made if _STUDENT.fullmatch(name)]
    return sorted(found, key=lambda name: name.startswith("student_alone"))


def _pairs(run: Run, teachers: int) -> list[list[Pair]]:
    """For each teacher the taps that the losses compare, in order; a method without a teacher compares peers."""
    found: list[list[Pair]] = [[] for _ in range(teachers)]
    member, _ = run._load("methods", run.recipe.distill.method)
    if not member.needs_teacher:
        return found
    for term in weighted_losses(run, run.recipe.distill.losses):
        ours, theirs = term.loss.student_taps(), term.loss.teacher_taps()
        if len(ours) != len(theirs):  # no layer of one side belongs to one of the other
            continue
        for own, named in zip(ours, theirs, strict=True):
            number, _, other = named.rpartition(":")
            index = int(number) - 1 if number.isdigit() else 0
            if index < teachers and (own, other) not in found[index]:
                found[index].append((own, other))
    return found


def _measured(
    run: Run, mentors: Sequence[Mentor], students: Mapping[str, Artifact], pairs: Sequence[Sequence[Pair]]
) -> Distillation:
    networks = {name: network_of(run, run.recipe.student, one).to(run.device) for name, one in students.items()}
    test = {name: predictions_of(one) for name, one in students.items()}
    seen = _on_training_data(run, networks, [one.to(run.device) for one in networks_of(run, mentors)], pairs)
    alone = {name: one for name, one in test.items() if name.startswith("student_alone")}
    return Distillation(
        n_train=min(_SAMPLES, len(run.data.train)),
        n_test=len(run.data.test),
        floor=agreement_floor(alone, {name: one for name, one in test.items() if name not in alone}),
        students=[
            StudentQuality(
                student=name,
                accuracy=accuracy(test[name]).value,
                parameters=students[name].manifest.metrics.get("parameters"),
                calibration=calibration(_validated(run, networks[name]), test[name]),
                teachers=[
                    _fidelity(mentor, (name, test[name]), seen[name, index]) for index, mentor in enumerate(mentors)
                ],
            )
            for name in students
        ],
    )


@dataclass
class _Seen:
    """A student and a teacher on the same training samples."""

    student: list[NDArray[np.float32]] = field(default_factory=list)
    teacher: list[NDArray[np.float32]] = field(default_factory=list)
    layers: dict[Pair, CkaSums] = field(default_factory=dict)


def _on_training_data(
    run: Run, students: Mapping[str, nn.Module], teachers: Sequence[nn.Module], pairs: Sequence[Sequence[Pair]]
) -> dict[tuple[str, int], _Seen]:
    """Every student and every teacher once over the same samples, by the student's name and the teacher's number."""
    there = [
        [pair for pair in wanted if _has(teacher, pair[1]) and all(_has(one, pair[0]) for one in students.values())]
        for teacher, wanted in zip(teachers, pairs, strict=True)
    ]
    ours = {name: tapped(one, [own for wanted in there for own, _ in wanted]) for name, one in students.items()}
    theirs = [tapped(one, [tap for _, tap in wanted]) for one, wanted in zip(teachers, there, strict=True)]
    ids = calibration_ids(run.data.train, _SAMPLES, seed=run.recipe.seed)
    seen = {(name, index): _Seen() for name in students for index in range(len(teachers))}
    done = 0
    for batch in evaluation_batches(
        run.data.train, run.data.preprocessing, batch_size=_BATCH, device=run.device, ids=ids
    ):
        # the last batch may be too small for a fair share of the similarity
        whole = len(batch.ids) == min(_BATCH, len(ids)) >= 4
        given = [_Features(observe_frozen(one, batch.inputs, batch.ids)) for one in theirs]
        for name, network in ours.items():
            own = _Features(observe_frozen(network, batch.inputs))
            for index, other in enumerate(given):
                _add(seen[name, index], own, other, [("", ""), *there[index]] if whole else [])
        done += len(batch.ids)
        run.watcher.progress(done, len(ids), "training samples")
    return seen


class _Features:
    """Outputs of one network for one batch; the Gram matrix of each layer is made once."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs
        self._grams: dict[str, NDArray[np.float64]] = {}
        self.logits = _array(outputs.logits)

    def gram(self, name: str) -> NDArray[np.float64]:
        """Of a tap, or of the logits for an empty name."""
        if name not in self._grams:
            self._grams[name] = gram(_array(self._outputs.taps[name]) if name else self.logits)
        return self._grams[name]


def _add(seen: _Seen, student: _Features, teacher: _Features, pairs: Sequence[Pair]) -> None:
    seen.student.append(student.logits)
    seen.teacher.append(teacher.logits)
    for pair in pairs:
        seen.layers.setdefault(pair, CkaSums()).add(student.gram(pair[0]), teacher.gram(pair[1]))


def _fidelity(mentor: Mentor, student: tuple[str, Predictions], seen: _Seen) -> Fidelity:
    found = Fidelity(
        teacher=mentor.role,
        teacher_parameters=mentor.artifact.manifest.metrics.get("parameters"),
        kl_train=mean_kl(np.concatenate(seen.teacher), np.concatenate(seen.student)),
        layers=[
            LayerSimilarity(student_layer=own or _LOGITS, teacher_layer=other or _LOGITS, cka=sums.value)
            for (own, other), sums in seen.layers.items()
        ],
    )
    if PREDICTIONS not in mentor.artifact.manifest.files:
        return found
    teacher = predictions_of(mentor.artifact)
    same = agreement(teacher, student[1])
    return found.model_copy(
        update={
            "agreement": same.value,
            "agreement_ci95": same.ci95,
            "kl_test": kl_to(teacher, student[1]),
            "teacher_accuracy": accuracy(teacher).value,
            "gap": paired(student, (mentor.role, teacher)),
        }
    )


def _validated(run: Run, network: nn.Module) -> Predictions:
    batches = evaluation_batches(run.data.val, run.data.preprocessing, device=run.device)
    return predict(lambda inputs: logits_of(network(inputs)), batches)


def _has(network: nn.Module, tap: str) -> bool:
    try:
        tapped(network, [tap])
    except UsageError:
        return False
    return True


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array
