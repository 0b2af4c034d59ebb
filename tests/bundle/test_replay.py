"""Golden vectors: what differs is said by output, place and amount, and by whose runtime; on a real device process."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bundle.conftest import GOLDEN, LOGITS, MODEL, Maker, manifest_of

from edgekd._bundle_golden import compared, read_golden, tolerance_of
from edgekd._bundle_manifest import Tolerance
from edgekd._bundle_replay import pieces, runs_there
from edgekd.bundle import deploy_bundle, verify_bundle
from edgekd.devices._place import About
from edgekd.errors import ArtifactError, BackendMissing, ModelFileError, UsageError


def test_difference_is_told_by_its_worst_place() -> None:
    expected = np.asarray([[1.0, 10.0], [2.0, -4.0]])
    got = np.asarray([[1.2, 10.5], [2.0, -4.0]])
    found = compared("logits", expected, got, Tolerance(absolute=0.1, relative=0.05, why="test"))
    # allowed: 0.1 + 0.05 * |x| = 0.15 and 0.6; missed by 0.05 at [0, 0], kept at [0, 1] although it is further off
    assert found.index == [0, 0]
    assert (found.expected, found.got) == (1.0, 1.2)
    assert found.allowed == pytest.approx(0.15)
    assert found.max_abs_error == pytest.approx(0.5)
    assert not found.within
    assert (found.same_top1, found.n) == (2, 2)


def test_difference_at_the_tolerance_is_within() -> None:
    found = compared("x", np.asarray([[1.0]]), np.asarray([[1.5]]), Tolerance(absolute=0.25, relative=0.25, why=""))
    assert found.within
    assert found.max_abs_error == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answer_that_is_no_number_never_passes(value: float) -> None:
    found = compared(
        "x", np.asarray([[1.0, 2.0]]), np.asarray([[1.0, value]]), Tolerance(absolute=1e9, relative=1, why="")
    )
    assert not found.within
    assert (found.index, found.got, found.max_abs_error) == ([0, 1], None, None)


def test_answer_of_another_shape_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"Output 'x' has shape \[1, 3\], its golden values \[1, 2\]"):
        compared("x", np.zeros((1, 2)), np.zeros((1, 3)), Tolerance(absolute=1, relative=1, why=""))


def test_tolerance_is_a_share_of_the_largest_value_or_twice_what_kernels_differ_by() -> None:
    value = np.asarray([[-4.0, 2.0]])
    share = tolerance_of("int8", value, [value + 0.01])
    assert (share.absolute, share.relative) == (0.04, 0.01)
    assert share.why.startswith("0.01 of the largest golden value 4;")
    seen = tolerance_of("int8", value, [value + 0.05, value])
    assert seen.absolute == 0.1
    assert seen.why.startswith("2 times 0.05, what the runtime's own kernels differ by")
    assert tolerance_of("float32", value, []).absolute == 4e-4


def test_model_of_a_fixed_batch_is_fed_pieces() -> None:
    entry = manifest_of().models[0]
    fixed = entry.model_copy(update={"inputs": [entry.inputs[0].model_copy(update={"shape": [1, 1, 2, 2]})]})
    feeds = {"image": np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)}
    assert [one["image"].shape for one in pieces(feeds, fixed)] == [(1, 1, 2, 2)] * 3
    assert [one["image"].shape for one in pieces(feeds, entry)] == [(3, 1, 2, 2)]


@pytest.mark.parametrize(
    ("changes", "machine", "reason"),
    [
        ({}, "aarch64", None),
        ({"machines": ["x86_64", "AMD64"]}, "amd64", None),
        ({"machines": ["aarch64", "arm64"]}, "x86_64", "meant for aarch64 or arm64, the device is x86_64"),
        ({"runtime": "tensorrt"}, "x86_64", "runs on tensorrt, the device has onnxruntime"),
    ],
)
def test_model_is_run_where_it_is_meant_for(changes: dict[str, object], machine: str, reason: str | None) -> None:
    entry = manifest_of().models[0].model_copy(update=changes)
    found = runs_there(entry, About(machine=machine, system="Linux", runtime_version="1.23"))
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_right_answers_pass_here(bundle_zip: Path) -> None:
    found = verify_bundle(bundle_zip)
    assert found.passed
    assert found.replay is not None
    [model] = found.replay.models
    assert (model.file, model.samples, model.outputs[0].max_abs_error) == (MODEL, 2, 0.0)
    assert (found.replay.runtime, found.replay.device) == ("onnxruntime", "cpu")
    assert (found.files, found.signature, found.folder) == (3, "none", None)


def test_wrong_answer_is_told_with_output_amount_and_runtime(make: Maker) -> None:
    wrong = LOGITS.copy()
    wrong[1, 2] = 2.5
    found = verify_bundle(make(logits=wrong))
    assert not found.passed
    assert found.replay is not None
    [problem] = found.replay.problems()
    import onnxruntime

    assert problem.startswith(
        f"{MODEL}: output 'logits' differs by 0.5 at [1, 2]: 2 instead of 2.5, 0.00085 is allowed; onnxruntime"
        f" {onnxruntime.__version__} on cpu ("
    )
    assert problem.endswith("top-1 equal for 2 of 2 samples.")


def test_files_alone_need_no_device(make: Maker) -> None:
    wrong = verify_bundle(make(logits=LOGITS + 1), device=None)
    assert wrong.passed
    assert wrong.replay is None


def test_bundle_without_a_model_for_the_device_is_told(make: Maker) -> None:
    entry = manifest_of().models[0].model_copy(update={"machines": ["riscv64"]})
    with pytest.raises(
        BackendMissing, match=r"No model of .* runs on cpu: models/plain/float32\.onnx: it is meant for"
    ):
        verify_bundle(make(models=[entry]))


def test_unknown_device_is_told(bundle_zip: Path) -> None:
    with pytest.raises(UsageError, match="'cpx'"):
        verify_bundle(bundle_zip, device="cpx")


def test_model_that_the_runtime_refuses_is_told(make: Maker, tmp_path: Path) -> None:
    """Valid ONNX of an operator set that no runtime of today has an implementation for."""
    import shutil

    from bundle.conftest import linear
    from bundle.test_open import hashed

    folder = Path(shutil.copytree(make(), tmp_path / "copy"))
    model = linear()
    model.graph.node[1].op_type = "Bernoulli"
    model.graph.node[1].ClearField("input")
    model.graph.node[1].input.append("flat")
    model.graph.node[1].op_type, model.graph.node[1].domain = "Nothing", "nobody.knows"
    model.opset_import.add(domain="nobody.knows", version=1)
    hashed(folder, MODEL, model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"nobody.knows"):
        verify_bundle(folder)


def npz(arrays: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in arrays.items():
            archive.writestr(name, data)
    return stream.getvalue()


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def header(text: str) -> bytes:
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(padded).to_bytes(2, "little") + padded


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is no .npz"),
        (npz({"output.logits.npy": npy(LOGITS)}), "has no array 'input.image'"),
        (npz({"input.image.npy": npy(np.zeros((2, 1, 2, 2)))}), r"is float64 \[2, 1, 2, 2\], the model takes or gives"),
        (npz({"input.image.npy": npy(np.zeros((3, 1, 2, 2), np.float32))}), "for 2 samples"),
        (npz({"input.image.npy": npy(np.asarray([{}]), allow_pickle=True)}), "is no array of plain numbers"),
        (npz({"input.image.npy": npy(np.zeros(2, "U4"))}), "is no array of plain numbers"),
        (
            # a terabyte by its header: refused before memory is asked for
            npz({"input.image.npy": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }")}),
            "is no array of plain numbers",
        ),
        (npz({"input.image.npy": header("__import__('os').system('true')")}), "is no .npz"),
        (npz({f"{index}.npy": b"" for index in range(65)}), "holds more than"),
    ],
)
def test_golden_vectors_are_read_with_care(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "golden.npz").write_bytes(data)
    with pytest.raises(ArtifactError, match=reason) as caught:
        read_golden(tmp_path / "golden.npz", manifest_of().models[0])
    assert GOLDEN in str(caught.value)


def test_deployed_files_stay_and_answer(bundle_zip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    found = deploy_bundle(bundle_zip, "cpu", str(folder))
    assert found.passed
    assert found.folder == str(folder)
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert there == ["README.md", GOLDEN, "manifest.json", MODEL]
