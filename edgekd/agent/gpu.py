"""TensorRT on the device: an engine built or found there, run from buffers that stay, timed by the GPU's own clock.

Needs the library (`tensorrt` 10 or 11, or `tensorrt_rtx`) and the CUDA driver, nothing else: on a Jetson both come with
the system. A session has the interface of `sessions.Session`, so that everything that runs or times a model takes it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .cuda import CudaError, Driver
from .engine_session import EngineSession, GpuRefusal
from .engines import kept_engine

__all__ = ["PROVIDER", "EngineSession", "GpuRefusal", "engine_fingerprint", "model_sha256", "open_model"]

PROVIDER = "tensorrt"

_LIBRARIES = ("tensorrt", "tensorrt_rtx")
_BATCH = (1, 1, 8)
_CAPABILITY = re.compile(r"SM\d{2,3}")
_NO_DRIVER = "checkMacros.cpp::catchCudaError"
_OPTIONS = ("batch", "cuda_graph", "device", "engine_folder", "sync")


def open_model(path: Path, settings: Mapping[str, Any]) -> EngineSession:
    """Open a model with TensorRT: an ONNX file is built for this GPU, unless the engine is there already.

    Args:
        path: the ONNX file.
        settings: `SessionSettings` as plain values. Its `provider_options`: "batch" smallest, most frequent and largest
            batch, "1,1,8"; "device" number of the GPU, "0"; "cuda_graph" "1" or "0"; "sync" "spin" or "blocking";
            "engine_folder" where engines are kept, beside the model unless given.

    Raises:
        GpuRefusal: no driver, GPU or library; the graph is refused; a wrong option.
        OSError: the disk refused.
    """
    options = _options(settings)
    trt, library, version = _library()
    try:
        driver = Driver(int(options.get("device", "0")))
        facts = driver.facts()
    except CudaError as error:
        raise GpuRefusal("missing", f"TensorRT needs an NVIDIA GPU: {error}") from error
    log = _Log(trt)
    batch = _batch(options)
    wanted = engine_fingerprint(facts, library, version, onnx_sha256=model_sha256(path), batch=batch)
    folder = Path(options.get("engine_folder") or path.parent)
    capability = facts["compute_capability"]
    kept = kept_engine(folder, path.stem, wanted, lambda timings: _built(trt, log, path, capability, batch, timings))
    runtime = trt.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine(kept.plan)
    messages = list(kept.messages)
    if engine is None and not kept.built:
        # whole, and named for this machine, and still refused: what the fingerprint does not see has changed
        kept.path.unlink()
        messages = [f"{kept.path.name}: {library} does not load it ({log.text()}), so it is built again."]
        kept = kept_engine(
            folder, path.stem, wanted, lambda timings: _built(trt, log, path, capability, batch, timings)
        )
        engine = runtime.deserialize_cuda_engine(kept.plan)
    if engine is None:
        raise GpuRefusal("model", f"{library} {version} does not load the engine of {path.name}: {log.text()}")
    return EngineSession(
        trt,
        engine,
        driver,
        provider=PROVIDER,
        use_graph=options.get("cuda_graph", "1") == "1",
        sync=options.get("sync", "spin"),
        messages=messages,
        owner=(runtime, log),
    )


def engine_fingerprint(
    facts: Mapping[str, Any], library: str, version: str, *, onnx_sha256: str, batch: Tuple[int, int, int]
) -> Dict[str, Any]:
    """Everything that an engine is bound to.

    Args:
        facts: of the GPU, see `Driver.facts`.
        library, version: of TensorRT.
        onnx_sha256: of the model.
        batch: smallest, most frequent and largest.
    """
    return {
        "gpu": facts["name"],
        "compute_capability": facts["compute_capability"],
        "library": library,
        "version": version,
        "driver_major": _driver_major(facts),
        "onnx_sha256": onnx_sha256,
        "batch_profile": list(batch),
        "flags": ["strongly_typed"],
    }


def model_sha256(path: Path) -> str:
    """Of an ONNX file and of the files beside it that it names, where its large tensors may be."""
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    for file in sorted(path.parent.iterdir()):
        if file != path and file.is_file() and not file.is_symlink() and file.name.encode() in content:
            digest.update(file.read_bytes())
    return digest.hexdigest()


class _Log:
    """What TensorRT says, kept instead of printed."""

    def __init__(self, trt: Any) -> None:
        self._errors: List[str] = []
        errors = self._errors

        def log(self: Any, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                errors.append(" ".join(str(message).split()))

        # the base class is only known at run time, so the class is made by call
        self.logger: Any = type("Logger", (trt.ILogger,), {"log": log, "__init__": trt.ILogger.__init__})()

    def text(self) -> str:
        """The errors so far, without what only says that there is no driver."""
        told = [line for line in self._errors if _NO_DRIVER not in line] or self._errors
        return "; ".join(dict.fromkeys(told)) or "it gave no reason"


def _library() -> Tuple[Any, str, str]:
    reasons = []
    for name in _LIBRARIES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries do not load
            reasons.append(f"{name}: {error}")
            continue
        if hasattr(module, "Builder"):
            return module, name, str(module.__version__)
        reasons.append(f"{name}: has no Builder")
    raise GpuRefusal("missing", f"TensorRT is not installed there ({'; '.join(reasons)})")


def _options(settings: Mapping[str, Any]) -> Dict[str, str]:
    options = {str(key): str(value) for key, value in settings["provider_options"].items()}
    wrong = sorted(set(options) - set(_OPTIONS))
    if wrong:
        raise GpuRefusal("usage", f"tensorrt has no option {', '.join(wrong)}; it has {', '.join(_OPTIONS)}")
    if options.get("sync", "spin") not in ("spin", "blocking") or options.get("cuda_graph", "1") not in ("0", "1"):
        raise GpuRefusal("usage", "sync must be spin or blocking, and cuda_graph 0 or 1")
    if not options.get("device", "0").isdigit():
        raise GpuRefusal("usage", f"device must be the number of a GPU, got '{options['device']}'")
    return options


def _batch(options: Mapping[str, str]) -> Tuple[int, int, int]:
    given = options.get("batch", "")
    if not given:
        return _BATCH
    found = re.fullmatch(r"(\d+),(\d+),(\d+)", given)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= int(found[3]):
        raise GpuRefusal("usage", f"batch must be like 1,1,8 and not fall, got '{given}'")
    return int(found[1]), int(found[2]), int(found[3])


def _built(
    trt: Any, log: _Log, path: Path, capability: str, batch: Tuple[int, int, int], timings: bytes
) -> Tuple[bytes, bytes]:
    """An engine for the GPU that is there, and the kernel timings afterwards."""
    builder = trt.Builder(log.logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows nothing else
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(path)):
        problems = [" ".join(str(parser.get_error(index).desc()).split()) for index in range(parser.num_errors)]
        raise GpuRefusal("model", f"TensorRT refuses {path.name}: {'; '.join(problems) or log.text()}")
    config = builder.create_builder_config()
    _set_capability(trt, config, capability)
    _set_profile(builder, config, network, batch, path.name)
    cache = None if hasattr(trt, "ComputeCapability") else _timing_cache(config, timings)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise GpuRefusal("model", f"TensorRT does not build an engine of {path.name}: {log.text()}")
    return bytes(plan), b"" if cache is None else bytes(config.get_timing_cache().serialize())


def _set_capability(trt: Any, config: Any, capability: str) -> None:
    """TensorRT for RTX is told what to build for; TensorRT builds for the GPU that is there."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", None)
    if members is None:
        return
    name = f"SM{capability.replace('.', '')}"
    if name not in members:
        known = ", ".join(sorted((one for one in members if _CAPABILITY.fullmatch(one)), key=lambda one: int(one[2:])))
        raise GpuRefusal("missing", f"TensorRT for RTX does not build for {name}, only for {known}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(members[name], 0)


def _set_profile(builder: Any, config: Any, network: Any, batch: Tuple[int, int, int], name: str) -> None:
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [int(size) for size in tensor.shape]
        if all(size >= 0 for size in shape):
            continue
        if any(size < 0 for size in shape[1:]):
            raise GpuRefusal("model", f"{name}: input '{tensor.name}' {shape} is dynamic beyond its batch")
        profile = profile or builder.create_optimization_profile()
        profile.set_shape(tensor.name, *((size, *shape[1:]) for size in batch))
    if profile is not None:
        config.add_optimization_profile(profile)


def _timing_cache(config: Any, timings: bytes) -> Optional[Any]:
    """Kernel timings to start from; those of another version or GPU are left out by starting anew."""
    for content in (timings, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _driver_major(facts: Mapping[str, Any]) -> str:
    """Of the kernel driver, "550"; the CUDA version that the driver speaks where there is no such file."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"\b(\d{3,4})\.\d+", text)
    return found[1] if found else f"cuda {facts['cuda_driver']}"
