"""A device behind ssh: a real OpenSSH server on a loopback port whose environment is this machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_ssh import SshServer, free_port, script

from edgekd.devices._agent_place import AgentPlace
from edgekd.devices._base import open_place
from edgekd.devices._place import Place, SessionSettings, Timing
from edgekd.devices.ssh import Address, Ssh, address_of
from edgekd.errors import BackendMissing, StorageError, UsageError

SESSION = SessionSettings(cores=None)
ENDLESS = Timing(queries=10**9, max_seconds=600.0, warmup_max_seconds=0.1)


def opened(server: SshServer, there: Path, **options: Any) -> Place:
    return open_place(server.name, server.options(folder=str(there), **options))


def agent_of(place: Place) -> int:
    assert isinstance(place, AgentPlace)
    return int(place._channel.hello["pid"])


def test_answers_are_those_of_this_machine(
    server: SshServer, there: Path, model: Path, feeds: dict[str, np.ndarray], gone: Callable[[Path], None]
) -> None:
    others = [{"x": feeds["x"] * scale} for scale in (1.0, -2.0, 0.0)]
    with opened(server, there) as far, open_place("cpu") as near:
        for place in (far, near):
            place.put({"nested/m.onnx": model})
        answers = far.run("nested/m.onnx", others, SESSION)
        expected = near.run("nested/m.onnx", others, SESSION)
        about, here = far.about(), near.about()
    assert [list(one) for one in answers] == [["y"]] * 3
    assert all(np.array_equal(a["y"], b["y"]) for a, b in zip(answers, expected, strict=True))
    assert not answers[2]["y"].any()
    assert (about.machine, about.runtime_version, about.emulated) == (here.machine, here.runtime_version, False)
    gone(there)


def test_measures_and_starts_cold_and_places_nodes(
    server: SshServer, there: Path, model: Path, feeds: dict[str, np.ndarray]
) -> None:
    with opened(server, there) as place:
        place.put({"m.onnx": model})
        timing = Timing(queries=30, warmup_max_seconds=0.2)
        measured = place.measure({"a": "m.onnx", "b": "m.onnx"}, feeds, session=SessionSettings(), timing=timing)
        cold = place.cold("m.onnx", feeds, session=SESSION, repeats=1)
        nodes = place.placement("m.onnx", feeds, session=SESSION, runs=3)
    assert [len(one.samples_ms) for one in measured.models.values()] == [30, 30]
    assert len(cold) == 1
    assert cold[0].process_ms > cold[0].first_ms > 0
    assert [(one.node, one.op, one.provider) for one in nodes] == [("product", "MatMul", "CPUExecutionProvider")]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("raspberrypi", Address(None, "raspberrypi", None)),
        ("pi@10.0.0.7:2222", Address("pi", "10.0.0.7", 2222)),
        ("a_b@[fe80::1%eth0]:22", Address("a_b", "fe80::1%eth0", 22)),
    ],
)
def test_address_is_taken_apart(text: str, address: Address) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=touch /tmp/x",
        "pi@-oProxyCommand=x",
        "pi@host;reboot",
        "pi@host$(x)",
        "a b",
        "host:0",
        "h:99999",
    ],
)
def test_address_that_could_be_something_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no address. Write ssh:user@host"):
        address_of(text)


@pytest.mark.parametrize("python", ["python3; reboot", "$(reboot)", "-c", "a b", "", "py'thon"])
def test_python_that_a_shell_could_read_otherwise_is_refused(python: str) -> None:
    with pytest.raises(UsageError, match="the option python may have letters"):
        Ssh(Ssh.Options(python=python), "host")


def test_command_asks_nothing_checks_keys_and_has_no_path_of_the_device() -> None:
    options = Ssh.Options(folder="/there/$(reboot)", known_hosts="/a b/known%h", port=23)
    command = Ssh(options, "pi@host:22").command()
    assert command[0] == "ssh"
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", 'UserKnownHostsFile="/a b/known%%h"'} <= set(command)
    assert command[command.index("-p") + 1] == "23"
    assert command[-3:-1] == ["--", "host"]
    assert command[-1].startswith("python3 -c 'import sys")
    assert not any("reboot" in part for part in command)
    assert command[-1].count("'") == 2


def test_unknown_host_key_is_refused(server: SshServer, there: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    with pytest.raises(BackendMissing, match=r"its host key is not known here. Connect once with `ssh 127.0.0.1`"):
        opened(server, there, known_hosts=str(tmp_path / "empty"))
    assert list(there.iterdir()) == []


def test_changed_host_key_is_refused(server: SshServer, there: Path, tmp_path: Path) -> None:
    (tmp_path / "known").write_text(server.known_as("other_key"))
    with pytest.raises(BackendMissing, match="its host key is not the one that is known"):
        opened(server, there, known_hosts=str(tmp_path / "known"))
    assert list(there.iterdir()) == []


def test_port_where_nobody_listens_is_named(server: SshServer) -> None:
    with pytest.raises(BackendMissing, match=r"no ssh server answers there .*Connection refused"):
        open_place(server.name, server.options(port=free_port()))


def test_login_that_is_refused_is_named(server: SshServer) -> None:
    with pytest.raises(BackendMissing, match=r"it refuses the login .*Permission denied \(publickey.*ssh-copy-id"):
        open_place(server.name, server.options(identity=str(server.folder / "other_key")))


def test_name_that_is_no_host_is_named(server: SshServer) -> None:
    with pytest.raises(BackendMissing, match=r"there is no host of this name|cannot connect|does not answer"):
        open_place("ssh:nobody.invalid", server.options())


def test_missing_python_is_named(server: SshServer) -> None:
    with pytest.raises(BackendMissing, match=r"it has no Python .*Install python3 there, or set the device's option"):
        open_place(server.name, server.options(python="/nowhere/python3"))


def test_python_without_numpy_is_named(server: SshServer, tmp_path: Path) -> None:
    import sys

    bare = script(tmp_path / "bare", f'exec {sys.executable} -I -S "$@"')
    with pytest.raises(
        BackendMissing, match=r"cannot import numpy: ModuleNotFoundError.*pip install numpy onnxruntime"
    ):
        open_place(server.name, server.options(python=bare))


def test_python_without_onnxruntime_is_named(server: SshServer, there: Path, tmp_path: Path) -> None:
    import sys

    packages = tmp_path / "packages"
    packages.mkdir()
    above = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (above / name).exists():
            (packages / name).symlink_to(above / name)
    half = script(tmp_path / "half", f'PYTHONPATH={packages} exec {sys.executable} -S "$@"')
    with pytest.raises(BackendMissing, match="cannot import onnxruntime: ModuleNotFoundError"):
        opened(server, there, python=half)
    assert list(there.iterdir()) == []


def test_old_python_is_named(server: SshServer, tmp_path: Path) -> None:
    import sys

    # no such interpreter can be installed beside this one: one that calls itself so answers in its place
    old = script(
        tmp_path / "old", f'exec {sys.executable} -c "import sys; sys.version_info = (3, 6); exec(sys.argv[2])" "$@"'
    )
    with pytest.raises(BackendMissing, match=r"python 3.6 is too old; 3.8 or newer is needed"):
        open_place(server.name, server.options(python=old))


def test_shell_that_greets_does_no_harm(server: SshServer, there: Path, tmp_path: Path) -> None:
    import sys

    chatty = script(tmp_path / "chatty", f'echo "Welcome!"; exec {sys.executable} "$@"')
    with opened(server, there, python=chatty) as place:
        assert place.about().runtime == "onnxruntime"


def test_folder_that_is_not_there_is_named(server: SshServer) -> None:
    with pytest.raises(StorageError, match=r"no folder can be made there: No such file.*option folder"):
        open_place(server.name, server.options(folder="/nowhere/at/all"))


def test_device_that_says_nothing_is_left(server: SshServer, tmp_path: Path) -> None:
    sleeper = script(tmp_path / "sleeper", "exec sleep 60")
    began = time.monotonic()
    with pytest.raises(BackendMissing, match="nothing came from it for 1 s; it hangs, or is slower"):
        open_place(server.name, server.options(python=sleeper, silence_seconds=1.0))
    assert time.monotonic() - began < 15.0


def test_device_that_hangs_in_the_middle_is_left(
    server: SshServer, there: Path, model: Path, feeds: dict[str, np.ndarray], gone: Callable[[Path], None]
) -> None:
    with opened(server, there, silence_seconds=2.0) as place:
        place.put({"m.onnx": model})
        agent = agent_of(place)
        timer = threading.Timer(0.5, os.kill, (agent, signal.SIGSTOP))
        timer.start()
        with pytest.raises(BackendMissing, match="nothing came from it for 2 s"):
            place.measure({"a": "m.onnx"}, feeds, session=SESSION, timing=ENDLESS)
    os.kill(agent, signal.SIGCONT)
    gone(there)  # awake again, it finds nobody who listens


def test_program_that_is_killed_is_named_and_its_folder_swept_by_the_next(
    server: SshServer, there: Path, model: Path, feeds: dict[str, np.ndarray], gone: Callable[[Path], None]
) -> None:
    with opened(server, there) as place:
        place.put({"m.onnx": model})
        timer = threading.Timer(0.5, os.kill, (agent_of(place), signal.SIGKILL))
        timer.start()
        with pytest.raises(
            BackendMissing, match=r"the program there was killed, as its system .*Results so far are kept"
        ):
            place.measure({"a": "m.onnx"}, feeds, session=SESSION, timing=ENDLESS)
        with pytest.raises(BackendMissing, match="was killed"):
            place.about()
    assert len(list(there.iterdir())) == 1
    with opened(server, there) as place:
        assert isinstance(place, AgentPlace)
        assert len(place._channel.hello["swept"]) == 1
        assert len(list(there.iterdir())) == 1
    gone(there)


def test_connection_that_breaks_while_measuring_is_named(
    server: SshServer, there: Path, model: Path, feeds: dict[str, np.ndarray], gone: Callable[[Path], None]
) -> None:
    with opened(server, there) as place:
        place.put({"m.onnx": model})
        timer = threading.Timer(0.5, server.cut)
        timer.start()
        with pytest.raises(BackendMissing, match=r"the connection broke .*Results so far are kept"):
            place.measure({"a": "m.onnx"}, feeds, session=SESSION, timing=ENDLESS)
    gone(there)


def test_connection_that_breaks_while_sending_is_named(
    server: SshServer, there: Path, tmp_path: Path, gone: Callable[[Path], None]
) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(1 << 30)
    with opened(server, there) as place:
        timer = threading.Timer(0.7, server.cut)
        timer.start()
        with pytest.raises(BackendMissing, match="the connection broke"):
            place.put({"large.bin": large})
    gone(there)


def test_no_room_is_named_and_no_half_file_stays(server: SshServer, there: Path, model: Path, tmp_path: Path) -> None:
    import sys

    large = tmp_path / "large.bin"
    large.write_bytes(bytes(3_000_000))
    # files may have 1 MiB there
    small = script(tmp_path / "small", f'ulimit -f 2048; exec {sys.executable} "$@"')
    with opened(server, there, python=small) as place:
        with pytest.raises(StorageError, match=r"large.bin \(3000000 bytes\) cannot be written there: File too large"):
            place.put({"large.bin": large})
        assert [file.name for file in there.rglob("*.bin*")] == []
        place.put({"m.onnx": model})  # and the device is still there
        assert len(list(there.rglob("m.onnx"))) == 1


def test_full_disk_is_named(server: SshServer, there: Path, tmp_path: Path) -> None:
    import subprocess

    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(there)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs root to make a small disk")
    try:
        large = tmp_path / "large.bin"
        large.write_bytes(bytes(3_000_000))
        with opened(server, there) as place:
            with pytest.raises(StorageError, match=r"No space left on device; .* bytes are free there. Make room"):
                place.put({"large.bin": large})
            assert [file.name for file in there.rglob("*.bin*")] == []
    finally:
        subprocess.run(["umount", "-l", str(there)], check=True)
