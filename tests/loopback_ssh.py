"""An OpenSSH server on a free loopback port, with keys, configuration and known hosts of its own.

Nothing of the system's is read or changed: the server runs as the current user, with files in the folder given.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if os.path.exists("/usr/sbin/sshd") else None)
MISSING = "needs an OpenSSH server and client: apt-get install openssh-server openssh-client"
READY = SSHD is not None and shutil.which("ssh") is not None and shutil.which("ssh-keygen") is not None

_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
PermitRootLogin prohibit-password
PermitUserEnvironment no
"""


class SshServer:
    """A running server.

    Args:
        folder: its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("host_key", "user_key", "other_key"):
            _keygen(folder / name)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        self.port = free_port()
        (folder / "known_hosts").write_text(self.known_as("host_key"))
        (folder / "ssh_config").write_text("# empty: the user's own is not read\n")
        (folder / "sshd_config").write_text(_CONFIG.format(port=self.port, folder=folder))
        self._process = self._started()

    @property
    def name(self) -> str:
        """The device's name."""
        return f"ssh:{getpass.getuser()}@127.0.0.1:{self.port}"

    def options(self, python: Path | str | None = None, **others: Any) -> dict[str, Any]:
        """Options of the device; Python is this test's unless given."""
        return {
            "identity": str(self.folder / "user_key"),
            "config": str(self.folder / "ssh_config"),
            "known_hosts": str(self.folder / "known_hosts"),
            "python": str(python or sys.executable),
            "connect_seconds": 5,
            **others,
        }

    def known_as(self, key: str) -> str:
        """A line of known hosts with the public key of this name."""
        return f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}"

    def cut(self) -> int:
        """End every connection, as when a cable is pulled: the server's processes for them are killed; how many."""
        children = [pid for pid in _children(self._process.pid) if "sshd" in _command(pid)]
        # the process that has the user's rights is a child of the one that was forked for the connection
        for pid in [inner for child in children for inner in _children(child) if "sshd" in _command(inner)] + children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(children)

    def stop(self) -> None:
        """End the server and its connections."""
        self.cut()
        self._process.kill()
        self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a server that root starts locks itself in
        log = (self.folder / "log").open("wb")
        process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log)
        log.close()
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
                return process
            if process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"sshd does not start: {(self.folder / 'log').read_text()}")


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """A server whose files lie in this folder, for the duration."""
    folder.mkdir(parents=True, exist_ok=True)
    server = SshServer(folder)
    try:
        yield server
    finally:
        server.stop()


def script(file: Path, text: str) -> Path:
    """A shell script that can stand in place of a device's Python."""
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def arm64_python(file: Path, userland: Path) -> Path:
    """A script that runs the Python of an arm64 userland under its emulator, with the arguments it gets."""
    from edgekd.devices._arm64_userland import userland_command, userland_environment

    folder = userland.resolve()
    return script(file, f'{_assignments(userland_environment(folder))} exec {_words(userland_command(folder))} "$@"')


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _assignments(environment: Mapping[str, str]) -> str:
    return " ".join(f"{key}='{value}'" for key, value in environment.items())


def _words(command: list[str]) -> str:
    return " ".join(f"'{part}'" for part in command)


def _keygen(file: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    return ""
