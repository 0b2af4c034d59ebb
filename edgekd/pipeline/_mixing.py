"""The mixed-precision stage: which layers int8 hurts, and which of them go back to float so that a drop holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from edgekd import mixed, quantize, sensitivity
from edgekd._transfer import transfer
from edgekd.artifact import Artifact, Draft
from edgekd.batches import calibration_ids, evaluation_batches
from edgekd.evaluate import accuracy, predict
from edgekd.export import INPUT, onnx_from_torch
from edgekd.measure import Protocol, measure
from edgekd.pipeline._quantize_plan import Plan, plan_of, prepared, restored
from edgekd.pipeline._run import Run
from edgekd.pipeline._training import example_inputs, network_of

__all__ = ["MIXED", "SENSITIVITY", "Write", "mixed_stage"]

SENSITIVITY, MIXED = "sensitivity.json", "mixed.json"
Write = Callable[[Run, Draft, GraphModule, Any, Plan], None]

_SAMPLES = 256
_QUERIES = 40
_SECONDS = 20.0


def mixed_stage(run: Run, student: Artifact, quantized: Artifact, *, write: Write) -> Artifact:
    """Layers of a quantized student back to float until `quantize.max_drop` holds on the validation split.

    Args:
        run: the run.
        student: float.
        quantized: calibrated or trained.
        write: puts a graph and its plan into a draft.
    """
    max_drop = run.recipe.quantize.max_drop
    if max_drop is None:
        return quantized
    plan = plan_of(quantized)
    settings = {"max_drop": max_drop, "plan": plan.model_dump(mode="json"), "seed": run.recipe.seed}

    def make(draft: Draft, checkpoint: Path) -> None:
        graph = restored(run, quantized, student)
        found = sensitivity.measure(
            graph,
            _labelled(run),
            numerics=plan.numerics(run),
            progress=lambda done: run.watcher.progress(done, _SAMPLES, "sensitivity"),
        )
        (draft.folder / SENSITIVITY).write_text(found.model_dump_json(indent=1), encoding="utf-8")
        result = _restore(run, plan, graph, found, max_drop)
        (draft.folder / MIXED).write_text(result.model_dump_json(indent=1), encoding="utf-8")
        chosen = plan.model_copy(update={"float_layers": [*plan.float_layers, *result.float_layers]})
        kept = graph
        if result.float_layers:
            kept = prepared(run, chosen, network_of(run, run.recipe.student, student))
            transfer(graph, kept)
            quantize.set_phase(kept, "frozen")
        draft.metrics |= {"drop": result.drop, "float_layers": result.float_layers}
        write(run, draft, kept, None, chosen)

    parents = {"student": student, "quantized": quantized}
    return run.stage(f"mixed-{plan.target}", kind="quantized", settings=settings, parents=parents, make=make)


def _restore(
    run: Run, plan: Plan, graph: GraphModule, found: sensitivity.Sensitivity, max_drop: float
) -> mixed.MixedPrecision:
    """The search; costs are those of ONNX Runtime, and so are latencies where it is the target's runtime."""
    target, numerics = run.target(plan.target), plan.numerics(run)
    example = example_inputs(run, max(2, run.recipe.bench.batch))
    feeds = {INPUT: example[: run.recipe.bench.batch].numpy()}

    def exported(layers: Sequence[str] | None) -> bytes:
        """A file with these layers in float; all of them for None."""
        twin = mixed.float_twin(graph, numerics=numerics) if layers is None else None
        program = twin or quantize.convert(
            mixed.floated(graph, layers or (), numerics=numerics), example, numerics=numerics
        )
        model = onnx_from_torch(
            program, example, target=target, opset=run.recipe.export.opset, int8=twin is None, metadata={}
        )
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    costs = mixed.group_costs(
        graph, feeds, float_model=exported(None), int8_model=exported(()), threads=run.recipe.bench.threads
    )
    measurable = target.runtime == "onnxruntime" and target.absent_here() is None
    timed = (lambda layers: _milliseconds(run, target, exported(layers), feeds)) if measurable else None
    return mixed.restore(
        graph,
        found,
        costs=costs,
        numerics=numerics,
        metric=lambda forward: _score(run, forward),
        max_drop=max_drop,
        latency=timed,
        progress=lambda step: run.watcher.message(
            f"{step.action} {', '.join(step.groups) or 'everything'}: drop {100 * step.drop:.2f} points"
        ),
    )


def _milliseconds(run: Run, target: Any, content: bytes, feeds: dict[str, Any]) -> float:
    """Median latency of a file on this machine."""
    chosen = run.recipe.bench
    protocol = Protocol(
        budget_ms=chosen.budget_ms, percentile=50.0, confidence=0.9, queries=_QUERIES, max_seconds=_SECONDS
    )
    with TemporaryDirectory(prefix="edgekd-mixed-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        with target.runner(path, threads=chosen.threads) as runner:
            latency = measure({"mixed": runner}, feeds, protocol=protocol).latencies["mixed"]
    return float(latency.p50_ms or latency.mean_ms)


def _labelled(run: Run) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Validation samples with their classes."""
    data = run.data
    ids = calibration_ids(data.val, _SAMPLES, seed=run.recipe.seed)
    for batch in evaluation_batches(data.val, data.preprocessing, batch_size=64, ids=ids):
        labels = batch.labels
        yield batch.inputs, labels.argmax(dim=1) if labels.ndim == 2 else labels


def _score(run: Run, forward: Callable[[Tensor], Tensor]) -> float:
    batches = evaluation_batches(run.data.val, run.data.preprocessing)
    with torch.no_grad():
        return accuracy(predict(forward, batches)).value
