"""The package as it is installed: one top-level name, nothing forgotten, nothing that belongs to the repository."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import edgekd

PACKAGE_FOLDERS = {"edgekd": "edgekd", "edgekd.cli": "cli", "edgekd.calibration": "calibration"}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this repository, built from a copy so that nothing is left in it."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("building a wheel needs setuptools, which is not installed here")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:  # an unpacked source archive
        names = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
    else:
        names = [name for name in listed.stdout.split("\0") if name]
    for name in names:
        if (repository / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((repository / name).read_bytes())
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return zipfile.ZipFile(folder / built.stdout.strip().splitlines()[-1])


def installed(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_only_top_level_name_is_edgekd(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in installed(wheel)} == {"edgekd"}


def test_every_python_file_of_the_packages_is_in_the_wheel(wheel: zipfile.ZipFile, repository: Path) -> None:
    expected = set()
    for package, folder in PACKAGE_FOLDERS.items():
        for file in (repository / folder).rglob("*.py"):
            expected.add(f"{package.replace('.', '/')}/{file.relative_to(repository / folder).as_posix()}")
    assert len(expected) >= 120
    assert {name for name in installed(wheel) if name.endswith(".py")} == expected


def test_every_data_file_of_the_packages_is_in_the_wheel(wheel: zipfile.ZipFile, repository: Path) -> None:
    data = {
        f"{package.replace('.', '/')}/{file.relative_to(repository / folder).as_posix()}"
        for package, folder in PACKAGE_FOLDERS.items()
        for file in (repository / folder).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert {"edgekd/py.typed", "edgekd/templates/recipe.toml"} <= data
    assert {name for name in installed(wheel) if not name.endswith(".py")} == data


def test_nothing_of_the_repository_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert [name for name in installed(wheel) if re.search(r"(^|/)(tests?|benchmarks|examples|docs)(/|_)", name)] == []


def test_metadata_names_the_command_and_the_licence(wheel: zipfile.ZipFile, project: dict[str, Any]) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"Version: {edgekd.__version__}" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "License-File: LICENSE" in metadata
    assert {"tensorrt", "timm", "torchvision", "test"} <= set(re.findall(r"^Provides-Extra: (\S+)", metadata, re.M))
    assert "edgekd = edgekd.cli.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert project["project"]["readme"] == "README.md"


def test_version_is_written_the_same_in_both_places(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == edgekd.__version__


def test_packages_are_listed_one_by_one(project: dict[str, Any], repository: Path) -> None:
    expected = set()
    for package, folder in PACKAGE_FOLDERS.items():
        for file in (repository / folder).rglob("*.py"):
            inner = file.parent.relative_to(repository / folder).parts
            expected.add(".".join([package, *inner]))
    assert len(expected) >= 11
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(expected)
    assert project["tool"]["setuptools"]["package-dir"] == PACKAGE_FOLDERS


def test_every_import_is_a_dependency(project: dict[str, Any], repository: Path) -> None:
    """What the package imports is declared; what is declared is imported."""
    import ast

    modules = {"pillow": "PIL", "scikit-learn": "sklearn"}
    declared = {
        modules.get(name, name.replace("-", "_"))
        for name in (re.split(r"[ ><=!~;\[]", line)[0] for line in project["project"]["dependencies"])
    }
    optional = {"tensorrt", "tensorrt_rtx", "timm", "torchvision"}
    # these come with one that is declared, by its own contract
    brought = {"google", "markupsafe", "onnx_ir", "ml_dtypes"}
    imported: set[str] = set()
    for folder in PACKAGE_FOLDERS.values():
        for file in (repository / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"edgekd"}
    assert foreign - declared - optional - brought == set()
    # torch's exporter imports onnxscript by itself, accelerate tensorboard; of sklearn a file is read
    assert declared - foreign <= {"onnxscript", "tensorboard", "sklearn"}


def test_import_of_the_package_is_cheap() -> None:
    code = "import sys, edgekd; print(sorted(n for n in ('torch', 'numpy', 'pydantic', 'typer') if n in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_tests_mirror_the_source(repository: Path) -> None:
    """A folder of tests is a folder or a file of the source or the repository, or `contracts`, over whole catalogs."""
    folders = {path.name for path in (repository / "tests").iterdir() if path.is_dir() and path.name[0] not in "._"}
    sources = {path.name for place in (repository, repository / "edgekd") for path in place.iterdir() if path.is_dir()}
    sources |= {path.stem for place in ("edgekd", "cli") for path in (repository / place).glob("[!_]*.py")}
    assert folders <= sources | {"contracts"}
