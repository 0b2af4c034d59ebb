"""cli.main: one error boundary, help that is fast, and a process that ends well however it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from edgekd import errors
from edgekd.cli.main import app, failure_of, main

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "pydantic", "rich.table", "sklearn")
HELP_SECONDS = 0.9  # the promise is 0.3 s; a shared machine may be three times slower


def _commands() -> dict[str, typer.models.CommandInfo]:
    return {str(info.name): info for info in app.registered_commands}


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from edgekd.cli.main import main
assert main(["--help"]) == 0
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    ended = _python(code)
    assert ended.returncode == 0
    assert ended.stderr.strip() == "[]"


def test_list_imports_no_torch() -> None:
    ended = _python(
        "import sys; from edgekd.cli.main import main; main(['list']); print('torch' in sys.modules, file=sys.stderr)"
    )
    assert ended.stderr.strip() == "False"
    assert "cross_entropy" in ended.stdout


def test_help_is_fast() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "edgekd.cli", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    assert min(times) < HELP_SECONDS


def test_help_names_every_verb_once_and_uncut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert len(_commands()) == 19
    for verb in _commands():
        assert sum(line.startswith(f"  {verb} ") for line in shown.splitlines()) == 1, verb
    assert "..." not in shown.split("Start:")[1]
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("verb", sorted(_commands()))
def test_help_of_a_verb_has_an_example_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"\n  edgekd {verb}" in shown
    assert "--json" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    import edgekd

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgekd {edgekd.__version__}\n"


def test_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    shown = capsys.readouterr()
    assert "No such command 'trian'" in shown.err
    assert "'train'" in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "r.toml", "--bad"], "No such option: --bad"),
        (["bench", "m.onnx", "--threads", "two"], "Invalid value for '--threads'"),
    ],
)
def test_wrong_usage_is_2_and_says_where_the_help_is(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert f"Try `edgekd {arguments[0]} --help`." in shown
    assert "Traceback" not in shown


def test_error_is_one_json_line_on_stderr_when_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "loses", "--json"]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert json.loads(shown.err) == {
        "error": {
            "type": "UsageError",
            "message": "There is no catalog 'loses'. Did you mean 'losses'?",
            "exit_code": 2,
        }
    }


def test_every_error_of_the_tree_keeps_its_exit_code() -> None:
    found = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]
    assert len(found) >= 13
    for kind in found:
        error = kind("r.toml", ["a: wrong"]) if kind is errors.RecipeError else kind("what happened")
        failure = failure_of(error)
        assert (failure.kind, failure.exit_code, failure.trace) == (kind.__name__, kind.exit_code, "")
        assert failure.message == str(error)


def test_full_disk_and_no_memory_are_no_bugs() -> None:
    full = failure_of(OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    assert (full.exit_code, full.trace) == (3, "")
    assert full.message.startswith("runs/x: No space left on device; finished stages are kept")
    memory = failure_of(MemoryError())
    assert (memory.exit_code, memory.kind) == (3, "OutOfMemory")
    torch = failure_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."))
    assert "Lower batch_size" in torch.message
    assert "99 bytes" in torch.message


def test_anything_else_is_a_bug_with_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.catalog import Catalog

    def broken(self: Catalog) -> list[str]:
        raise ZeroDivisionError("one over nothing")

    monkeypatch.setattr(Catalog, "names", broken)
    assert main(["list"]) == 70
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "one over nothing" in shown
    assert "This is a fault of edgekd" in shown
    assert main(["list", "--json"]) == 70
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["type"], error["exit_code"]) == ("ZeroDivisionError", 70)
    assert "in broken" in error["traceback"]


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekd.catalog import Catalog

    def interrupted(self: Catalog) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Catalog, "names", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted: the command was stopped before its end."


def test_sigterm_handler_is_taken_back_after_the_command() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_that_meets_a_clean_up_is_not_lost(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekd.catalog import Catalog

    class Thing:
        def __del__(self) -> None:  # what it raises, Python only prints
            signal.raise_signal(number)
            time.sleep(0)

    def names(self: Catalog) -> list[str]:
        Thing()
        time.sleep(20)
        return []

    monkeypatch.setattr(Catalog, "names", names)
    before = sys.unraisablehook
    assert main(["list"]) == code
    assert sys.unraisablehook is before
    assert "Traceback" not in capsys.readouterr().err


def _training(folder: Path) -> subprocess.Popen[str]:
    """A command that trains for hours in `folder`."""
    folder.mkdir()
    recipe = folder / "recipe.toml"
    recipe.write_text(
        'name = "stopped"\n[data]\nname = "digits"\nlimit_train = 200\n[teacher]\nmodel = "tiny"\n'
        '[teacher.train]\nepochs = 5000\n[student]\nmodel = "tiny"\n'
    )
    command = [sys.executable, "-m", "edgekd.cli", "train", str(recipe), "--out", str(folder / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_signal_stops_a_run_without_half_an_artifact(tmp_path: Path) -> None:
    wanted = {signal.SIGINT: 130, signal.SIGTERM: 143}
    started = {number: _training(tmp_path / number.name) for number in wanted}  # both at once, to save time
    for number, process in started.items():
        with process:
            assert process.stderr is not None
            lines = iter(process.stderr)
            assert any(line.startswith("[teacher] started") for line in lines)
            process.send_signal(number)
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()  # one that does not stop must not hold up everything else
        assert process.returncode == wanted[number], err
        assert not out
        assert "[teacher] stopped after" in err
        folder = tmp_path / number.name
        command = f"edgekd train {folder / 'recipe.toml'} --out {folder / 'run'}"
        assert f"the same command goes on where it stopped. Go on with: {command}" in " ".join(err.split())
        assert "Traceback" not in err
        left = [path.name for path in (tmp_path / number.name / "run").iterdir()]
        assert "run.json" in left
        assert not [name for name in left if name.endswith((".partial", ".old")) or name.startswith("teacher")]


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_reader_that_goes_away_is_quiet() -> None:
    read, end = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "edgekd.cli", "list"], stdout=end, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(end)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_ascii_terminal_gets_every_line() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        [sys.executable, "-m", "edgekd.cli", "list", "losses"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert "cross_entropy" in ended.stdout


def test_completion_knows_verbs_and_catalogs() -> None:
    def completed(words: str) -> list[str]:
        environment = {
            **os.environ,
            "_EDGEKD_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        command = [sys.executable, "-m", "edgekd.cli"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout.split()

    assert completed("edgekd tr") == ["train"]
    assert completed("edgekd list me") == ["methods"]
