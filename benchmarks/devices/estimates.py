"""Are estimates right? Device profiles against published latencies, and a probe of this machine against measurements.

`--refit` fits the rates of every profile in `edgekd/device_profiles` again, from the published latencies that stand in
it and the counts in `networks.json`, and writes beside each latency what a profile fitted without its network says.
Without it nothing is written there: the same is computed and compared. `--here` probes this processor and holds the
profile against measurements of real networks in the same session; the probe never sees them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _counted import kept
from _record import RESULTS, write

from edgekd._estimate_fit import Observation, fitted, held_out, starting_rates
from edgekd._estimate_profile import FOLDER, DeviceProfile, Point, Rates, find_profile, profile_names, to_toml
from edgekd._roofline import total_ms, work_of

NAME = "estimates"
FITTED = "fitted to the latencies below, all of them; each held_out_ms is of a fit without its network"
FAMILIES = ("efficientnet_lite", "mobilenet", "resnet", "inception", "yolov8")


def observations(points: Sequence[Point]) -> list[Observation]:
    """The points with what ran in them."""
    return [
        Observation(one.network, work_of(kept(one.network, one.element_type)), one.threads, one.latency_ms)
        for one in points
    ]


def refitted(profile: DeviceProfile) -> DeviceProfile:
    """A profile whose rates and held-out estimates follow from its published latencies alone."""
    start = profile.model_copy(update={"rates": starting_rates(profile.processor)})
    if profile.rates_from is not None:
        source = refitted(find_profile(profile.rates_from))
        rates = source.rates.model_copy(update={"source": f"taken over from '{source.name}', fitted there"})
        return profile.model_copy(update={"rates": _rounded(rates)})
    if not profile.points:
        return start
    seen = observations(profile.points)
    points = [
        one.model_copy(update={"held_out_ms": None if estimate is None else float(f"{estimate:.4g}")})
        for one, estimate in zip(profile.points, held_out(start, seen), strict=True)
    ]
    found = fitted(start, seen)
    rates = _rounded(found.rates.model_copy(update={"source": FITTED}))
    return found.model_copy(update={"rates": rates, "points": points})


def _rounded(rates: Rates) -> Rates:
    shares = {
        element_type: {kind: float(f"{value:.4g}") for kind, value in kinds.items()}
        for element_type, kinds in rates.utilisation.items()
    }
    return rates.model_copy(
        update={
            "utilisation": shares,
            "memory_share": float(f"{rates.memory_share:.4g}"),
            "overhead_us": float(f"{rates.overhead_us:.4g}"),
        }
    )


def families_held_out(profile: DeviceProfile) -> list[dict[str, Any]]:
    """The harder check: each family of networks by a profile that saw no network of that family."""
    start = profile.model_copy(update={"rates": starting_rates(profile.processor)})
    seen = observations(profile.points)
    rows = []
    for family in FAMILIES:
        rest = [one for one in seen if not one.name.startswith(family)]
        own = [one for one in seen if one.name.startswith(family)]
        if not rest or not own:
            continue
        other = fitted(start, rest)
        errors = [abs(total_ms(one.work, other, threads=one.threads) / one.latency_ms - 1) for one in own]
        rows.append(
            {"family": family, "n": len(own), "median_error": statistics.median(errors), "worst_error": max(errors)}
        )
    return rows


def published() -> list[dict[str, Any]]:
    """One row a profile, with each latency beside its held-out estimate."""
    rows = []
    for name in profile_names():
        profile = find_profile(name)
        again = refitted(profile)
        differs = again.model_dump() != profile.model_dump()
        rows.append(
            {
                "profile": name,
                "basis": profile.basis,
                "n": len(again.checked),
                "median_error": again.median_error,
                "worst_error": again.worst_error,
                "file_is_up_to_date": not differs,
                "families_held_out": families_held_out(profile),
                "points": [{**one.model_dump(exclude={"source", "batch"}), "error": one.error} for one in again.points],
            }
        )
        shown = "unchecked" if again.median_error is None else f"{again.median_error:.1%} / {again.worst_error:.1%}"
        print(f"{name}: n={len(again.checked)} median / worst {shown}")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run and write the record."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "device_estimates.json", help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument("--refit", action="store_true", help="write the profiles")
    parser.add_argument("--here", action="store_true", help="probe this processor and measure networks on it")
    parser.add_argument("--keep", type=Path, help="folder of the networks' files, read where they are there")
    parser.add_argument("--students", type=Path, nargs="*", default=[], help="more ONNX files to measure")
    given = parser.parse_args(argv)
    if given.refit:
        for name in profile_names():
            (FOLDER / f"{name}.toml").write_text(to_toml(refitted(find_profile(name))), encoding="utf-8")
    results: dict[str, Any] = {"published": published()}
    if given.here:
        from _here import here

        results["here"] = here(given.students, given.seed, given.keep)
    print(write(given.out, name="devices/estimates", seed=given.seed, argv=argv, results=results))


if __name__ == "__main__":
    main()
