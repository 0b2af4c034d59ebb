"""Golden vectors replayed on a device: whether a bundle's models give there the answers that they gave here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from edgekd._bundle_files import Bundle
from edgekd._bundle_golden import Difference, compared, read_golden
from edgekd._bundle_manifest import MANIFEST, ModelEntry
from edgekd.devices._place import SessionSettings
from edgekd.errors import ArtifactError, BackendMissing, MismatchError
from edgekd.spec import Frozen

if TYPE_CHECKING:
    from edgekd.devices._place import About, Place

__all__ = ["Installed", "ModelReplay", "Replay", "install", "pieces", "replay", "runs_there"]

RUNTIME = "onnxruntime"


class ModelReplay(Frozen):
    """What became of one model's golden vectors.

    Args:
        file, rung, target: which model.
        samples: how many were replayed.
        outputs: each against its golden values; empty for a model that was left out.
        left_out: why it was not run here; None for one that was.
    """

    file: str
    rung: str
    target: str
    samples: int = 0
    outputs: list[Difference] = Field(default_factory=list)
    left_out: str | None = None


class Replay(Frozen):
    """The golden vectors of a bundle on one device.

    Args:
        device: as the user wrote it.
        machine, system, runtime, runtime_version: what answered.
        emulated: the processor is emulated.
        models: every model of the bundle.
    """

    device: str
    machine: str
    system: str
    runtime: str
    runtime_version: str
    emulated: bool = False
    models: list[ModelReplay]

    @property
    def passed(self) -> bool:
        """Whether every output of every model that ran is within its tolerance."""
        return all(output.within for model in self.models for output in model.outputs)

    def problems(self) -> list[str]:
        """One sentence for each output that differs: which, by how much, against what, and who computed it."""
        return [
            _sentence(self, model, output) for model in self.models for output in model.outputs if not output.within
        ]


@dataclass(frozen=True)
class Installed:
    """What `install` put on a device: the folder there, its files, and their answers."""

    folder: str
    files: list[str]
    replay: Replay


def runs_there(entry: ModelEntry, about: About) -> str | None:
    """Why a model is not run on a device; None if it is."""
    if entry.runtime != RUNTIME:
        return f"it runs on {entry.runtime}, the device has {about.runtime}"
    if not entry.meant_for(about.machine):
        return f"it is meant for {' or '.join(entry.machines)}, the device is {about.machine}"
    return None


def replay(bundle: Bundle, place: Place, *, threads: int = 1) -> Replay:
    """Bring the models to a device and hold their answers against the golden vectors.

    Raises:
        BackendMissing: the device is lost, or no model of the bundle runs on it.
        ModelFileError: its runtime refuses a model.
        ArtifactError: the golden vectors are damaged.
    """
    about = place.about()
    chosen = _chosen(bundle, about, place.name)
    place.put({name: path for entry in chosen for name, path in bundle.files_for(entry).items()})
    return _replayed(bundle, place, about, {entry.file: entry.file for entry in chosen}, threads)


def install(bundle: Bundle, place: Place, folder: str, *, threads: int = 1) -> Installed:
    """Put what a device needs into a folder there that stays, then replay the golden vectors with those files.

    Args:
        bundle: open.
        place: the device.
        folder: on the device; made if it is not there.
        threads: intra-op threads.

    Raises:
        BackendMissing, ModelFileError, ArtifactError: as for `replay`.
        StorageError: the device has no room, or may not write there.
    """
    about = place.about()
    chosen = _chosen(bundle, about, place.name)
    names = [name for entry in chosen for name in entry.files]
    names += [entry.golden.file for entry in chosen if entry.golden]
    names += [name for name in ("run_model.py", "README.md", "LICENSE") if name in bundle.manifest.files]
    there = place.install({name: bundle.file(name) for name in [*names, MANIFEST]}, folder)
    at = {entry.file: f"{there.rstrip('/')}/{entry.file}" for entry in chosen}
    return Installed(there, [*names, MANIFEST], _replayed(bundle, place, about, at, threads))


def _chosen(bundle: Bundle, about: About, device: str) -> list[ModelEntry]:
    reasons = {entry.file: runs_there(entry, about) for entry in bundle.manifest.models}
    chosen = [entry for entry in bundle.manifest.models if reasons[entry.file] is None]
    if not chosen:
        told = "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
        raise BackendMissing(
            f"No model of {bundle.path} runs on {device}: {told}. Pack the bundle with a target for it, or pass"
            " --no-run to check the files alone."
        )
    return chosen


def _replayed(bundle: Bundle, place: Place, about: About, at: Mapping[str, str], threads: int) -> Replay:
    rows = []
    for entry in bundle.manifest.models:
        row = ModelReplay(file=entry.file, rung=entry.rung, target=entry.target)
        reason = runs_there(entry, about) or (None if entry.golden else "it has no golden vectors")
        if reason is not None:
            rows.append(row.model_copy(update={"left_out": reason}))
            continue
        differences = _differences(bundle, place, entry, at[entry.file], SessionSettings(threads=threads))
        rows.append(row.model_copy(update={"samples": differences[0].n, "outputs": differences}))
    return Replay(
        device=place.name,
        machine=about.machine,
        system=about.system,
        runtime=about.runtime,
        runtime_version=about.runtime_version,
        emulated=about.emulated,
        models=rows,
    )


def _differences(
    bundle: Bundle, place: Place, entry: ModelEntry, model: str, session: SessionSettings
) -> list[Difference]:
    if entry.golden is None:
        raise ArtifactError(f"{entry.file} has no golden vectors.")
    inputs, outputs = read_golden(bundle.file(entry.golden.file), entry)
    answers = place.run(model, pieces(inputs, entry), session)
    found = []
    for name, expected in outputs.items():
        if any(name not in answer for answer in answers):
            raise MismatchError(f"{entry.file} gives no output '{name}' on {place.name}. Pack the bundle again.")
        got = np.concatenate([np.atleast_1d(answer[name]) for answer in answers])
        found.append(compared(name, expected, got, entry.golden.tolerances[name]))
    return found


def pieces(inputs: Mapping[str, np.ndarray], entry: ModelEntry) -> Sequence[dict[str, np.ndarray]]:
    """Feeds that a model takes: all samples at once, or as many at a time as its batch has."""
    size = next((port.shape[0] for port in entry.inputs if port.shape and isinstance(port.shape[0], int)), None)
    count = len(next(iter(inputs.values())))
    step = int(size) if size else count
    return [
        {name: np.ascontiguousarray(value[at : at + step]) for name, value in inputs.items()}
        for at in range(0, count, step)
    ]


def _sentence(replay: Replay, model: ModelReplay, output: Difference) -> str:
    place = ", ".join(map(str, output.index))
    by = "is not a finite number" if output.got is None else f"differs by {output.max_abs_error:.6g}"
    got = "no finite number" if output.got is None else f"{output.got:.6g}"
    wanted = "no finite number" if output.expected is None else f"{output.expected:.6g}"
    return (
        f"{model.file}: output '{output.output}' {by} at [{place}]: {got} instead of {wanted}, {output.allowed:.6g} is"
        f" allowed; {replay.runtime} {replay.runtime_version} on {replay.device} ({replay.machine}, {replay.system}),"
        f" top-1 equal for {output.same_top1} of {output.n} samples."
    )
