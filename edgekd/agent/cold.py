"""Load a model and run it once in a process of its own; times and peak memory as one JSON line on stdout.

Started as a file, never imported: it takes nothing but numpy and onnxruntime, so that what a user's own small program
would pay is what is measured. Argument: a JSON file {"model", "inputs": {name: .npy}, "threads", "provider",
"provider_options", "cores", "allow_cpu_fallback"}.
"""

from __future__ import annotations

import json
import sys
import time


def peak_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell."""
    try:
        # not ru_maxrss: Linux hands the parent's value on to a child
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def main(request_file: str) -> None:
    """Do what the request asks and say how long it took."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    import os

    if request["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(request["cores"]))
    import numpy as np
    import onnxruntime

    imported = time.monotonic_ns()
    feeds = {name: np.load(path, allow_pickle=False) for name, path in request["inputs"].items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(request["threads"])
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = [(request["provider"], request["provider_options"])]
    if request["allow_cpu_fallback"] and request["provider"] != "CPUExecutionProvider":
        providers.append(("CPUExecutionProvider", {}))
    baseline = peak_bytes()
    started = time.perf_counter_ns()
    session = onnxruntime.InferenceSession(request["model"], options, providers=providers)
    loaded = time.perf_counter_ns()
    session.run(None, feeds)
    first = time.perf_counter_ns()
    result = {
        "imported_ns": imported,
        "load_ms": (loaded - started) / 1e6,
        "first_ms": (first - loaded) / 1e6,
        "peak_bytes": peak_bytes(),
        "baseline_bytes": baseline,
        "provider_used": session.get_providers()[0],
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
