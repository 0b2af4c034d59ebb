"""doctor: everything that is said to work was tried, and what is missing comes with its command."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from edgekd import _installed, _probes, doctor
from edgekd._installed import Package
from edgekd._probes import Provider, TorchDevice
from edgekd.doctor import Disk, diagnose

GOOD = [TorchDevice(name="cpu", works=True)]
CPU = [Provider(name="CPUExecutionProvider", works=True)]
DISK = Disk(path="/runs", free_bytes=2**40, total_bytes=2**41)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> doctor.Diagnosis:
    return diagnose(tmp_path_factory.mktemp("runs"))


def test_main_path_works_here(found: doctor.Diagnosis) -> None:
    assert found.problems == []
    assert found.exit_code == 0
    assert {one.name: one.works for one in found.providers}["CPUExecutionProvider"]
    assert {one.name: one.works for one in found.torch_devices}["cpu"]
    assert found.cpu["machine"]
    assert 0 < found.disk.free_bytes <= found.disk.total_bytes


def test_every_requirement_is_listed_with_the_version_that_is_imported(found: doctor.Diagnosis) -> None:
    import numpy

    wanted = [Requirement(line) for line in importlib.metadata.requires("edgekd") or []]
    assert len(found.packages) == sum(one.marker is None for one in wanted) >= 15
    assert {one.name: one.installed for one in found.packages}["numpy"] == numpy.__version__
    assert all(one.supported for one in found.packages)


def test_int8_sums_agree_with_the_processor_s_features(found: doctor.Diagnosis) -> None:
    if found.cpu["has_vnni"] is None:
        pytest.skip("the processor does not tell its features")
    if found.cpu["has_vnni"]:
        assert found.int8_sums == "exact"
    assert found.int8_sums in ("exact", "saturating")
    assert any("reduce_range" in text for text in found.warnings) is (found.int8_sums == "saturating")


def test_provider_that_does_not_open_says_why() -> None:
    found = _probes._provider("CUDAExecutionProvider")
    if found.works:
        pytest.skip("this machine has the provider")
    assert "CUDAExecutionProvider" in found.problem


def test_native_chatter_of_a_failed_session_is_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    _probes.providers()
    assert capfd.readouterr().err == ""


def test_tensorrt_parses_a_model_when_it_is_installed(found: doctor.Diagnosis) -> None:
    if found.tensorrt is None:
        pytest.skip("TensorRT is not installed. Install edgekd[tensorrt].")
    assert found.tensorrt.parses, found.tensorrt.problem


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_package_that_does_not_load_is_a_problem_not_a_crash(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what `import` then raises is a real ImportError
    providers = _probes.providers() if name == "onnxruntime" else CPU
    devices = _probes.torch_devices() if name == "torch" else GOOD
    problems = doctor._problems([], providers, devices)
    assert len(problems) == 1
    assert f"{name} does not load" in problems[0]


def test_versions_out_of_range_name_the_command() -> None:
    old = Package(name="torch", required="<2.14,>=2.11", installed="2.4.0", supported=False)
    gone = Package(name="onnx", required=">=1.21", installed=None, supported=False)
    assert doctor._problems([old, gone], CPU, GOOD) == [
        "torch 2.4.0: edgekd needs torch<2.14,>=2.11. Run `pip install 'torch<2.14,>=2.11'`.",
        "onnx is not installed: edgekd needs onnx>=1.21. Run `pip install 'onnx>=1.21'`.",
    ]


def test_range_is_judged_by_the_installed_version() -> None:
    version = importlib.metadata.version("numpy")
    assert _installed._package(Requirement(f"numpy=={version}")).supported
    assert not _installed._package(Requirement(f"numpy>{version}")).supported
    missing = _installed._package(Requirement("no-such-package-as-this>=1"))
    assert (missing.installed, missing.supported) == (None, False)


def test_extras_come_with_their_command() -> None:
    found = {one.name: one for one in _installed.extras()}
    assert {"tensorrt", "timm", "torchvision", "test"} <= set(found)
    for name, extra in found.items():
        assert extra.command == f"pip install 'edgekd[{name}]'"
        assert extra.installed is None or extra.installed is (not extra.missing)
    # the test extra brings the tensorrt one, where there is one for this platform
    assert set(found["tensorrt"].missing) <= set(found["test"].missing)


def test_missing_extra_names_its_packages() -> None:
    found = {one.name: one for one in _installed.extras()}["timm"]
    here = any(one.name == "timm" for one in importlib.metadata.distributions())
    assert found.missing == ([] if here else ["timm"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"disk": Disk(path="/runs", free_bytes=2**30, total_bytes=2**41)}, "Only 1.0 GiB are free in /runs"),
        ({"sums": "saturating"}, "saturate"),
        ({"cpu": {"has_vnni": False}}, "no VNNI: int8 is right here"),
        ({"packages": []}, "versions were not checked"),
    ],
)
def test_warning_when(changed: dict[str, Any], told: str) -> None:
    numpy = Package(name="numpy", required=">=1", installed="2", supported=True)
    values: dict[str, Any] = {"packages": [numpy], "cpu": {"has_vnni": True}, "sums": "exact", "disk": DISK}
    assert doctor._warnings(**values) == []
    warnings = doctor._warnings(**(values | changed))
    assert len(warnings) == 1
    assert told in warnings[0]


def test_diagnosis_travels_as_json(found: doctor.Diagnosis) -> None:
    assert doctor.Diagnosis.model_validate_json(found.model_dump_json()) == found


def test_folder_of_the_disk_is_the_one_asked_for(tmp_path: Path) -> None:
    assert Path(diagnose(tmp_path).disk.path) == tmp_path.resolve()
