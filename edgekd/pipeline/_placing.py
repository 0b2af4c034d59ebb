"""The placement stage: candidates timed on this device before anything is trained for one of them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgekd import quantize
from edgekd.artifact import Artifact, Draft
from edgekd.batches import evaluation_batches
from edgekd.evaluate import accuracy, predict
from edgekd.export import INPUT
from edgekd.measure import Protocol
from edgekd.pipeline._calibration_samples import chosen_ids
from edgekd.pipeline._quantize_plan import Plan, prepared
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import example_inputs, network_of
from edgekd.placement import DEFAULT, Candidate, Found, Placement, candidates, search
from edgekd.targets._groups import groups

__all__ = ["FOUND", "placement_stage"]

FOUND = "placement.json"

_QUERIES = 60
_SECONDS = 60.0  # for each of the two rounds
_MOST_LOST = 0.002  # of validation accuracy against the default placement, both calibrated alike
_ACCURACY_SAMPLES = 256


def placement_stage(run: Run, plan: Plan, student: Artifact) -> Plan:
    """The plan with the fastest placement of this device in it; the device's fingerprint is part of the stage's key."""
    target = run.target(plan.target)
    if (reason := target.absent_here()) is not None:
        run.watcher.message(f"Target '{plan.target}': no placement search, it {reason}.")
        return plan
    device = run.member("devices", run.recipe.bench.device)
    threads = run.recipe.bench.threads
    fingerprint = {key: value for key, value in device.fingerprint().items() if key in _LASTING}
    settings = {
        "plan": plan.model_dump(mode="json"),
        "device": fingerprint,
        "runtime": run.environment["packages"],
        "threads": threads,
        "batch": run.recipe.bench.batch,
        "opset": run.recipe.export.opset,
    }

    def make(draft: Draft, checkpoint: Path) -> None:
        with TemporaryDirectory(prefix="edgekd-placement-") as folder, device.pinned(threads):
            found = _Search(run, plan, student, Path(folder), threads).run()
        (draft.folder / FOUND).write_text(found.model_dump_json(indent=1), encoding="utf-8")
        draft.metrics |= {"chosen": found.chosen.name, "notes": found.notes}
        draft.spec = run.spec

    made = run.stage(
        f"placement-{plan.target}", kind="placement", settings=settings, parents={"student": student}, make=make
    )
    chosen = Found.model_validate_json(made.file(FOUND).read_bytes()).chosen
    return _with(plan, chosen)


_LASTING = ("model", "vendor", "machine", "system", "features", "has_vnni", "cores_physical")
"""What of a device's fingerprint decides the outcome; load and clocks of the moment do not."""


def _with(plan: Plan, placement: Placement) -> Plan:
    floats = list(dict.fromkeys([*plan.float_layers, *placement.float_layers]))
    return plan.model_copy(update={"operators": placement.operators, "float_layers": floats})


class _Search:
    """One search: builds candidates, times them, asks about the accuracy of winners."""

    def __init__(self, run: Run, plan: Plan, student: Artifact, folder: Path, threads: int) -> None:
        self._run, self._plan, self._folder, self._threads = run, plan, folder, threads
        self._network = network_of(run, run.recipe.student, student).cpu()
        self._target: Any = run.target(plan.target)
        self._scores: dict[str, float] = {}
        self._count = 0

    def run(self) -> Found:
        run = self._run
        example = example_inputs(run, 8)
        graph = quantize.folded(self._network, example)
        protocol = Protocol(
            budget_ms=run.recipe.bench.budget_ms,
            percentile=run.recipe.bench.percentile,
            confidence=run.recipe.bench.confidence,
            queries=_QUERIES,
            max_seconds=_SECONDS,
        )
        return search(
            candidates(groups(graph), self._plan.numerics(run)),
            self._build,
            {INPUT: example_inputs(run, run.recipe.bench.batch).numpy()},
            protocol=protocol,
            accepts=self._accepts,
            progress=lambda done, total: run.watcher.progress(done, total, "placement"),
        )

    def _build(self, placement: Placement) -> Candidate:
        """A file with stand-in ranges: those of the first inputs, since times do not depend on values."""
        plan = _with(self._plan, placement)
        graph = prepared(self._run, plan, self._network)
        example = example_inputs(self._run, 8)
        quantize.calibrate(graph, [example])
        program = quantize.convert(graph, example, numerics=plan.numerics(self._run))
        self._count += 1
        path = self._target.write(
            program,
            example,
            self._folder / f"candidate{self._count}",
            int8=True,
            opset=self._run.recipe.export.opset,
            metadata={},
        )
        return Candidate(placement, lambda: self._target.runner(path, threads=self._threads))

    def _accepts(self, placement: Placement) -> str | None:
        default = Placement(name=DEFAULT, operators=self._plan.operators)
        before, after = self._accuracy(default), self._accuracy(placement)
        if before - after <= _MOST_LOST:
            return None
        return f"after calibration it loses {100 * (before - after):.2f} points of validation accuracy"

    def _accuracy(self, placement: Placement) -> float:
        if placement.name not in self._scores:
            run, data = self._run, self._run.data
            graph = prepared(run, _with(self._plan, placement), self._network)
            ids = chosen_ids(run, None)[:_ACCURACY_SAMPLES]
            batches = evaluation_batches(data.train, data.preprocessing, batch_size=64, ids=ids)
            quantize.calibrate(graph, (batch.inputs for batch in batches))
            found = predict(lambda inputs: graph(inputs)[0], evaluation_batches(data.val, data.preprocessing))
            self._scores[placement.name] = accuracy(found).value
        return self._scores[placement.name]
