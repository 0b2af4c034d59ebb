"""`edgekd devices`: what answers, what it runs, and the exit code."""

from __future__ import annotations

import json

import pytest

from edgekd.cli.main import main
from edgekd.devices.ssh import Ssh
from edgekd.errors import UsageError
from edgekd.reachable import reachable


def test_this_machine_runs_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "cpu", "--json", "--quiet"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["devices"]
    assert (row["name"], row["reachable"], row["problem"], row["emulated"]) == ("cpu", True, "", False)
    assert "CPUExecutionProvider" in row["providers"]
    assert row["memory_bytes"] > row["cores"] > 0


def test_device_that_does_not_answer_has_its_reason_and_exit_code_4(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("edgekd.devices.ssh")
    assert main(["devices", "ssh:nobody@127.0.0.1:1", "--quiet"]) == 4
    said = capsys.readouterr().out
    assert "no ssh server answers there" in " ".join(said.split()) or "does not start" in said


def test_all_that_can_be_seen_are_listed_and_none_that_is_absent_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKD_ARM64_USERLAND", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")  # no adb
    assert main(["devices", "--json", "--quiet"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["devices"]]
    assert names == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["bogus"], "There is no device 'bogus'"),
        (["ssh:-oProxyCommand=x"], "is no address"),
        (["cpu", "--device-option", "folder"], "--device-option must be KEY=VALUE, got folder"),
        (["cpu", "--device-option", "bogus=1"], "device 'cpu': option bogus"),
        (["cpu:1"], "'cpu' takes nothing after a colon"),
    ],
)
def test_wrong_use_is_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], match: str) -> None:
    assert main(["devices", *arguments, "--quiet"]) == 2
    assert match in capsys.readouterr().err


def test_hosts_of_ssh_configuration_are_found_without_patterns(tmp_path: object) -> None:
    from pathlib import Path

    config = Path(str(tmp_path)) / "config"
    config.write_text(
        "# Host not-this\nHost pi jetson *.example ?x !not\n  HostName 10.0.0.7\nhost=orin\nMatch host x\nHost pi\n"
    )
    assert Ssh.found(config) == ["ssh:pi", "ssh:jetson", "ssh:orin"]
    assert Ssh.found(config.with_name("absent")) == []


def test_wrong_option_is_no_row() -> None:
    with pytest.raises(UsageError, match="option bogus"):
        reachable(["cpu"], options={"bogus": 1})
