"""Every test computes on one thread: the suite shares its machine, and small networks gain nothing from more."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# before torch is imported anywhere, and inherited by every process that a test starts
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shell's background job ignores Ctrl-C, and would hand that down to the commands whose Ctrl-C is tested
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    assert (REPOSITORY / "pyproject.toml").is_file()
    return REPOSITORY


@contextmanager
def tiny_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A real file system of this size; skips where this user may not mount one."""
    import subprocess

    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a full disk needs a file system of its own, and there is no mount command here")
    if done.returncode:
        pytest.skip(f"a full disk needs a file system of its own, and mounting one failed: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with tiny_disk(tmp_path / "disk", 256) as folder:
        yield folder
