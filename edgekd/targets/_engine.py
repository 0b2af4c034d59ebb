"""Build a TensorRT engine from an ONNX file, ahead of time where the library allows it, and load one.

TensorRT for RTX compiles for a named compute capability on a machine without a GPU; TensorRT compiles for the GPU it
runs on. Which of the two applies is asked of the library. The engine lies beside a `.json` that says what it is
bound to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from edgekd.agent.cuda import CudaError, Driver
from edgekd.agent.engines import kept_engine
from edgekd.agent.gpu import engine_fingerprint
from edgekd.errors import BackendMissing, GateFailed, StorageError, UsageError
from edgekd.spec import TensorSpec
from edgekd.targets._base import Built
from edgekd.targets._modelfile import read_model
from edgekd.targets._trt_library import Messages, messages, trt_library
from edgekd.targets._trt_network import ParsedNetwork, parse
from edgekd.targets._trt_runner import TensorRTRunner, cuda_capability

__all__ = [
    "TensorRTRunner",
    "build_engine",
    "compute_capabilities",
    "gpu_facts",
    "parse",
    "ready_engine",
    "trt_library",
]


def compute_capabilities() -> list[str]:
    """Compute capabilities that the installed TensorRT builds for without such a GPU, "8.6"; empty when it needs one.

    Raises:
        BackendMissing: no TensorRT.
    """
    members = getattr(trt_library()[0], "ComputeCapability", None)
    numbers = [name[2:] for name in getattr(members, "__members__", {}) if re.fullmatch(r"SM\d{2,3}", name)]
    return [f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int)]


def build_engine(
    onnx_path: Path,
    *,
    compute_capability: str,
    batch: tuple[int, int, int],
    out: Path,
    timing_cache: Path | None = None,
) -> Built:
    """Build an engine for one compute capability and write it into a folder.

    Args:
        onnx_path: a float or Q/DQ file; its element types are the engine's.
        compute_capability: of the GPU it will run on, "8.6".
        batch: smallest, most frequent and largest size of a dynamic first dimension; 1 <= min <= opt <= max.
        out: folder for `<model>-<library>-<version>-sm86.engine` and its `.json`.
        timing_cache: file with kernel timings to start from and to update; a missing one is made. A library that
            builds ahead of time has no GPU to time on and leaves it alone.

    Raises:
        UsageError: a compute capability that the library cannot build for, or sizes out of order.
        BackendMissing: no TensorRT, or it needs a GPU of that compute capability and there is none.
        ModelFileError: the ONNX file is corrupt.
        GateFailed: TensorRT refuses the graph or fails to build it; the message carries its reason.
        StorageError: the disk refused.
    """
    _, library, version = trt_library()
    _check_batch(batch)
    _check_capability(compute_capability)
    network = parse(onnx_path)
    with messages() as said:
        start = timing_cache.read_bytes() if timing_cache is not None and timing_cache.is_file() else b""
        plan, timings = _plan(network, compute_capability, batch, start, said, onnx_path)
    if timing_cache is not None and timings:
        _write(timing_cache, timings)
    fingerprint: dict[str, Any] = {
        "library": library,
        "version": version,
        "compute_capability": compute_capability,
        "batch_profile": list(batch),
        "precision": network.precision,
        "onnx_sha256": _sha256(onnx_path),
    }
    short = ".".join(version.split(".")[:3])
    name = f"{onnx_path.stem}-{library}-{short}-sm{compute_capability.replace('.', '')}.engine"
    sidecar = {
        "fingerprint": fingerprint,
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "inputs": [spec.model_dump() for spec in network.inputs],
        "outputs": [spec.model_dump() for spec in network.outputs],
    }
    _write(out / f"{name}.json", json.dumps(sidecar, indent=2).encode())
    _write(out / name, plan)  # last: an engine never stands without its sidecar
    return Built(path=out / name, fingerprint=fingerprint)


def ready_engine(
    onnx_path: Path, *, gpu: Mapping[str, Any], batch: tuple[int, int, int], folder: Path | None = None
) -> tuple[Built, list[str]]:
    """The engine of an ONNX file for one GPU: the one kept beside it if it fits, else a new one, with messages.

    Nothing that lies there is an error: an engine for another GPU, library, driver, file or batch, a damaged engine
    and damaged kernel timings are each told in one sentence, and it is built again. Several processes take turns.

    Args:
        onnx_path: a float or Q/DQ file.
        gpu: what `gpu_facts` says, or a GPU that is not here where the library builds ahead of time.
        batch: smallest, most frequent and largest size of a dynamic first dimension.
        folder: where engines are kept; beside the file unless given.

    Raises:
        UsageError, BackendMissing, ModelFileError, GateFailed, StorageError: as `build_engine`.
    """
    _, library, version = trt_library()
    capability = str(gpu["compute_capability"])
    _check_batch(batch)
    _check_capability(capability)
    wanted = engine_fingerprint(gpu, library, version, onnx_sha256=_sha256(onnx_path), batch=batch)
    facts: dict[str, Any] = {}

    def make(timings: bytes) -> tuple[bytes, bytes]:
        network = parse(onnx_path)
        facts["inputs"] = [spec.model_dump() for spec in network.inputs]
        facts["outputs"] = [spec.model_dump() for spec in network.outputs]
        with messages() as said:
            return _plan(network, capability, batch, timings, said, onnx_path)

    place = folder if folder is not None else onnx_path.parent
    try:
        kept = kept_engine(place, onnx_path.stem, wanted, make, facts=facts)
    except OSError as error:
        raise _unwritten(place, error) from error
    return Built(path=kept.path, fingerprint=kept.sidecar["fingerprint"]), kept.messages


def gpu_facts() -> dict[str, Any]:
    """Name, compute capability and driver of this machine's first GPU, as the CUDA driver has them.

    Raises:
        BackendMissing: no driver or no GPU.
    """
    try:
        return Driver().facts()
    except CudaError as error:
        raise BackendMissing(f"A GPU is needed here: {error}.") from error


def _check_batch(batch: tuple[int, int, int]) -> None:
    low, usual, high = batch
    if not 1 <= low <= usual <= high:
        raise UsageError(f"batch must be (min, opt, max) with 1 <= min <= opt <= max, got {batch}.")


def _check_capability(compute_capability: str) -> None:
    _, library, version = trt_library()
    if not re.fullmatch(r"\d{1,2}\.\d", compute_capability):
        raise UsageError(f"compute_capability must be like '8.6', got '{compute_capability}'.")
    known = compute_capabilities()
    if known and compute_capability not in known:
        raise UsageError(
            f"{library} {version} does not build for compute capability {compute_capability}. It builds for"
            f" {', '.join(known)}. For another GPU, build with the tensorrt package on a machine that has that GPU."
        )
    if not known and cuda_capability() != compute_capability:
        raise BackendMissing(
            f"{library} {version} builds only for the GPU of this machine ({cuda_capability() or 'none'}), not for"
            f" compute capability {compute_capability}. Build there, or install tensorrt-rtx to build ahead of time."
        )


def _plan(
    network: ParsedNetwork,
    compute_capability: str,
    batch: tuple[int, int, int],
    timings: bytes,
    said: Messages,
    onnx_path: Path,
) -> tuple[bytes, bytes]:
    """The serialized engine, and the kernel timings afterwards: empty from a library that has no GPU to time on."""
    if network.handle is None:
        raise RuntimeError("only a network that was just parsed can be built")
    builder, definition, _ = network.handle
    config = builder.create_builder_config()
    accepted = _set_capability(config, compute_capability)
    accepted = accepted and _set_profile(builder, config, network.inputs, batch, onnx_path)
    timed = accepted and not compute_capabilities() and _set_timings(config, timings)
    plan = builder.build_serialized_network(definition, config) if accepted else None
    if plan is None:
        raise GateFailed(
            f"{onnx_path}: TensorRT could not build an engine for compute capability {compute_capability}, batch"
            f" {batch[0]} to {batch[2]}: {said.text()}.{_turing_hint(compute_capability, network)}"
        )
    return bytes(plan), bytes(config.get_timing_cache().serialize()) if timed else b""


def _set_timings(config: Any, timings: bytes) -> bool:
    """Kernel timings to start from; those of another GPU or version are no error: the builder times again."""
    for content in (timings, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
    return False


def _turing_hint(compute_capability: str, network: ParsedNetwork) -> str:
    # TensorRT for RTX 1.7 has no float32 matrix product for Turing, not even behind int8 inputs
    if compute_capability == "7.5" and network.precision.endswith("float32"):
        return " Compute capability 7.5 wants the float rest in float16; export it so."
    return ""


def _set_capability(config: Any, compute_capability: str) -> bool:
    if not compute_capabilities():
        return True
    member = getattr(trt_library()[0].ComputeCapability, f"SM{compute_capability.replace('.', '')}")
    config.num_compute_capabilities = 1
    return bool(config.set_compute_capability(member, 0))


def _set_profile(
    builder: Any, config: Any, inputs: Sequence[TensorSpec], batch: tuple[int, int, int], onnx_path: Path
) -> bool:
    """One optimization profile for the inputs with a dynamic batch; none when every shape is fixed."""
    dynamic = [spec for spec in inputs if any(isinstance(size, str) for size in spec.shape)]
    if not dynamic:
        return True
    profile = builder.create_optimization_profile()
    for spec in dynamic:
        rest = [size for size in spec.shape[1:] if isinstance(size, int)]
        if len(rest) != len(spec.shape) - 1:
            raise UsageError(
                f"{onnx_path}: input '{spec.name}' {spec.shape} is dynamic beyond its batch. Export it with a fixed"
                " height and width."
            )
        profile.set_shape(spec.name, *((size, *rest) for size in batch))
    return int(config.add_optimization_profile(profile)) >= 0


def _sha256(path: Path) -> str:
    """Of the file and of the tensors it keeps in files beside it."""
    digest = hashlib.sha256(path.read_bytes())
    model = read_model(path, external_data=False)
    tensors = (tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL)
    for name in sorted(
        {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    ):
        digest.update((path.parent / name).read_bytes())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: cannot be written: {error.strerror}. Free some space or choose another folder.")
