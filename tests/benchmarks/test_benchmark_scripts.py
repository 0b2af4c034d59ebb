"""Every benchmark script at its smallest setting, and the parts of them that can be checked by hand."""

from __future__ import annotations

import copy
import importlib
import json
import platform
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script as Python does when it is run: with its own folder on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    torch.set_num_threads(threads)


def record_of(module: ModuleType, out: Path, *arguments: str) -> dict[str, Any]:
    """Runs a script's main and reads what it wrote, after checking what every record must have."""
    assert module.main([*arguments, "--out", str(out)]) == out
    text = out.read_text(encoding="utf-8")
    record: dict[str, Any] = json.loads(text)
    assert record["schema_version"] == 1
    assert record["benchmark"] == module.NAME
    assert record["command"].startswith(f"python benchmarks/{module.NAME}.py")
    assert "--out" not in record["command"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["seed"] == 0
    assert record["n"] >= 1 if "n" in record else all(row["n"] >= 1 for row in record["rows"].values())
    assert record["machine"]["has_vnni"] in (True, False, None)
    assert not {"hostname", "kernel"} & set(record["machine"])
    for private in (platform.node(), str(out.parent), str(Path.home())):
        assert len(private) < 4 or private not in text
    return record


@pytest.mark.slow
def test_latency_record_has_paired_ratios_and_goals(script: Any, tmp_path: Path) -> None:
    module = script("latency_vs_onnxruntime")
    sizes = ("--pairs", "12", "--blocks", "3", "--warmup-seconds", "0.1")
    samples = ("--calibration-samples", "8", "--error-samples", "4")
    record = record_of(module, tmp_path / "out.json", "--models", "tiny", *sizes, *samples)
    row = record["rows"]["tiny"]
    assert row["n"] == 12
    for ratio in row["ratios"].values():
        assert ratio["n"] == 12
        assert ratio["ci95"][0] <= ratio["speedup"] <= ratio["ci95"][1]
    assert row["files"]["edgekd"]["fusion"]["coverage"] == 1.0
    assert row["files"]["edgekd"]["size_bytes"] < row["files"]["float"]["size_bytes"] / 2
    assert min(row["sqnr_db_against_float"].values()) > 15
    assert row["goals"]["edgekd_over_quantize_static"]["at_most"] == 1.0


def test_speedup_goal_applies_when_the_processor_has_vnni(script: Any) -> None:
    module = script("latency_vs_onnxruntime")
    ratios = {
        "float_over_edgekd": {"speedup": 2.5, "ci95": [2.4, 2.6], "n": 400},
        "edgekd_over_quantize_static": {"speedup": 1.01, "ci95": [1.002, 1.02], "n": 400},
    }
    met = module.goals("mobilenet_v2", ratios, has_vnni=True)
    assert met["float_over_edgekd"]["met"] is True
    assert module.goals("resnet18", ratios, has_vnni=True)["float_over_edgekd"]["met"] is False
    assert module.goals("mobilenet_v2", ratios, has_vnni=False)["float_over_edgekd"]["met"] is None
    assert met["edgekd_over_quantize_static"]["slower_beyond_noise"] is True


def test_every_model_follows_every_other_equally_often_over_six_blocks(script: Any) -> None:
    module = script("latency_vs_onnxruntime")
    follows = Counter(
        (order[index - 1], name) for order in module._orders(6) for index, name in enumerate(order)
    )  # index -1: rounds follow each other
    assert len(follows) == 4 * 3
    assert set(follows.values()) == {2}


def test_fusion_coverage_is_complete_when_the_network_is_tiny(script: Any, tmp_path: Path) -> None:
    record = record_of(script("fusion_coverage"), tmp_path / "out.json", "--models", "tiny")
    assert record["lowest_coverage"] == 1.0
    targets = record["rows"]["tiny"]["targets"]
    assert set(targets) == {"onnxruntime_x86", "onnxruntime_arm"}
    # three convolutions, the pool, the reshape and the classifier
    assert {one["quantizable"] for one in targets.values()} == {6}


@pytest.mark.tensorrt
def test_engines_have_every_convolution_fed_by_int8(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed. Install edgekd[tensorrt].")
    module = script("tensorrt_engines")
    record = record_of(module, tmp_path / "out.json", "--models", "tiny", "--compute-capability", "8.6")
    files = record["rows"]["tiny"]["files"]
    assert [facts["parser_errors"] for facts in files.values()] == [[], [], []]
    assert files["int8"]["audit"]["convolutions_fed_by_int8"] == files["int8"]["audit"]["convolutions"] == 3
    assert files["int8"]["engines"]["sm86"]["engine_bytes"] > 0
    # int8 codes of every weight the float network has; scales and biases come on top
    assert files["int8"]["weight_bytes"]["int8"] >= files["float32"]["weight_bytes"]["float32"] // 4 * 0.9


def test_help_imports_nothing_heavy(script: Any, tmp_path: Path) -> None:
    record = record_of(script("startup"), tmp_path / "out.json", "--runs", "1")
    row = record["rows"]["--help"]
    assert row["heavy_imports"] == []
    assert row["torch_imported"] is False
    assert 0 < row["min_seconds"] <= row["median_seconds"]


def test_imports_are_seen_when_a_command_imports_them(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("startup")
    monkeypatch.setattr(module, "_RUN", "import numpy  # {words}")
    assert module.imported([]) == ["numpy"]


def test_flow_of_edgekd_is_faithful_when_eps_is_large(script: Any, tmp_path: Path) -> None:
    module = script("quantization_flow")
    sizes = ("--models", "tiny", "--samples", "4", "--eps", "0.001", "--flows", "edgekd")
    record = record_of(module, tmp_path / "out.json", *sizes)
    flow = record["rows"]["tiny"]["eps"]["0.001"]["edgekd"]
    assert flow["quantizers_off_db"] > 60
    assert flow["int8_db"] > 15
    assert flow["prepare_seconds"] > 0


@pytest.mark.slow
def test_flow_of_torchao_is_not_faithful_when_eps_is_large(script: Any, tmp_path: Path) -> None:
    module = script("quantization_flow")
    sizes = ("--models", "tiny", "--samples", "4", "--eps", "0.001")
    record = record_of(module, tmp_path / "out.json", *sizes)
    flows = record["rows"]["tiny"]["eps"]["0.001"]
    assert flows["edgekd"]["quantizers_off_db"] > 60
    assert flows["torchao"]["quantizers_off_db"] < 20
    assert flows["edgekd"]["int8_db"] > flows["torchao"]["int8_db"] + 10


def test_small_variances_change_nothing_when_eps_is_tiny(script: Any) -> None:
    module = script("quantization_flow")
    network = module.NETWORKS["tiny"]
    exact = copy.deepcopy(network.build(0))
    for one in exact.modules():
        if isinstance(one, torch.nn.BatchNorm2d):
            one.eps = 1e-12
    scaled = module.with_small_variances(exact, 1e-12)
    images = script("_networks").inputs(network, 2, seed=3)
    with torch.no_grad():
        assert torch.allclose(exact(images), scaled(images), rtol=1e-4, atol=1e-5)
    variances = [one.running_var for one in scaled.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert len(variances) == 3
    for variance in variances:
        assert torch.allclose(variance, torch.full_like(variance, 1e-3), rtol=1e-4)


def test_records_round_and_leave_the_output_path_out(script: Any) -> None:
    module = script("_record")
    assert module.rounded({"a": [1.23456789, 7], 2: None}) == {"a": [1.2346, 7], "2": None}
    assert module._without_out(["--out", "x.json", "--seed", "1", "--out=y.json"]) == ["--seed", "1"]


def test_qat_step_record_has_every_phase_s_ratio_to_a_float_step(script: Any, tmp_path: Path) -> None:
    module = script("qat_step")
    sizes = ("--models", "tiny", "--prepare", "tiny", "--batch", "8", "--rounds", "12", "--warmup", "1")
    record = record_of(module, tmp_path / "out.json", *sizes)
    row = record["rows"]["tiny"]
    assert set(row["median_ms"]) == {"float", "folded", "track", "learn", "frozen", "guard"}
    assert min(row["median_ms"].values()) > 0
    assert len(row["ratios"]) == 8
    for ratio in row["ratios"].values():
        assert ratio["n"] == 12
        assert ratio["ci95"][0] <= ratio["ratio"] <= ratio["ci95"][1]
    assert set(row["goals"]) == {"track", "learn", "frozen"}
    assert record["prepare"]["tiny"]["met"] is True


def test_qat_step_goal_is_a_bound_from_above(script: Any) -> None:
    module = script("qat_step")
    assert module.goal({"ratio": 1.299})["met"] is True
    assert module.goal({"ratio": 1.301})["met"] is False


def test_qat_step_takes_every_place_in_the_round(script: Any) -> None:
    module = script("qat_step")
    order: list[str] = []
    steps = {name: lambda values, labels, name=name: order.append(name) for name in "abc"}
    found = module.timed(steps, torch.zeros(1), torch.zeros(1), rounds=3, warmup=1)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}
