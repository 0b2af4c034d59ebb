"""What a device is asked beside the steady state: end to end, numbers of threads, a long run, energy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd._sustained import energy_of, invalid_reason, sustained_of, trip_of
from edgekd.devices._place import About, EndToEnd, Measured, Place, SessionSettings, Timing
from edgekd.measure import Protocol, latency_of
from edgekd.recipe import BenchSettings
from edgekd.spec import Preprocessing

__all__ = ["IMAGE", "end_to_end", "energy", "sustained", "sweep"]

IMAGE = "image.npy"
_FEW_QUERIES = 64
_MOST_QUERIES = 1_000_000
_ENERGY_SECONDS = 5.0
_FEWEST_READINGS = 200


def end_to_end(
    place: Place,
    names: Mapping[str, str],
    chosen: BenchSettings,
    session: SessionSettings,
    timing: Timing,
    *,
    preprocessing: Preprocessing,
    inside: bool,
) -> dict[str, Any]:
    """From an image in memory to sorted labels, by rung: preprocessing, inference and the rest, each query of each.

    It is timed apart from the steady state, whose inferences follow each other without anything in between: with fewer
    queries, unless the budget is about it.

    Args:
        place: with the models put.
        names: of the models there, by rung.
        chosen: protocol and budget.
        session, timing: as for the steady state.
        preprocessing: from an image to the input.
        inside: the models take the image itself.
    """
    height, width = preprocessing.size
    image = np.random.default_rng(0).integers(0, 256, (height, width, preprocessing.channels), dtype=np.uint8)
    with tempfile.TemporaryDirectory(prefix="edgekd-image-") as folder:
        file = Path(folder) / IMAGE
        np.save(file, image)
        place.put({IMAGE: file})
    steps = EndToEnd(image=IMAGE, preprocessing=None if inside else preprocessing.model_dump(mode="json"))
    queries = timing.queries if chosen.budget_is == "end_to_end" else min(timing.queries, _FEW_QUERIES)
    measured = place.measure(
        names,
        {},
        session=session,
        timing=timing.model_copy(update={"end_to_end": steps, "queries": queries}),
    )
    trip_c = trip_of(place.about().details)
    return {
        "invalid": invalid_reason(measured.readings, cores=measured.cores, trip_c=trip_c),
        "models": {
            rung: {
                "preprocess_ms": timed.preprocess_ms,
                "inference_ms": timed.samples_ms,
                "postprocess_ms": timed.postprocess_ms,
            }
            for rung, timed in measured.models.items()
        },
    }


def sweep(
    place: Place,
    names: Mapping[str, str],
    feeds: Mapping[str, np.ndarray],
    chosen: BenchSettings,
    session: Callable[[int], SessionSettings],
    timing: Timing,
    *,
    about: About,
) -> dict[str, Any]:
    """The models with other numbers of threads: latencies by that number and rung."""
    threads = 1 if chosen.profile == "mobile" else chosen.threads
    protocol = Protocol(
        budget_ms=chosen.budget_ms,
        percentile=chosen.percentile,
        confidence=chosen.confidence,
        queries=chosen.queries,
        max_seconds=chosen.max_seconds,
    )
    found: dict[str, Any] = {}
    for count in sorted(set(chosen.sweep_threads) - {threads}):
        measured = place.measure(names, feeds, session=session(count), timing=timing)
        trip_c = trip_of(about.details)
        found[str(count)] = {
            "cores": measured.cores,
            "invalid": invalid_reason(measured.readings, cores=measured.cores, trip_c=trip_c),
            "latency": {
                rung: latency_of(
                    timed.samples_ms,
                    protocol=protocol,
                    started_ms=timed.started_ms,
                    warmup=timed.warmup,
                    steady=timed.steady,
                    provider_requested=timed.provider_requested,
                    provider_used=timed.provider_used,
                ).model_dump()
                for rung, timed in measured.models.items()
            },
        }
    return found


def sustained(
    place: Place,
    name: str,
    feeds: Mapping[str, np.ndarray],
    chosen: BenchSettings,
    session: SessionSettings,
    timing: Timing,
    *,
    rung: str,
    target: str,
    about: About,
) -> dict[str, Any]:
    """One model without a pause, as rows of the report, its energy among them; none where the recipe asks for none."""
    seconds = chosen.sustained_seconds
    if not seconds:
        return {"sustained": [], "energy": []}
    measured = place.measure(
        {rung: name},
        feeds,
        session=session,
        timing=timing.model_copy(
            update={
                "queries": _MOST_QUERIES,
                "max_seconds": seconds,
                # a drift is looked for: it must not begin before the first query
                "warmup_max_seconds": min(timing.warmup_max_seconds, 0.05 * seconds),
                "readings_seconds": max(0.2, seconds / _FEWEST_READINGS),
            }
        ),
    )
    row = sustained_of(
        measured,
        rung,
        rung=rung,
        target=target,
        device=place.name,
        confidence=chosen.confidence,
        trip_c=trip_of(about.details),
    )
    spent = energy_of(measured, rung, rung=rung, target=target, device=place.name)
    return {
        "sustained": [row.model_dump()],
        "energy": [spent.model_dump()] if spent.energy_mj is not None else [],
    }


def energy(
    place: Place,
    names: Mapping[str, str],
    feeds: Mapping[str, np.ndarray],
    chosen: BenchSettings,
    session: SessionSettings,
    timing: Timing,
    steady: Measured,
    *,
    target: str,
) -> list[dict[str, Any]]:
    """Energy of one inference of each model, each run alone for some seconds; "not available" where nothing tells.

    Args:
        place: with the models put.
        names: of the models there, by rung.
        feeds: inputs.
        chosen, session, timing: as for the steady state.
        steady: the models in turns; it says whether anything tells.
        target: that the files were made for.
    """
    tells = any(one.energy_j is not None or one.power_w is not None for one in steady.readings)
    rows = []
    for rung, name in names.items():
        if not tells:
            rows.append(energy_of(steady, rung, rung=rung, target=target, device=place.name))
            continue
        alone = place.measure(
            {rung: name},
            feeds,
            session=session,
            timing=timing.model_copy(
                update={
                    "queries": _MOST_QUERIES,
                    "max_seconds": min(_ENERGY_SECONDS, chosen.max_seconds),
                    "readings_seconds": 0.5,
                }
            ),
        )
        rows.append(energy_of(alone, rung, rung=rung, target=target, device=place.name))
    return [row.model_dump() for row in rows]
