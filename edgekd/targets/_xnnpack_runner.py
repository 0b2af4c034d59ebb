"""ExecuTorch's own runtime as a Runner, through its Python binding."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgekd.errors import MismatchError, ModelFileError
from edgekd.spec import TensorSpec
from edgekd.targets._xnnpack_file import METHOD, NOTES, check_pte
from edgekd.targets._xnnpack_library import BACKEND, et_module, executorch_version, quiet, runtime, threads_held

__all__ = ["Event", "PteRunner"]

_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"}
"""Of torch's scalar types, by the number that the runtime calls them."""

_OUTSIDE = "native_call_"
"""What the runtime puts before the name of a kernel outside the delegate."""

Event = tuple[str, float]
"""An operator that ran, and its time in microseconds."""


class PteRunner:
    """Run a .pte file: what is in the delegate by XNNPACK, the rest by portable kernels.

    Args:
        path: the file, checked before it is opened. What it holds is for the fixed shapes that its inputs say.
        threads: of XNNPACK, >= 1; portable kernels use one.
        profile: record every operator.

    Raises:
        ModelFileError: the file is damaged, of another version, or has no model in it.
        UsageError: a runner on another number of threads is open in this process.
        BackendMissing: no ExecuTorch, or one without XNNPACK.
    """

    def __init__(self, path: Path, *, threads: int = 1, profile: bool = False) -> None:
        check_pte(path)
        self._where = str(path)
        self._open = ExitStack()
        made = runtime()
        self.threads = self._open.enter_context(threads_held(threads))
        try:
            with quiet():
                self._program: Any = made.load_program(path, enable_etdump=profile)
                self._method: Any = self._program.load_method(METHOD)
                meta = self._method.metadata
                names = self._names()
        except (RuntimeError, KeyError) as error:
            self._open.close()
            raise ModelFileError(
                f"{path}: ExecuTorch {executorch_version()} does not load it: {' '.join(str(error).split())}. It is"
                " damaged, or was made by another version; export it again."
            ) from error
        takes, gives = names.get("inputs", []), names.get("outputs", [])
        self.inputs = [_spec(meta.input_tensor_meta(i), takes, "input", i) for i in range(meta.num_inputs())]
        self.outputs = [_spec(meta.output_tensor_meta(i), gives, "output", i) for i in range(meta.num_outputs())]
        self.provider_requested = self.provider_used = BACKEND

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; keys are input names, the result's keys are output names.

        Raises:
            MismatchError: the feeds do not fit the model's inputs, whose sizes are all fixed.
        """
        import torch

        if self._method is None:
            raise RuntimeError(f"runner of {self._where} is closed")
        self._check(feeds)
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in self.inputs]
        try:
            values = self._method.execute(tensors)
        except RuntimeError as error:
            raise MismatchError(f"{self._where}: ExecuTorch did not run: {error}. {self._wanted(feeds)}") from error
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, values, strict=True)}

    def events(self) -> list[list[Event]]:
        """Every operator of every run so far; needs `profile`. Empty where this build records nothing."""
        if not self._program._program.has_etdump():
            return []
        parse = et_module("devtools.etdump.serialize").deserialize_from_etdump_flatcc
        with tempfile.TemporaryDirectory(prefix="edgekd-etdump-") as folder:
            file = Path(folder) / "run.etdp"
            with quiet():
                self._program.write_etdump_result_to_file(str(file), str(Path(folder) / "run.bin"))
                dump = parse(file.read_bytes())
        return [[event for one in run.events if (event := _event(one.profile_event))] for run in dump.run_data]

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._method = self._program = None
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _names(self) -> dict[str, list[str]]:
        """Names of inputs and outputs, where the file tells."""
        if NOTES not in self._program.method_names:
            return {}
        found: dict[str, list[str]] = json.loads(self._program.load_method(NOTES).execute([])[0])
        return found

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        fits = set(feeds) == {spec.name for spec in self.inputs} and all(
            feeds[spec.name].dtype.name == spec.dtype and list(feeds[spec.name].shape) == spec.shape
            for spec in self.inputs
        )
        if not fits:
            raise MismatchError(f"{self._where}: {self._wanted(feeds)}")

    def _wanted(self, feeds: Mapping[str, np.ndarray]) -> str:
        wanted = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in self.inputs)
        got = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feeds.items())
        return f"The file takes {wanted}, and its sizes are fixed; got {got or 'nothing'}."


def _spec(meta: Any, names: list[str], kind: str, index: int) -> TensorSpec:
    name = names[index] if index < len(names) else f"{kind}_{index}"
    return TensorSpec(name=name, dtype=_DTYPES.get(int(meta.dtype()), "undefined"), shape=list(meta.sizes()))


def _event(recorded: Any) -> Event | None:
    """Name and time of an operator, inside the delegate or outside; None for calls that contain others."""
    if recorded is None:
        return None
    took_us = (recorded.end_time - recorded.start_time) / 1e3
    if recorded.delegate_debug_id_str:
        return str(recorded.delegate_debug_id_str), took_us
    name = str(recorded.name or "")
    return (name.removeprefix(_OUTSIDE), took_us) if name.startswith(_OUTSIDE) else None
