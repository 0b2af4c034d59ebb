"""A stand-in for `adb` and the phone behind it, for the tests: a folder is the phone's storage, `sh` its shell.

`phone(folder)` lays out the storage, the commands that only a phone has, and the program `adb`. Its runner is a
stand-in for `onnxruntime_perf_test` that really runs the model with onnxruntime and prints and writes what the real
one does. What goes wrong is chosen by the file `fault`: its words are looked up below.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERIAL = "R58N123"
PROPERTIES = {
    "ro.product.manufacturer": "Stand-in",
    "ro.product.model": "Phone 1",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
    "ro.soc.model": "",
}
THERMAL = """IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=84.2, mType=0, mName=CPU, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue=57.9, mType=0, mName=CPU, mStatus=0}}
\tTemperature{{mValue=34.351, mType=3, mName=SKIN, mStatus=0}}
\tTemperature{{mValue=812, mType=7, mName=ibat, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=fan}}
"""
BATTERY = "Current Battery Service state:\n  USB powered: true\n  level: 84\n  temperature: 301\n"


def phone(folder: Path) -> dict[str, str]:
    """Lay the phone out in a folder; gives the options of the adb device that reach it."""
    root = folder / "phone"
    (root / "data/local/tmp").mkdir(parents=True)
    for core, khz in enumerate([1_800_000] * 4 + [2_400_000] * 2 + [3_000_000] * 2):
        clocks = root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        clocks.mkdir(parents=True)
        for name, value in {
            "cpuinfo_max_freq": khz,
            "scaling_max_freq": khz,
            "scaling_cur_freq": khz // 2,
            "scaling_governor": "schedutil",
        }.items():
            (clocks / name).write_text(f"{value}\n")
    set_thermal(root, 0)
    (root / "battery").write_text(BATTERY)
    commands = folder / "commands"
    commands.mkdir()
    lines = "\n".join(f"[{key}]: [{value}]" for key, value in PROPERTIES.items())
    _program(commands / "getprop", f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\n")
    _program(commands / "dumpsys", f"#!/bin/sh\ncat '{root}'/$(echo $1 | sed s/service//)\n")
    _program(commands / "settings", "#!/bin/sh\necho 0\n")
    _program(commands / "taskset", f'#!/bin/sh\necho $1 >> "{root}/masks"\nshift\nexec "$@"\n')
    here = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    python = sys.executable
    # without site packages it starts in half the time
    _program(folder / "adb", f"#!{python} -S\n{here}import fake_adb\nfake_adb.adb({str(folder)!r}, sys.argv[1:])\n")
    _program(
        folder / "runner", f"#!{python}\n{here}import fake_adb\nfake_adb.perf_test(sys.argv[1:], {str(folder)!r})\n"
    )
    return {"adb": str(folder / "adb"), "runner": str(folder / "runner"), "verifier": str(folder / "runner")}


def set_thermal(root: Path, status: int) -> None:
    """What `dumpsys thermalservice` says from now on."""
    (root / "thermal").write_text(THERMAL.format(status=status))


def fault(folder: Path, words: str) -> None:
    """What goes wrong from now on."""
    (folder / "fault").write_text(words)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _fault(folder: Path) -> str:
    file = folder / "fault"
    return file.read_text() if file.is_file() else ""


def adb(place: str, words: list[str]) -> None:
    """The program: `adb [-s SERIAL] get-state|shell|push|pull ...`."""
    folder = Path(place)
    root, wrong = folder / "phone", _fault(folder)
    serial = SERIAL
    if words[:1] == ["-s"]:
        serial, words = words[1], words[2:]
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    sentences = {
        "unauthorized": "adb: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set",
        "offline": "adb: device offline",
        "none": "adb: no devices/emulators found",
        "several": "adb: more than one device/emulator",
        "permissions": "adb: insufficient permissions for device: user in plugdev group; are your udev rules wrong?",
    }
    if wrong in sentences:
        _stop(sentences[wrong])
    if serial != SERIAL:
        _stop(f"adb: device '{serial}' not found")
    if wrong == "hang":
        time.sleep(30)
    if words == ["get-state"]:
        _say("device")
    elif words[0] == "shell":
        _shell(folder, root, words[1:], wrong)
    elif words[0] == "push":
        _copied(Path(words[1]), Path(_local(root, words[2])), wrong)
    elif words[0] == "pull":
        _copied(Path(_local(root, words[1])), Path(words[2]), "")
    else:
        _stop(f"adb: unknown command {words[0]}")


def _shell(folder: Path, root: Path, words: list[str], wrong: str) -> None:
    text = _local(root, " ".join(words))  # the real one joins its arguments, too
    if wrong == "gone" and "test_data" not in text and "kill" not in text and "runner" in text:
        _say("edgekd-ns:1")
        _stop("")
    environment = {**os.environ, "PATH": f"{folder / 'commands'}:{os.environ['PATH']}", "PHONE_FAULT": wrong}
    if wrong == "no date":
        text = text.replace("+%s%N", "+%sN")
    done = subprocess.run(["sh", "-c", text], env=environment, capture_output=True, text=True, check=False)
    # an old phone sends carriage returns, and always ends with 0
    sys.stdout.write(done.stdout.replace("\n", "\r\n") if wrong == "old" else done.stdout)
    sys.stderr.write(done.stderr)
    sys.exit(0 if wrong == "old" else done.returncode)


def _local(root: Path, text: str) -> str:
    return re.sub(r"(?<![\w/.])/(data|sys)/", rf"{root}/\1/", text)


def _copied(source: Path, target: Path, wrong: str) -> None:
    if wrong == "full":
        _stop(f"adb: error: failed to copy '{source}' to '{target}': remote write failed: No space left on device")
    if not source.is_file():
        _stop(f"adb: error: failed to stat remote object '{source}': No such file or directory")
    data = source.read_bytes()
    if wrong == "changed":
        data = bytes([data[0] ^ 1]) + data[1:]
    target.write_bytes(data)
    _say(f"{source}: 1 file pushed, 0 skipped.")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _stop(text: str) -> None:
    sys.stderr.write(f"{text}\n" if text else "")
    sys.exit(1)


def perf_test(words: list[str], place: str) -> None:
    """The stand-in for `onnxruntime_perf_test`: real sessions, real times, its formats."""
    wrong = os.environ.get("PHONE_FAULT", "")
    if wrong == "other processor":
        sys.stderr.write(f"sh: {place}/runner: not executable: 64-bit ELF file\n")
        sys.exit(126)
    if wrong == "no library":
        sys.stderr.write('CANNOT LINK EXECUTABLE "runner": library "libonnxruntime.so" not found\n')
        sys.exit(1)
    if wrong == "crash":
        os.kill(os.getpid(), 11)
    options = _options(words)
    try:
        _timed(options, wrong)
    except Exception as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(255)


def _options(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        found[rest[0]], rest = rest[1], rest[2:]
    found["model"], found["result"] = rest[0], rest[1] if len(rest) > 1 else ""
    return found


def _timed(options: Mapping[str, str], wrong: str) -> None:
    import numpy as np
    import onnxruntime

    tensors = _tensor_class()
    if options["-e"] != "cpu":
        raise RuntimeError(f"{options['-e'].upper()} is not supported in this build\n")
    model = Path(options["model"])
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = int(options["-x"]), int(options["-y"])
    if "-p" in options:
        settings.enable_profiling, settings.profile_file_prefix = True, options["-p"]
    begun = time.perf_counter()
    session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    data_sets = [entry for entry in model.parent.iterdir() if entry.is_dir()]
    if len(data_sets) != 1:
        raise RuntimeError(f"there is no test data for model {model.parent.name}")
    feeds = {}
    for file in sorted(data_sets[0].glob("input_*.pb")):
        tensor = tensors.FromString(file.read_bytes())
        feeds[tensor.name] = np.frombuffer(tensor.raw_data, np.float32).reshape(tensor.dims)
    times = []
    for _ in range(1 + int(options["-r"])):
        start = time.perf_counter()
        answers = session.run(None, feeds)
        times.append(time.perf_counter() - start)
    if os.environ.get("ORT_DEBUG_NODE_IO_DUMP_OUTPUT_DATA") == "1" and wrong != "no dumps":
        for output, array in zip(session.get_outputs(), answers, strict=True):
            name = re.sub(r"[^A-Za-z0-9]", "_", output.name)
            file = Path(os.environ["ORT_DEBUG_NODE_IO_OUTPUT_DIR"]) / f"{name}.tensorproto"
            written = tensors(name=output.name, dims=array.shape, data_type=1, raw_data=array.tobytes())
            file.write_bytes(written.SerializeToString())
    if "-p" in options:
        session.end_profiling()
    total = sum(times[1:])
    # formats of ONNX Runtime's performance_runner.cc: six significant digits, whole milliseconds for the first run
    _say(f"Session creation time cost: {loaded - begun:.6g} s")
    _say(f"First inference time cost: {int(1000 * times[0])} ms")
    _say(f"Total inference time cost: {total:.6g} s")
    _say(f"Total inference requests: {len(times) - 1}")
    _say(f"Average inference time cost: {1000 * total / (len(times) - 1):.6g} ms")
    _say("Avg CPU usage: 99 %\nPeak working set size: 91336704 bytes")
    if options["result"]:
        kept = times[1:-1] if wrong == "row missing" else times[1:]
        with open(options["result"], "a") as file:
            for number, seconds in enumerate(kept):
                file.write(f"{model.parent.name},{seconds:.6g},91336704,99,{number}\n")


def _tensor_class() -> Any:
    """ONNX's TensorProto alone: the whole package takes longer to import than the model to run."""
    found = importlib.util.find_spec("onnx")
    assert found is not None
    assert found.submodule_search_locations is not None
    file = Path(found.submodule_search_locations[0]) / "onnx_ml_pb2.py"
    spec = importlib.util.spec_from_file_location("onnx_ml_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TensorProto
