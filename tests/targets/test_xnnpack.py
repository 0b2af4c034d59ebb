"""The XNNPACK target on the real ExecuTorch: files that it writes, its runner, its audit."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from int8_models import content, images, network
from torch import Tensor, nn
from torch.fx import GraphModule

from edgekd import quantize
from edgekd.calibration.minmax import MinMax
from edgekd.errors import BackendMissing, MismatchError, ModelFileError, UsageError
from edgekd.spec import Options, Runner
from edgekd.targets import _xnnpack_library as library
from edgekd.targets._xnnpack_audit import ran_as_int8
from edgekd.targets._xnnpack_file import DelegatedOperator, Program, read_pte
from edgekd.targets._xnnpack_program import prepared
from edgekd.targets._xnnpack_runner import PteRunner
from edgekd.targets.onnxruntime_arm import OnnxRuntimeArm
from edgekd.targets.xnnpack import Xnnpack

if (absent := Xnnpack().missing()) is not None:
    pytest.skip(absent, allow_module_level=True)

SIZE, CLASSES = 12, 5
PICTURE = images(1, 5)[0].numpy()
IMAGES = torch.randn(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
NOTES = {"edgekd.labels": '["ä", "b"]'}


class Network(nn.Module):
    """What ExecuTorch's own list would leave in float (padding, a ReLU6 behind a sum) or on several grids."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.skip = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, stride=2)
        self.body, self.side = nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 4, 1)
        self.gate = nn.Conv2d(12, 12, 1)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu6(self.stem(x)), 2)
        x = F.relu6(self.body(F.pad(x, (0, 1, 0, 1))) + self.skip(x))
        x = F.relu(torch.cat([self.side(x), x], 1))
        x = x * torch.sigmoid(self.gate(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def quantized(module: nn.Module, *, float_results: bool = False) -> GraphModule:
    numerics = replace(Xnnpack.numerics, float_results=float_results)
    graph = quantize.prepare(module, IMAGES[:2], numerics=numerics, calibrator=MinMax(Options()), reduce_range=False)
    quantize.calibrate(graph, IMAGES.split(8))
    return quantize.convert(graph, IMAGES[:2], numerics=numerics)


@cache
def program() -> GraphModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return quantized(Network().eval())


@cache
def loose() -> GraphModule:
    """A program whose last layer gives floats."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 16), nn.ReLU(), nn.Linear(16, CLASSES)).eval()
        return quantized(layers, float_results=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pte")


def written(folder: Path, name: str, module: nn.Module, *, int8: bool) -> Path:
    path = folder / f"{name}.pte"
    return path if path.exists() else Xnnpack().write(module, IMAGES[:2], path, int8=int8, metadata=NOTES)


@pytest.fixture(scope="module")
def int8_file(folder: Path) -> Path:
    return written(folder, "int8", program(), int8=True)


@pytest.fixture(scope="module")
def float_file(folder: Path) -> Path:
    """Three convolutions and a classifier for 3x32x32 images."""
    (folder / "float.pte").write_bytes(content("tiny", "xnnpack", int8=False))
    return folder / "float.pte"


def logits(path: Path) -> Tensor:
    with PteRunner(path) as runner:
        return torch.from_numpy(np.concatenate([runner.run({"image": one[None].numpy()})["logits"] for one in IMAGES]))


def meant(module: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(IMAGES)
    return found


def kinds(path: Path) -> dict[str, bool]:
    """Kind of every operator inside the delegate, and whether all of that kind are int8."""
    found: dict[str, bool] = {}
    for graph in read_pte(path).delegates:
        for one in graph.operators:
            int8 = all(graph.values[number].int8 for number in (*one.data, *one.results))
            found[one.kind] = found.get(one.kind, True) and int8
    return found


# what the file computes


def test_int8_file_computes_its_program(int8_file: Path) -> None:
    assert quantize.sqnr_db(meant(program()), logits(int8_file)) > 40


def test_float_file_computes_its_network(float_file: Path) -> None:
    with PteRunner(float_file) as runner, torch.no_grad():
        found = runner.run({"image": PICTURE})["logits"]
        wanted = network("tiny")(torch.from_numpy(PICTURE))
    assert quantize.sqnr_db(wanted, torch.from_numpy(found)) > 100


def test_padding_and_clamped_sum_run_on_codes_and_one_delegate_holds_everything(int8_file: Path) -> None:
    found = read_pte(int8_file)
    assert (len(found.delegates), found.outside) == (1, ())
    int8 = kinds(int8_file)
    assert {kind for kind, all_of_them in int8.items() if all_of_them} >= {
        "Add",
        "Concatenate2",
        "Conv2d",
        "FullyConnected",
        "GlobalAvgPooling2d",
        "Multiply",
        "StaticConstantPad",
    }
    assert "Clamp" not in int8  # the sum takes in the ReLU6 behind it


def test_layer_with_a_float_result_gets_a_float_weight_since_the_delegate_would_compute_something_else(
    folder: Path,
) -> None:
    path = written(folder, "loose", loose(), int8=True)
    assert quantize.sqnr_db(meant(loose()), logits(path)) > 40
    (island,) = Xnnpack().audit(path).islands
    assert (island.name, island.op, island.cause) == ("3", "FullyConnected", "its weight is float in the file")
    assert "with a Q on its result" in island.remedy


def test_only_the_loose_weight_becomes_float() -> None:
    made = prepared(loose())
    read = [str(node.target) for node in made.graph.nodes if node.op == "get_attr"]
    assert sum(name.endswith("_float_weight") for name in read) == 1
    assert sum("dequantize_per_channel" in str(node.target) for node in made.graph.nodes) == 1
    torch.testing.assert_close(meant(made), meant(loose()))
    untouched = prepared(program())
    assert sum("dequantize_per_channel" in str(node.target) for node in untouched.graph.nodes) == 6


def test_concatenation_gets_one_grid_and_the_program_stays_the_same() -> None:
    made = prepared(program())
    (concatenation,) = [node for node in made.graph.nodes if "cat.default" in str(node.target)]
    (behind,) = concatenation.users
    assert "quantize_per_tensor" in str(behind.target)  # which does what the ReLU between them did
    assert {part.args[1:] for part in concatenation.args[0]} == {behind.args[1:]}
    torch.testing.assert_close(meant(made), meant(program()), rtol=0, atol=0)


# what the file says about itself


def test_file_carries_names_metadata_and_the_modules_of_its_operators(int8_file: Path) -> None:
    found = read_pte(int8_file)
    assert (found.notes["inputs"], found.notes["outputs"]) == (["image"], ["logits"])
    assert found.notes["metadata"] == NOTES
    (graph,) = found.delegates
    assert [one.name for one in graph.operators if one.kind in ("Conv2d", "FullyConnected")] == [
        "stem",
        "body",
        "skip",
        "side",
        "gate",
        "fc",
    ]
    stem = next(one for one in graph.operators if one.name == "stem" and one.kind == "Conv2d")
    assert stem.weight is not None
    assert (graph.values[stem.weight].dtype, graph.values[stem.weight].constant) == ("qcint8", True)


def test_batch_is_one_whatever_the_example_was(int8_file: Path) -> None:
    with PteRunner(int8_file) as runner:
        assert isinstance(runner, Runner)
        assert [(spec.name, spec.dtype, spec.shape) for spec in runner.inputs] == [
            ("image", "float32", [1, 3, SIZE, SIZE])
        ]
        assert [(spec.name, spec.shape) for spec in runner.outputs] == [("logits", [1, CLASSES])]


# the runner


@pytest.mark.parametrize(
    ("feeds", "got"),
    [
        ({}, "got nothing"),
        ({"image": PICTURE.repeat(2, 0)}, r"got image float32 \[2, 3, 32, 32\]"),
        ({"image": PICTURE.astype(np.float64)}, "got image float64"),
        ({"x": PICTURE}, "got x float32"),
    ],
)
def test_feeds_of_another_size_or_type_are_refused(float_file: Path, feeds: dict[str, np.ndarray], got: str) -> None:
    wanted = rf"takes image float32 \[1, 3, 32, 32\], and its sizes are fixed; {got}"
    with PteRunner(float_file) as runner, pytest.raises(MismatchError, match=wanted):
        runner.run(feeds)


def test_one_process_has_one_thread_pool(float_file: Path) -> None:
    with PteRunner(float_file, threads=2) as runner:
        assert (runner.threads, runner.provider_used) == (2, "XnnpackBackend")
        with PteRunner(float_file, threads=2):
            pass
        with pytest.raises(UsageError, match=r"a model is open on 2 threads; 1 were asked for\. Close"):
            PteRunner(float_file, threads=1)
    with PteRunner(float_file, threads=1) as runner:  # all are closed: the pool may change
        assert runner.threads == 1


def test_closed_runner_says_so(float_file: Path) -> None:
    runner = PteRunner(float_file)
    runner.close()
    runner.close()
    with pytest.raises(RuntimeError, match="is closed"):
        runner.run({"image": PICTURE})


def test_result_is_not_overwritten_by_the_next_run(float_file: Path) -> None:
    with PteRunner(float_file) as runner:
        first = runner.run({"image": PICTURE})["logits"]
        kept = first.copy()
        runner.run({"image": PICTURE * 3})
        np.testing.assert_array_equal(first, kept)


# the audit


def test_audit_counts_int8_and_lists_what_has_no_kernel(int8_file: Path) -> None:
    audit = Xnnpack().audit(int8_file)
    assert (audit.target, audit.islands, audit.coverage) == ("xnnpack", (), 1.0)
    assert audit.legitimate == {"AvgPooling2d": 1, "Sigmoid": 1}
    # 5 convolutions, padding, sum, concatenation, product, global pool, classifier
    assert audit.quantizable == 11
    # XNNPACK computes a 1x1 convolution as a fully connected layer, and takes the padding into the convolution
    assert sum(count for kernel, count in audit.operators.items() if "QC8" in kernel) == 6


def test_float_file_is_all_islands_when_int8_is_asked(float_file: Path) -> None:
    audit = Xnnpack().audit(float_file)
    assert audit.int8 == 0
    assert [one.name for one in audit.islands] == ["stem.0", "layer1.0", "layer2.0", "fc"]
    assert {one.cause for one in audit.islands} == {"the file holds nothing quantized"}
    assert not Xnnpack().is_int8(float_file)


def test_kernel_without_a_type_in_its_name_is_what_the_file_says(int8_file: Path, float_file: Path) -> None:
    for kernel in ("Add (ND)", "Mean (ND)", "Convolution (NHWC, QC8) IGEMM", "Fully Connected (NC, QS8, QC8W) GEMM"):
        assert ran_as_int8(kernel, read_pte(int8_file))
    for kernel in ("Add (ND)", "Mean (ND)", "Convolution (NHWC, F32) IGEMM", "Convert (NC)"):
        assert not ran_as_int8(kernel, read_pte(float_file))


@pytest.mark.slow
def test_kernels_outside_the_delegate_are_named(folder: Path) -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(x.mean((2, 3)), 1)

    path = written(folder, "sums", Sums(), int8=False)
    assert "aten::cumsum.out" in read_pte(path).outside
    assert Xnnpack().audit(path).legitimate["aten::cumsum.out"] == 1
    torch.testing.assert_close(logits(path), meant(Sums()))


# files that are no use


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"hello " * 50, "not an ExecuTorch program"),
        (b"\0\0\0\0ET12" + bytes(500), "ExecuTorch .* does not load it.*export it again"),
    ],
)
def test_unusable_file_is_refused_in_words(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model.pte"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        PteRunner(path)
    assert library._open_runners == []


def test_truncated_file_is_refused_when_it_is_run_and_when_it_is_read(int8_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(int8_file.read_bytes()[:-400])
    with pytest.raises(ModelFileError, match="does not load it"):
        PteRunner(path)
    path.write_bytes(int8_file.read_bytes()[:200])
    with pytest.raises(ModelFileError, match=r"cannot read it .*: it is damaged, or was made by another version"):
        read_pte(path)


def test_operator_that_executorch_lacks_is_refused_in_words(tmp_path: Path) -> None:
    class Decided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:  # decided by a value
                return x
            return -x

    with pytest.raises(MismatchError, match="ExecuTorch cannot lower the model: "):
        Xnnpack().write(Decided(), IMAGES[:2], tmp_path / "m.pte", int8=False, metadata={})
    assert not (tmp_path / "m.pte").exists()


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch.runtime", None)  # what Python itself puts there to stop an import
    library.runtime.cache_clear()
    try:
        assert "pip install edgekd[executorch]" in (Xnnpack().missing() or "")
        assert "edgekd[executorch]" in (Xnnpack().absent_here() or "")
        with pytest.raises(BackendMissing, match=r"ExecuTorch is not installed .* `pip install edgekd\[executorch\]`"):
            library.runtime()
    finally:
        library.runtime.cache_clear()


# what the numerics rest on


def test_grid_is_that_of_onnxruntime_arm_apart_from_the_logits() -> None:
    ours, theirs = Xnnpack.numerics, OnnxRuntimeArm.numerics
    same = replace(ours, float_results=True, operators=theirs.operators)
    assert same == theirs
    assert ours.operators < theirs.operators
    assert not Xnnpack.sums_in_16_bits


def test_an_empty_program_is_not_int8() -> None:
    assert not Program(delegates=(), outside=("aten::add.out",)).int8
    assert Program(delegates=(), outside=("quantized_decomposed::dequantize_per_channel.out",)).int8
    assert DelegatedOperator("Add", "sum", (0, 1), None, (2,)).weight is None
