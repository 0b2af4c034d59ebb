"""Opening a bundle: one that was changed anywhere is refused by the name of the file, folder and archive alike."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle.conftest import GOLDEN, LOGITS, MODEL, Maker, linear, manifest_of, record, sources
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgekd._bundle_manifest import manifest_bytes, read_manifest, with_id
from edgekd.bundle import MANIFEST, is_bundle, open_bundle, verify_bundle, write_bundle
from edgekd.errors import ArtifactError, EdgeKDError, ModelFileError, OverwriteRefused

FILES = (MODEL, GOLDEN, "README.md", MANIFEST)
# a fixture of the session is only read, and each example changes a copy of its own
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and give it the id of its new content: what a forger would do."""
    values = json.loads((folder / MANIFEST).read_bytes())
    change(values)
    import hashlib

    rest = {key: value for key, value in values.items() if key != "id"}
    values["id"] = hashlib.sha256(manifest_bytes(rest)).hexdigest()
    (folder / MANIFEST).write_bytes(manifest_bytes(values))


def hashed(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in and make the manifest agree."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    rewritten(folder, lambda values: values["files"].update({name: record(data).model_dump()}))


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle to change."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy"))


def test_folder_and_archive_hold_the_same(bundle_folder: Path, bundle_zip: Path) -> None:
    with open_bundle(bundle_folder) as one, open_bundle(bundle_zip) as other:
        assert one.manifest == other.manifest
        assert other.file(MODEL).read_bytes() == linear().SerializeToString()
        assert one.folder == bundle_folder
        unpacked = other.folder
        assert unpacked.stat().st_mode & 0o077 == 0  # nobody else may look or write
    assert not unpacked.exists()


def test_same_run_packs_to_the_same_bytes(make: Maker) -> None:
    assert make("a.zip").read_bytes() == make("b.zip").read_bytes()


def test_bundle_is_told_from_a_run(bundle_folder: Path, bundle_zip: Path, tmp_path: Path) -> None:
    assert is_bundle(bundle_folder)
    assert is_bundle(bundle_zip)
    assert not is_bundle(tmp_path)


def test_missing_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"There is no bundle at .*Make one with `edgekd pack RUN"):
        _open(tmp_path / "none.zip")
    with pytest.raises(ArtifactError, match=r"is no bundle: manifest\.json is missing"):
        _open(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        _open(copy)


def test_file_that_does_not_belong_is_named(copy: Path) -> None:
    (copy / "models" / "evil.so").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"models/evil\.so is no file of the bundle"):
        _open(copy)


def test_archive_in_the_bundle_does_not_belong(copy: Path, bundle_zip: Path) -> None:
    shutil.copy(bundle_zip, copy / "nested.zip")
    with pytest.raises(ArtifactError, match=r"nested\.zip is no file of the bundle"):
        _open(copy)


def test_truncated_file_tells_both_sizes(copy: Path) -> None:
    (copy / MODEL).write_bytes((copy / MODEL).read_bytes()[:-5])
    size = len(linear().SerializeToString())
    with pytest.raises(ArtifactError, match=f"{MODEL} is damaged: it has {size - 5} bytes, {size} were packed"):
        _open(copy)


def test_hard_link_and_symbolic_link_are_refused(copy: Path, tmp_path: Path) -> None:
    os.link(copy / MODEL, tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"'float32\.onnx' is a hard link"):
        _open(copy)
    (tmp_path / "other").unlink()
    (copy / MODEL).rename(tmp_path / "model")
    (copy / MODEL).symlink_to(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"'float32\.onnx' is a symbolic link"):
        _open(copy)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda values: values["models"][0].update(file="../../etc/passwd"), "names '../../etc/passwd', which is no"),
        (lambda values: values["models"][0].update(external_files=["README.md"]), "does not lie beside the model"),
        (lambda values: values["models"][0]["golden"].update(file="/dev/zero"), "names '/dev/zero', which is no"),
        (lambda values: values["models"][0]["golden"].update(tolerances={}), "the tolerances of .* are not those of"),
        (lambda values: values["files"].update({"../up": values["files"][MODEL]}), "leads out of its folder"),
        (lambda values: values["files"].update({MANIFEST: values["files"][MODEL]}), "it lists itself"),
        (lambda values: values["files"].update({"README.MD": values["files"][MODEL]}), "the same file on some systems"),
        (lambda values: values["files"][MODEL].update(sha256="x"), r"files\.models/plain/float32\.onnx\.sha256"),
        (lambda values: values["files"][MODEL].update(bytes=-1), "greater than or equal to 0"),
        (lambda values: values.update(models=[]), "models: List should have at least 1 item"),
        (lambda values: values.update(more=1), "more: Extra inputs are not permitted"),
        (lambda values: values.update(schema_version=2), "has schema version 2, this edgekd reads 1"),
    ],
)
def test_forged_manifest_is_refused(copy: Path, change: Callable[[dict[str, Any]], None], reason: str) -> None:
    rewritten(copy, change)
    with pytest.raises(ArtifactError, match=reason):
        _open(copy)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is no JSON"),
        (b"[]", "it is not as it was written"),
        (b'{"a": 1, "a": 2}', "it is not as it was written"),
        (b"{}\n", "its id is not that of its content"),
        (b"\xff", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b'"' + b"x" * (17 << 20) + b'"', "at most 16777216 are read"),
    ],
)
def test_broken_manifest_is_refused(copy: Path, data: bytes, reason: str) -> None:
    (copy / MANIFEST).write_bytes(data)
    with pytest.raises(ArtifactError, match=reason):
        _open(copy)


def test_model_that_reads_outside_its_folder_is_refused(copy: Path) -> None:
    model = linear()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../../etc/passwd")
    hashed(copy, MODEL, model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"'weight' is in .*, outside the model's folder"):
        _open(copy)


def test_external_file_that_the_manifest_hides_is_named(copy: Path) -> None:
    model = linear()
    weight = model.graph.initializer[0]
    raw = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    hashed(copy, "models/plain/weights.bin", raw)
    hashed(copy, MODEL, model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"needs the files \['models/plain/weights.bin'\] beside it, the manifest"):
        _open(copy)
    rewritten(copy, lambda values: values["models"][0].update(external_files=["models/plain/weights.bin"]))
    with open_bundle(copy) as bundle:
        assert sorted(bundle.files_for(bundle.manifest.models[0])) == [MODEL, "models/plain/weights.bin"]


def test_file_that_is_no_model_is_refused(copy: Path) -> None:
    hashed(copy, MODEL, b"#!/bin/sh\necho executed\n")
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        _open(copy)


def test_bundle_is_not_replaced_unasked(make: Maker, tmp_path: Path) -> None:
    path = make("a.zip")
    files = sources(tmp_path / "s")
    with pytest.raises(OverwriteRefused, match=r"is there already. Choose another --out, or pass --overwrite"):
        write_bundle(manifest_of(), files, path)
    write_bundle(manifest_of(name="second"), files, path, overwrite=True)
    with open_bundle(path) as bundle:
        assert bundle.manifest.name == "second"
    (tmp_path / "mine").mkdir()
    with pytest.raises(OverwriteRefused, match=r"it is no bundle. Choose another --out"):
        write_bundle(manifest_of(), files, tmp_path / "mine", overwrite=True)


def test_failed_write_leaves_what_was_there(make: Maker, tmp_path: Path) -> None:
    path = make("a.zip")
    before = path.read_bytes()

    def fails(folder: Path) -> None:
        raise OSError("the key is on fire")

    with pytest.raises(OSError, match="on fire"):
        write_bundle(manifest_of(), sources(tmp_path / "s"), path, overwrite=True, sign=fails)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def _open(path: Path) -> None:
    with open_bundle(path):
        pass


def complaint(action: Callable[[], object], otherwise: str) -> str:
    """What an action complains of; any other exception than one of edgekd's own is a fault."""
    try:
        action()
    except EdgeKDError as error:
        return str(error)
    return otherwise


def changed(data: bytes, how: str, place: int, value: int) -> bytes:
    """Bytes with one flipped, one more, or the rest cut off."""
    place %= max(len(data), 1)
    if how == "flip":
        return data[:place] + bytes([data[place] ^ (value or 1)]) + data[place + 1 :]
    return data[:place] + bytes([value]) + data[place:] if how == "insert" else data[:place]


CHANGES = st.tuples(st.sampled_from(["flip", "insert", "cut"]), st.integers(0, 1 << 20), st.integers(0, 255))


def _folder_case(folder: Path, name: str, change: tuple[str, int, int]) -> None:
    original = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(changed(original, *change))
        with pytest.raises(ArtifactError, match=name):
            verify_bundle(folder, device=None)
    finally:
        (folder / name).write_bytes(original)


def _archive_case(path: Path, folder: Path, change: tuple[str, int, int]) -> None:
    target = folder / "changed.zip"
    target.write_bytes(changed(path.read_bytes(), *change))
    with pytest.raises(ArtifactError) as caught:
        verify_bundle(target, device=None)
    assert any(name in str(caught.value) for name in (*FILES, "changed.zip"))


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(st.sampled_from(FILES), CHANGES)
def test_changed_byte_of_a_folder_is_named(copy: Path, name: str, change: tuple[str, int, int]) -> None:
    _folder_case(copy, name, change)


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(CHANGES)
def test_changed_byte_of_an_archive_is_named(bundle_zip: Path, tmp_path: Path, change: tuple[str, int, int]) -> None:
    _archive_case(bundle_zip, tmp_path, change)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _manifest_case(path: list[int], value: Any) -> None:
    """A manifest with another value somewhere, and an id that fits."""
    values = with_id(manifest_of(files={MODEL: record(b""), GOLDEN: record(b"")})).model_dump(mode="json")
    holder: Any = values
    for step in path:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[step % len(keys)]
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or step == path[-1]:
            holder[key] = value
            break
        holder = inner
    import hashlib

    rest = {key: one for key, one in values.items() if key != "id"}
    try:
        values["id"] = hashlib.sha256(manifest_bytes(rest)).hexdigest()
        data = manifest_bytes(values)
    except ValueError:
        return  # infinity is no JSON
    assert "manifest.json" in complaint(lambda: read_manifest(data), "manifest.json")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), JSON)
def test_no_manifest_makes_the_reader_fail(path: list[int], value: Any) -> None:
    _manifest_case(path, value)


def _model_case(folder: Path, change: tuple[str, int, int]) -> None:
    """ONNX bytes that the manifest vouches for: only the intake stands between them and the runtime."""
    original = linear().SerializeToString()
    hashed(folder, MODEL, changed(original, *change))
    assert "float32.onnx" in complaint(lambda: _open(folder), "float32.onnx")


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(CHANGES)
def test_no_model_bytes_make_the_intake_fail(copy: Path, change: tuple[str, int, int]) -> None:
    _model_case(copy, change)


def _golden_case(folder: Path, change: tuple[str, int, int]) -> None:
    from edgekd._bundle_golden import read_golden

    path = folder / "golden.npz"
    original = sources(folder / "sources")[GOLDEN].read_bytes()
    path.write_bytes(changed(original, *change))
    entry = manifest_of().models[0]

    def read() -> None:
        inputs, outputs = read_golden(path, entry)
        assert inputs["image"].shape == (2, 1, 2, 2)
        assert outputs["logits"].shape == LOGITS.shape

    assert GOLDEN in complaint(read, GOLDEN)


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(CHANGES)
def test_no_golden_bytes_make_the_reader_fail(tmp_path: Path, change: tuple[str, int, int]) -> None:
    _golden_case(tmp_path, change)


MANY = settings(max_examples=2500, deadline=None, suppress_health_check=QUIET)


@pytest.mark.slow
@MANY
@given(st.sampled_from(FILES), CHANGES)
def test_changed_byte_of_a_folder_is_named_2500_times(copy: Path, name: str, change: tuple[str, int, int]) -> None:
    _folder_case(copy, name, change)


@pytest.mark.slow
@MANY
@given(CHANGES)
def test_changed_byte_of_an_archive_is_named_2500_times(
    bundle_zip: Path, tmp_path: Path, change: tuple[str, int, int]
) -> None:
    _archive_case(bundle_zip, tmp_path, change)


@pytest.mark.slow
@MANY
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), JSON)
def test_no_manifest_makes_the_reader_fail_2500_times(path: list[int], value: Any) -> None:
    _manifest_case(path, value)


@pytest.mark.slow
@MANY
@given(CHANGES)
def test_no_model_bytes_make_the_intake_fail_2500_times(copy: Path, change: tuple[str, int, int]) -> None:
    _model_case(copy, change)


@pytest.mark.slow
@MANY
@given(CHANGES)
def test_no_golden_bytes_make_the_reader_fail_2500_times(tmp_path: Path, change: tuple[str, int, int]) -> None:
    _golden_case(tmp_path, change)
