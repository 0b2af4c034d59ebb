"""Bundles: a folder or archive with everything that a device needs to run a model and to prove that it runs it right.

A bundle is read with distrust: names, sizes, links and hashes are checked before a file is used, and nothing in it is
executed here. What it holds is written in `manifest.json`; `run_model.py` in it runs on a device without edgekd.
`edgekd.pipeline.pack` makes one of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd._bundle_files import Bundle, SignFolder, is_bundle, open_bundle, write_bundle
from edgekd._bundle_golden import Difference
from edgekd._bundle_manifest import (
    MANIFEST,
    SIGNATURE,
    BudgetNote,
    BundleManifest,
    FileRecord,
    Golden,
    Licences,
    LineageNote,
    ModelEntry,
    Port,
    Tolerance,
)
from edgekd._bundle_replay import Installed, ModelReplay, Replay, install, replay
from edgekd._bundle_signature import check as check_signature
from edgekd._bundle_signature import signer
from edgekd.errors import UsageError
from edgekd.spec import Frozen

__all__ = [
    "MANIFEST",
    "SIGNATURE",
    "BudgetNote",
    "Bundle",
    "BundleManifest",
    "Difference",
    "FileRecord",
    "Golden",
    "Installed",
    "Licences",
    "LineageNote",
    "ModelEntry",
    "ModelReplay",
    "Port",
    "Replay",
    "SignFolder",
    "Tolerance",
    "Verification",
    "check_signature",
    "deploy_bundle",
    "install",
    "is_bundle",
    "open_bundle",
    "replay",
    "signer",
    "verify_bundle",
    "write_bundle",
]


class Verification(Frozen):
    """What a check of a bundle found; a damaged one raises instead.

    Args:
        path: as it was given.
        id, name: of the bundle.
        files: how many, the manifest left out.
        bytes: of all of them.
        signature: none, not checked, or by what it holds.
        replay: the golden vectors on a device; None where only the files were checked.
        folder: where the files lie on the device; None where they were not left there.
    """

    path: str
    id: str
    name: str
    files: int
    bytes: int
    signature: str
    replay: Replay | None = None
    folder: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every answer is within its tolerance; true where none was asked for."""
        return self.replay is None or self.replay.passed


def verify_bundle(
    path: Path,
    *,
    device: str | None = "cpu",
    options: Mapping[str, Any] | None = None,
    require_signature: bool = False,
    key: Path | None = None,
    certificates: Sequence[Path] = (),
) -> Verification:
    """Check every file of a bundle, its signature, then its answers.

    Args:
        path: a folder or a .zip.
        device: where the golden vectors are replayed, "cpu" or "ssh:user@host"; None for nowhere.
        options: of the device.
        require_signature: refuse a bundle without a signature.
        key: public key that the signature must be of, PEM.
        certificates: roots that the signer's certificate must lead to, PEM.

    Raises:
        ArtifactError: it is damaged, unsafe, or its signature does not hold.
        BackendMissing: the device cannot be reached, or no model of the bundle runs there.
        ModelFileError: a model is corrupt, or the device's runtime refuses it.
        UsageError: a signature is required and nothing is given to check it with.
    """
    from edgekd.devices._base import open_place

    with open_bundle(path) as bundle:
        checked = _checked(bundle, require_signature, key, certificates)
        if device is None:
            return checked
        with open_place(device, options) as place:
            return checked.model_copy(update={"replay": replay(bundle, place)})


def deploy_bundle(
    path: Path,
    device: str,
    folder: str,
    *,
    options: Mapping[str, Any] | None = None,
    require_signature: bool = False,
    key: Path | None = None,
    certificates: Sequence[Path] = (),
) -> Verification:
    """Check a bundle, put what a device needs into a folder there, and replay the golden vectors with those files.

    Args:
        path: a folder or a .zip.
        device: "ssh:user@host".
        folder: on the device; made if it is not there.
        options, require_signature, key, certificates: as for `verify_bundle`.

    Raises:
        StorageError: the device has no room, or may not write there.
        EdgeKDError: as for `verify_bundle`.
    """
    from edgekd.devices._base import open_place

    with open_bundle(path) as bundle:
        checked = _checked(bundle, require_signature, key, certificates)
        with open_place(device, options) as place:
            done = install(bundle, place, folder)
            return checked.model_copy(update={"replay": done.replay, "folder": done.folder})


def _checked(bundle: Bundle, required: bool, key: Path | None, certificates: Sequence[Path]) -> Verification:
    asked = key is not None or bool(certificates)
    if required and not asked:
        raise UsageError("A signature can only be checked against a public key or certificates. Give --key PUB.")
    signature = "not checked" if bundle.signed else "none"
    if asked:
        signature = f"holds for {check_signature(bundle.folder, key=key, chain=certificates)}"
    return Verification(
        path=str(bundle.path),
        id=bundle.manifest.id,
        name=bundle.manifest.name,
        files=len(bundle.manifest.files),
        bytes=sum(record.bytes for record in bundle.manifest.files.values()),
        signature=signature,
    )
