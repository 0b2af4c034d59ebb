"""Run an ONNX file on request: the process that an emulated arm64 Python executes.

It knows the standard library, numpy and ONNX Runtime only. Arguments: the file and the number of threads. It prints a
line of JSON about itself, then answers each line {"feeds": npz, "out": npz} with a line {} or {"error": text}.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime


def _session(path: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _answer(session: onnxruntime.InferenceSession, request: dict[str, str]) -> dict[str, str]:
    try:
        with np.load(request["feeds"], allow_pickle=False) as feeds:
            values = session.run(None, {name: feeds[name] for name in feeds.files})
    except Exception as error:  # whatever it is, the process that asked shows it
        return {"error": f"{type(error).__name__}: {error}"}
    np.savez(request["out"], **{f"output{index}": value for index, value in enumerate(values)})
    return {}


def _main(path: str, threads: str) -> None:
    try:
        session = _session(path, int(threads))
    except Exception as error:
        _tell({"error": str(error)})
        return
    _tell({"version": onnxruntime.__version__, "provider": session.get_providers()[0]})
    for line in sys.stdin:
        _tell(_answer(session, json.loads(line)))


def _tell(message: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
