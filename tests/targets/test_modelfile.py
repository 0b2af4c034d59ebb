"""ONNX files from elsewhere: nothing outside their folder is opened, and every problem is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import ModelFileError
from edgekd.spec import TensorSpec
from edgekd.targets._modelfile import (
    UNKNOWN_RANK,
    example_feeds,
    file_size_bytes,
    model_from_bytes,
    model_inputs,
    model_outputs,
    read_model,
)

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def linear() -> onnx.ModelProto:
    """y = x w, with a named batch."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def with_external(folder: Path, location: str, **entries: object) -> Path:
    """A model whose weight claims to be in `location`; no data file is written."""
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    made.mkdir()
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    return made


def test_model_is_read_when_everything_is_inside(folder: Path) -> None:
    onnx.save(linear(), folder / "model.onnx")
    assert read_model(folder / "model.onnx") == linear()


def test_external_data_is_loaded_when_it_lies_beside_the_model(folder: Path) -> None:
    path = with_external(folder, "weights/w.bin", offset=0, length=48)
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(WEIGHT.tobytes())
    np.testing.assert_array_equal(numpy_helper.to_array(read_model(path).graph.initializer[0]), WEIGHT)
    assert read_model(path, external_data=False).graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert file_size_bytes(path) == path.stat().st_size + 48


def test_external_data_is_found_when_the_path_is_relative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_external(folder, "w.bin")
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.chdir(folder)  # the parent of "model.onnx" is then the empty path
    np.testing.assert_array_equal(numpy_helper.to_array(read_model(Path("model.onnx")).graph.initializer[0]), WEIGHT)


@pytest.mark.parametrize(
    "location", ["../secret.bin", "a/../../secret.bin", "..\\secret.bin", "C:\\secret.bin", "", "{root}/secret.bin"]
)
def test_external_data_is_refused_when_it_is_outside(folder: Path, location: str) -> None:
    path = with_external(folder, location.format(root=folder.parent))
    with pytest.raises(ModelFileError, match=r"model\.onnx: tensor 'w' is in .* outside the model's folder"):
        read_model(path)


@pytest.mark.parametrize("through", ["file", "folder"])
def test_external_data_is_refused_when_it_is_a_link(folder: Path, through: str) -> None:
    if through == "file":
        (folder / "w.bin").symlink_to(folder.parent / "secret.bin")
        path = with_external(folder, "w.bin")
    else:
        (folder / "up").symlink_to(folder.parent)
        path = with_external(folder, "up/secret.bin")
    with pytest.raises(ModelFileError, match=r"tensor 'w' .* is a symbolic link"):
        read_model(path)


def test_external_data_is_refused_when_it_is_a_hard_link(folder: Path) -> None:
    os.link(folder.parent / "secret.bin", folder / "w.bin")
    with pytest.raises(ModelFileError, match=r"tensor 'w' .* is a hard link"):
        read_model(with_external(folder, "w.bin"))


def test_external_data_is_named_when_it_is_missing(folder: Path) -> None:
    with pytest.raises(ModelFileError, match=r"tensor 'w' is in 'w\.bin', which is not there"):
        read_model(with_external(folder, "w.bin"))


@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (40, 48), (-4, 8)])
def test_external_data_is_refused_when_it_ends_early(folder: Path, offset: int, length: int) -> None:
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelFileError, match="that file has 48"):
        read_model(with_external(folder, "w.bin", offset=offset, length=length))


def test_external_data_is_refused_when_the_offset_is_no_number(folder: Path) -> None:
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelFileError, match="offset or length that is not a number"):
        read_model(with_external(folder, "w.bin", offset="x"))


def test_external_data_is_refused_when_it_hides_in_a_subgraph_constant(folder: Path) -> None:
    model = linear()
    hidden = numpy_helper.from_array(WEIGHT, "hidden")
    hidden.ClearField("raw_data")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="../secret.bin")
    inner = helper.make_graph([helper.make_node("Constant", [], ["k"], value=hidden)], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"tensor 'hidden' .* outside the model's folder"):
        read_model(path)


def test_model_in_memory_is_refused_when_it_has_external_data(folder: Path) -> None:
    data = with_external(folder, "w.bin").read_bytes()
    with pytest.raises(ModelFileError, match="tensor 'w' is in an external file"):
        model_from_bytes(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"not a model at all\n" * 10, "not an ONNX file"),
        (linear().SerializeToString()[:-20], "not an ONNX file, or truncated"),
        (b"\x08\x09", "it has no graph"),
    ],
    ids=["empty", "text", "truncated", "no-graph"],
)
def test_file_is_refused_when_it_is_not_a_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"model\\.onnx: .*{message}"):
        read_model(path)


def test_file_is_refused_when_it_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        read_model(tmp_path / "absent.onnx")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_model(tmp_path)


def test_file_is_refused_when_the_checker_finds_a_fault(tmp_path: Path) -> None:
    model = linear()
    model.graph.node[0].input[0] = "nowhere"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"not a valid ONNX model: .*nowhere"):
        read_model(path)


def test_input_is_named_when_its_rank_is_unknown(tmp_path: Path) -> None:
    model = linear()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="input 'x' does not tell its number of dimensions"):
        read_model(path)


def test_damaged_files_give_a_model_or_one_error_when_bytes_change(tmp_path: Path) -> None:
    original = linear().SerializeToString()
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(300):
        data = bytearray(original)
        for position in rng.integers(0, len(data), size=3):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            read_model(path)
        except ModelFileError:
            refused += 1
    assert refused > 100  # the rest changed a weight or a name, which no reader can tell


def test_interface_is_what_the_file_says_when_read() -> None:
    model = linear()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    # "w" has a default value, so it need not be fed
    assert model_inputs(model) == [TensorSpec(name="x", dtype="float32", shape=["B", 3])]
    assert model_outputs(model) == [TensorSpec(name="y", dtype="float32", shape=["B", 4])]


def test_dimension_gets_a_name_when_the_file_has_none() -> None:
    model = linear()
    model.graph.input[0].type.tensor_type.shape.dim[1].Clear()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert model_inputs(model)[0].shape == ["x.0", "x.1"]


def test_sequence_input_is_listed_and_refused_when_fed() -> None:
    model = linear()
    model.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    specs = model_inputs(model)
    assert specs[1] == TensorSpec(name="s", dtype="sequence", shape=[UNKNOWN_RANK])
    with pytest.raises(ModelFileError, match="Input 's' is a sequence, not a tensor"):
        example_feeds(specs, batch=1, seed=0)


def test_feeds_fit_the_inputs_when_sizes_are_known() -> None:
    specs = [
        TensorSpec(name="image", shape=["B", 3, "H", 8]),
        TensorSpec(name="pixels", dtype="uint8", shape=["B", 5]),
        TensorSpec(name="ids", dtype="int64", shape=[1, "B"]),
        TensorSpec(name="half", dtype="float16", shape=[]),
        TensorSpec(name="flag", dtype="bool", shape=[2]),
    ]
    feeds = example_feeds(specs, batch=2, seed=1, fixed={"H": 4})
    shapes = {name: (array.dtype.name, array.shape) for name, array in feeds.items()}
    assert shapes == {
        "image": ("float32", (2, 3, 4, 8)),
        "pixels": ("uint8", (2, 5)),
        "ids": ("int64", (1, 2)),
        "half": ("float16", ()),
        "flag": ("bool", (2,)),
    }
    assert set(np.unique(feeds["ids"])) <= {0, 1}
    again = example_feeds(specs, batch=2, seed=1, fixed={"H": 4})
    np.testing.assert_array_equal(feeds["image"], again["image"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec(name="a", shape=["B", "T"]), r"Input 'a' .*dimension 1 \('T'\) is dynamic .* T=224"),
        (TensorSpec(name="a", shape=[UNKNOWN_RANK]), "Input 'a' does not tell its number of dimensions"),
        (TensorSpec(name="a", dtype="string", shape=[1]), "Input 'a' has element type string"),
        (TensorSpec(name="a", dtype="bfloat16", shape=[1]), "Input 'a' has element type bfloat16"),
    ],
)
def test_feed_is_refused_when_it_cannot_be_made(spec: TensorSpec, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        example_feeds([spec], batch=1, seed=0)
