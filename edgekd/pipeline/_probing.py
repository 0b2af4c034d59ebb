"""A device's profile, measured and written to a file of the user's."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekd._estimate_probe import Rate, probed
from edgekd._estimate_profile import DeviceProfile, to_toml
from edgekd.artifact import storage_errors
from edgekd.devices._base import open_place
from edgekd.errors import OverwriteRefused, UsageError
from edgekd.pipeline._claim import write_whole_text
from edgekd.pipeline._watcher import Silent, Watcher
from edgekd.spec import Frozen

__all__ = ["Probed", "probe_device"]


class Probed(Frozen):
    """What a probe found.

    Args:
        file: where the profile lies.
        profile: the same.
        rates: each fitted rate with its 95 % interval, by name.
    """

    file: str
    profile: DeviceProfile
    rates: dict[str, Rate]


def probe_device(
    device: str,
    *,
    threads: int = 1,
    seconds: float = 2.0,
    out: Path | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Probed:
    """Time small models on a device and write the profile that they make.

    Args:
        device: its name in the catalog, "cpu", "ssh:user@host".
        threads: of the runtime, >= 1.
        seconds: longest timing of each model, > 0.
        out: the file to write; named after the device in the current folder unless given.
        overwrite: write over it.
        watcher: told about progress.

    Raises:
        OverwriteRefused: the file is there; before anything is measured.
        UsageError: threads or seconds out of range, or no such device.
        BackendMissing: the device cannot be reached.
        StorageError: the file cannot be written.
    """
    if threads < 1 or seconds <= 0.0:
        raise UsageError(f"threads must be at least 1 and seconds above 0, got {threads} and {seconds:g}.")
    watcher = watcher or Silent()
    with open_place(device) as place, tempfile.TemporaryDirectory(prefix="edgekd-probe-") as folder:
        file = out or Path(f"{_plain(place.name)}-profile.toml")
        if file.suffix != ".toml":
            raise UsageError(f"{file}: a profile is a .toml file. Give --out a name that ends so.")
        if file.exists() and not overwrite:
            raise OverwriteRefused(f"{file} is there already; nothing was measured. Give --overwrite or another --out.")
        profile, rates = probed(
            place,
            Path(folder),
            threads=threads,
            seconds=seconds,
            progress=lambda done, total: watcher.progress(done, total, "probe"),
        )
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole_text(file, to_toml(profile))
    return Probed(file=str(file), profile=profile, rates=rates)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")
