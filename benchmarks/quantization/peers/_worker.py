"""What every worker does: read a job, quantize, and write down how long it took and how much memory.

A worker is a process of its own in an environment of its own, so this file needs nothing but numpy. It counts what
the quantization does, not what its imports do: those are before `run` is called, and `rss_before_bytes` says what
they hold.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Job", "run"]


@dataclass
class Job:
    """One quantization.

    Args:
        model: the float ONNX file; its one input is `image`, float32 (batch, C, H, W).
        images: calibration images, normalised, float32, shape (N, C, H, W).
        output: the int8 ONNX file to write.
        options: what distinguishes this way from the peer's other ways.
        phases: `seconds` and `cpu_seconds` of each part that `phase` has timed.
    """

    model: Path
    images: NDArray[np.float32]
    output: Path
    options: dict[str, Any]
    phases: dict[str, dict[str, float]] = field(default_factory=dict)

    def feeds(self, batch: int = 1) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The calibration images in order, as ONNX Runtime's tools want them."""
        for start in range(0, len(self.images), batch):
            yield {"image": self.images[start : start + batch]}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Write the time of the block into `phases`."""
        began, began_cpu = time.perf_counter(), time.process_time()
        yield
        self.phases[name] = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - began_cpu,
        }


def run(quantize: Callable[[Job], None], *, packages: Sequence[str]) -> None:
    """Do the job of the command line and write its record.

    Args:
        quantize: writes `Job.output`.
        packages: whose versions decide the result.
    """
    parser = argparse.ArgumentParser()
    for name in ("--model", "--images", "--output", "--record"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args()
    if "onnxruntime" in sys.modules:
        _one_thread_in_onnxruntime()
    with np.load(given.images) as stored:
        job = Job(given.model, stored["images"], given.output, given.options)
    before = _peak_rss()
    began, began_cpu = time.perf_counter(), time.process_time()
    quantize(job)
    versions = {name: importlib.metadata.version(name) for name in packages}
    record = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - began_cpu,
        "phases": job.phases,
        "peak_rss_bytes": _peak_rss(),
        "rss_before_bytes": before,
        "calibration_images": len(job.images),
        "versions": {"python": platform.python_version(), **versions},
    }
    given.record.write_text(json.dumps(record), encoding="utf-8")


def _one_thread_in_onnxruntime() -> None:
    """Give every session one thread, whoever opens it.

    Its own threads choose their processors themselves, so that pinning the process does not hold them, and they count
    as busy while they wait; tools do not let their user say how many there are.
    """
    import onnxruntime

    opened = onnxruntime.InferenceSession.__init__

    def one_thread(self: Any, source: Any, sess_options: Any = None, *others: Any, **named: Any) -> None:
        chosen = sess_options or onnxruntime.SessionOptions()
        chosen.intra_op_num_threads = 1
        opened(self, source, chosen, *others, **named)

    onnxruntime.InferenceSession.__init__ = one_thread


def _peak_rss() -> int:
    """Largest resident size so far, in bytes.

    Not `getrusage`: its maximum goes on from the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # in KiB there
    raise OSError("/proc/self/status has no VmHWM; this measures on Linux only")
