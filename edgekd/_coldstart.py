"""Load a model and run it once in a process of its own; times and peak memory as one JSON line on stdout.

Started as a file by `measure.cold_start`, never imported: it takes nothing from edgekd, so that what a user's
own small program would pay is what is measured.
"""

import json
import sys
import time
from collections.abc import Sequence


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far."""
    try:
        # not ru_maxrss: Linux hands the parent's value on to a child
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _peak_elsewhere()


def _peak_elsewhere() -> int:
    import psutil

    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def main(arguments: Sequence[str]) -> None:
    """Arguments: model file, .npz of the feeds, threads, provider, cores as "0,1" or ""."""
    model, feeds_file, threads, provider, cores = arguments
    import os

    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    import numpy as np
    import onnxruntime

    with np.load(feeds_file) as archive:
        feeds = {name: archive[name] for name in archive.files}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    baseline = peak_rss_bytes()
    started = time.perf_counter_ns()
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    loaded = time.perf_counter_ns()
    session.run(None, feeds)
    first = time.perf_counter_ns()
    result = {
        "load_ms": (loaded - started) / 1e6,
        "first_ms": (first - loaded) / 1e6,
        "peak_bytes": peak_rss_bytes(),
        "baseline_bytes": baseline,
        "provider_used": session.get_providers()[0],
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
