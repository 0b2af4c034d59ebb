"""A bundle on a device behind ssh: verified there, deployed there, and what is left when it fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle.conftest import GOLDEN, LOGITS, MODEL, Maker
from devices.conftest import server as server
from loopback_ssh import SshServer

from edgekd.bundle import deploy_bundle, verify_bundle
from edgekd.errors import ArtifactError, StorageError, UsageError


def test_answers_are_checked_there(server: SshServer, bundle_zip: Path, make: Maker) -> None:
    found = verify_bundle(bundle_zip, device=server.name, options=server.options())
    assert found.passed
    assert found.replay is not None
    assert found.replay.device == server.name
    wrong = verify_bundle(make(logits=LOGITS + 1), device=server.name, options=server.options())
    assert wrong.replay is not None
    assert f"on {server.name} (" in wrong.replay.problems()[0]


def test_deployed_bundle_stays_and_a_second_one_replaces_it(server: SshServer, make: Maker, tmp_path: Path) -> None:
    folder = tmp_path / "a folder; with $(odd) 'signs'"
    first = deploy_bundle(make("one"), server.name, str(folder), options=server.options())
    assert first.folder == str(folder)
    assert first.passed
    weight = (folder / MODEL).read_bytes()
    logits = LOGITS + np.float32(1e-5)
    second = deploy_bundle(make("two", logits=logits), server.name, str(folder), options=server.options())
    assert second.passed
    assert (folder / MODEL).read_bytes() == weight
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert there == ["README.md", GOLDEN, "manifest.json", MODEL]


def test_damaged_bundle_never_leaves_this_machine(server: SshServer, bundle_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle_folder, tmp_path / "copy"))
    (copy / MODEL).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"float32\.onnx is damaged"):
        deploy_bundle(copy, server.name, str(tmp_path / "there"), options=server.options())
    assert not (tmp_path / "there").exists()


def test_folder_that_cannot_be_made_there_is_told(server: SshServer, bundle_zip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((StorageError, UsageError), match="cannot be written there: Not a directory"):
        deploy_bundle(bundle_zip, server.name, str(tmp_path / "file" / "there"), options=server.options())
    with pytest.raises(UsageError, match="must be absolute or begin with ~"):
        deploy_bundle(bundle_zip, server.name, "relative", options=server.options())
