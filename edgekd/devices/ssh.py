"""Any Linux behind ssh: a Raspberry Pi, a Jetson, a server; with Python, numpy and onnxruntime there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from edgekd import spec
from edgekd.devices._agent_place import AgentPlace
from edgekd.devices._base import Device
from edgekd.devices._endings import Ended
from edgekd.devices._program import BOOTSTRAP, Start
from edgekd.errors import UsageError

__all__ = ["Address", "Ssh", "address_of", "connection_reason"]

# nothing here can be taken for an option of ssh or mean anything to a shell
_ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_PYTHON = re.compile(r"[A-Za-z0-9._/+-]+")
_BROKE = re.compile(r"closed by|Connection|Broken pipe|Timeout, server|reset by")
_CANNOT_CONNECT = 255
"""Exit code of ssh for every failure of its own."""
_PORTS = 65535


class Address(NamedTuple):
    """Where to connect: user and port are None where ssh's configuration decides."""

    user: str | None
    host: str
    port: int | None


class Ssh(Device):
    """A device that the system's `ssh` reaches without a password.

    Args:
        options: of the connection.
        argument: "[user@]host[:port]", or a `Host` of ssh's configuration; an IPv6 address in brackets.

    Raises:
        UsageError: the address or the option python has characters that it may not have.
    """

    class Options(spec.Options):
        """How to connect, and what to run there.

        Args:
            port: of the ssh server; the address's or ssh's own unless given.
            identity: file of the private key.
            config: file to read in place of ~/.ssh/config.
            known_hosts: file with the host keys to check against, in place of ~/.ssh/known_hosts.
            python: command or path of the interpreter there.
            folder: there, to make the private folder in; its temporary one unless given.
            silence_seconds: the device is taken to hang when nothing came from it for so long.
            connect_seconds: to connect within.
        """

        port: int | None = Field(None, ge=1, le=_PORTS)
        identity: str | None = None
        config: str | None = None
        known_hosts: str | None = None
        python: str = "python3"
        folder: str | None = None
        silence_seconds: float = Field(120.0, gt=0.0)
        connect_seconds: int = Field(15, ge=1)

    def __init__(self, options: spec.Options, argument: str = "") -> None:
        super().__init__(options)
        self._options = options if isinstance(options, Ssh.Options) else Ssh.Options()
        self._argument = argument
        self._address = address_of(argument)
        # the only option that becomes part of a command for the shell there
        if not _PYTHON.fullmatch(self._options.python) or self._options.python.startswith("-"):
            raise UsageError(
                f"ssh: the option python may have letters, digits and . _ / + - only, got '{self._options.python}'."
                " Put arguments and variables into a script there and name that."
            )

    @classmethod
    def found(cls, config: Path | None = None) -> list[str]:
        """The hosts that ssh's configuration names, without its patterns and the files it includes.

        Args:
            config: the file; ~/.ssh/config unless given.
        """
        try:
            lines = (config or Path.home() / ".ssh" / "config").read_text(encoding="utf-8").splitlines()
        except (OSError, RuntimeError, UnicodeDecodeError):  # none, no home, or not to be read
            return []
        words = [line.replace("=", " ", 1).split() for line in lines]
        hosts = [host for line in words if line and line[0].lower() == "host" for host in line[1:]]
        return [f"ssh:{host}" for host in dict.fromkeys(hosts) if _ADDRESS.fullmatch(host)]

    def open(self) -> AgentPlace:
        """Log in, start the program there and keep the connection."""
        options = self._options
        return AgentPlace(
            Start(
                name=f"ssh:{self._argument}",
                command=self.command(),
                silence_seconds=options.silence_seconds,
                reason=lambda ended: connection_reason(ended, self._address.host),
                hello={"folder": options.folder, "python": [options.python]},
            )
        )

    def command(self) -> list[str]:
        """The arguments of ssh: no question is asked, every host key is checked, nothing is forwarded."""
        options, address = self._options, self._address
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(options.connect_seconds),
            "ServerAliveInterval": "10",
            "ServerAliveCountMax": "3",
            "LogLevel": "ERROR",
            "RequestTTY": "no",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            # a shared connection in the background would outlive us and hold our pipes
            "ControlMaster": "no",
            "ControlPath": "none",
        }
        if options.known_hosts is not None:
            settings["UserKnownHostsFile"] = _quoted(options.known_hosts)
            settings["GlobalKnownHostsFile"] = "/dev/null"
        if options.identity is not None:
            settings["IdentitiesOnly"] = "yes"
        port = options.port or address.port
        return [
            "ssh",
            *(["-F", options.config] if options.config is not None else []),
            *(part for key, value in settings.items() for part in ("-o", f"{key}={value}")),
            *(["-i", options.identity] if options.identity is not None else []),
            *(["-p", str(port)] if port is not None else []),
            *(["-l", address.user] if address.user is not None else []),
            "--",
            address.host,
            f"{options.python} -c '{BOOTSTRAP}'",
        ]


def address_of(text: str) -> Address:
    """The parts of "[user@]host[:port]".

    >>> address_of("pi@raspberrypi:2222")
    Address(user='pi', host='raspberrypi', port=2222)

    Raises:
        UsageError: it is something else.
    """
    found = _ADDRESS.fullmatch(text)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 1 <= port <= _PORTS):
        raise UsageError(f"'ssh:{text}' is no address. Write ssh:user@host or ssh:user@host:port, ssh:pi@raspberrypi.")
    return Address(found["user"], found["host"].strip("[]"), port)


def connection_reason(ended: Ended, host: str) -> str | None:
    """Why ssh ended, in a sentence; None where it is the program there that did."""
    if ended.code != _CANNOT_CONNECT:
        return None
    said = " ".join(ended.said.split())
    last = ended.said.strip().splitlines()[-1].strip().rstrip(".") if ended.said.strip() else "it said nothing"
    if ended.greeted:
        broke = [line.strip().rstrip(".") for line in ended.said.splitlines() if _BROKE.search(line)]
        if broke:
            return f"the connection broke ({broke[-1]}). Results so far are kept; look at the network and try again."
        # ssh says nothing when a signal ended the command there
        return (
            "the program there was killed, as its system does when memory runs out. Results so far are kept; look at"
            " the device and try again."
        )
    for words, meaning in _REASONS:
        if any(word in said for word in words):
            return meaning.format(host=host, last=last)
    return f"ssh cannot connect: {last}."


_REASONS = (
    (
        ("REMOTE HOST IDENTIFICATION HAS CHANGED",),
        "its host key is not the one that is known: it was set up anew, or something else answers in its place. If you"
        " are sure, remove the old key with `ssh-keygen -R {host}` and connect once with `ssh {host}`.",
    ),
    (
        ("Host key verification failed", "host key is known"),
        "its host key is not known here. Connect once with `ssh {host}`, compare the fingerprint and accept it.",
    ),
    (
        ("UNPROTECTED PRIVATE KEY",),
        "the private key may be read by others, so ssh ignores it. Run `chmod 600` on it.",
    ),
    (
        ("Permission denied", "Too many authentication failures"),
        "it refuses the login ({last}). A key without a question is needed: `ssh-copy-id {host}`, or set the device's"
        " option identity.",
    ),
    (("Connection refused",), "no ssh server answers there ({last}). Start it, or set the port."),
    (
        ("Could not resolve hostname",),
        "there is no host of this name ({last}). Check the name, or give the address.",
    ),
    (
        ("timed out", "No route to host", "unreachable"),
        "it does not answer ({last}). Is it on, and in the same network?",
    ),
    (
        ("Connection closed by", "Connection reset by", "kex_exchange_identification"),
        "it closes the connection before the login ({last}). Look at the log of its ssh server.",
    ),
)


def _quoted(path: str) -> str:
    """A path as one value of an option of ssh, where blanks separate values and % begins a token."""
    if '"' in path or "\n" in path:
        raise UsageError(f"ssh: the option known_hosts cannot be a path with a quote in it, got {path!r}.")
    return '"' + path.replace("%", "%%") + '"'
