"""catalog: a file is a member, its docstring the summary, and nothing is imported to list them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.catalog import CATALOGS, Catalog, user_code_beside
from edgekd.errors import BackendMissing, UsageError


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """A catalog in a folder of its own, with two members and two private files."""
    package = f"shelf_{abs(hash(tmp_path))}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Calibrators."""\n')
    (folder / "_base.py").write_text(
        "from edgekd import spec\n\n\nclass Thing:\n    Options = spec.Options\n\n    def __init__(self, options):\n"
        "        self.options = options\n"
    )
    (folder / "_private.py").write_text("raise RuntimeError('nobody imports this')\n")
    base = f"from {package}._base import Thing\n\n\n"
    (folder / "first.py").write_text(f'"""The first one.\n\nMore.\n"""\n{base}class First(Thing):\n    pass\n')
    named = 'class Second(Thing):\n    def __init__(self, options, argument=""):\n        pass\n'
    (folder / "second.py").write_text(f'"""Takes a name."""\n{base}{named}')
    monkeypatch.syspath_prepend(tmp_path)
    return Catalog(package, "thing", "Thing")


def add(shelf: Catalog, name: str, content: str) -> None:
    (shelf.folder / f"{name}.py").write_text(content.replace("SHELF", shelf.package))


def test_members_are_the_files_without_an_underscore(shelf: Catalog) -> None:
    assert shelf.names() == ["first", "second"]
    add(shelf, "a_third", '"""The third."""\n')
    assert shelf.names() == ["a_third", "first", "second"]
    assert shelf.summary("first") == "The first one."


def test_member_is_the_one_class_of_its_file(shelf: Catalog) -> None:
    entry = shelf.load("first")
    assert (entry.member.__name__, entry.argument) == ("First", "")
    assert shelf.options("first") is entry.member.Options


def test_what_stands_after_a_colon_is_the_argument(shelf: Catalog) -> None:
    assert shelf.load("second:resnet18").argument == "resnet18"
    assert shelf.load("second:a:b").argument == "a:b"


def test_argument_is_refused_by_a_member_that_takes_none(shelf: Catalog) -> None:
    with pytest.raises(UsageError, match=r"thing 'first:x': 'first' takes nothing after a colon\. Write 'first'"):
        shelf.load("first:x")


@pytest.mark.parametrize("count", [0, 2])
def test_member_file_must_define_exactly_one_public_class(shelf: Catalog, count: int) -> None:
    classes = "".join(f"class C{index}(Thing):\n    pass\n\n\n" for index in range(count))
    add(shelf, "wrong", f'"""Wrong."""\nfrom SHELF._base import Thing\n\n\n{classes}class _Hidden(Thing):\n    pass\n')
    with pytest.raises(RuntimeError, match=rf"wrong must define exactly one public Thing, found {count}"):
        shelf.load("wrong")


def test_imported_classes_are_no_members_of_a_file(shelf: Catalog) -> None:
    add(
        shelf,
        "derived",
        '"""Derived."""\nfrom SHELF.first import First\n\n\nclass Derived(First):\n    pass\n',
    )
    assert shelf.load("derived").member.__name__ == "Derived"


def test_unknown_name_suggests_the_nearest(shelf: Catalog) -> None:
    with pytest.raises(UsageError, match=r"There is no thing 'frist'\. Did you mean 'first'\?"):
        shelf.load("frist")
    with pytest.raises(UsageError, match=r"There is no thing 'zzz'\. Valid names: first, second\."):
        shelf.load("zzz")


def test_member_whose_package_is_missing_names_the_extra(shelf: Catalog) -> None:
    add(shelf, "needy", '"""Needs something."""\nimport no_such_package_at_all\n')
    with pytest.raises(
        BackendMissing, match=r"'needy' needs the package 'no_such_package_at_all', .* Install edgekd\[needy\]"
    ):
        shelf.load("needy")


def test_fault_in_a_member_of_ours_is_not_a_missing_package(shelf: Catalog) -> None:
    add(shelf, "faulty", '"""Imports what edgekd does not have."""\nimport edgekd.no_such_module\n')
    with pytest.raises(ModuleNotFoundError, match=r"edgekd\.no_such_module"):
        shelf.load("faulty")


def test_user_class_is_loaded_when_allowed_and_refused_when_not(shelf: Catalog, tmp_path: Path) -> None:
    module = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text(
        f"from {shelf.package}._base import Thing\n\n\nclass Own(Thing):\n    pass\n\n\nvalue = 3\n"
    )
    with pytest.raises(UsageError, match=r"is code of your own\. If you trust it, put allow_user_code = true"):
        shelf.load(f"{module}:Own")
    assert module not in sys.modules
    assert shelf.load(f"{module}:Own", allow_user_code=True).member.__name__ == "Own"
    with pytest.raises(UsageError, match=rf"must be a subclass of {shelf.package}\.Thing, got 3"):
        shelf.load(f"{module}:value", allow_user_code=True)
    with pytest.raises(UsageError, match=f"module '{module}' has no 'Missing'"):
        shelf.load(f"{module}:Missing", allow_user_code=True)


def test_user_code_beside_a_recipe_goes_first_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    user_code_beside(tmp_path)
    user_code_beside(tmp_path)
    assert sys.path[0] == str(tmp_path.resolve())
    assert sys.path.count(str(tmp_path.resolve())) == 1


def test_catalog_of_a_package_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(RuntimeError, match=r"package edgekd\.nothing is not installed"):
        Catalog("edgekd.nothing", "nothing", "Nothing").names()


def test_names_and_summaries_of_every_catalog_import_nothing_heavy() -> None:
    code = """
import sys
from edgekd.catalog import CATALOGS
count = sum(1 for catalog in CATALOGS.values() for name in catalog.names() if catalog.summary(name))
print(count, [name for name in ("torch", "numpy", "onnx", "onnxruntime", "sklearn", "PIL") if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, heavy = ended.stdout.split(maxsplit=1)
    assert int(count) == sum(len(catalog.names()) for catalog in CATALOGS.values())
    assert heavy.strip() == "[]"
