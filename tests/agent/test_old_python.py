"""The program runs on Python 3.8: its grammar, and what is evaluated when it is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources

import pytest

FILES = {
    file.name: file.read_text(encoding="utf-8")
    for file in resources.files("edgekd.agent").iterdir()
    if file.name.endswith(".py")
}
# methods, keywords and modules that came after 3.8
LATER_METHODS = {"removeprefix", "removesuffix", "bit_count", "pairwise", "with_stem", "is_relative_to", "hardlink_to"}
LATER_MODULES = {"tomllib", "zoneinfo", "graphlib"}


def test_files_are_there() -> None:
    assert len(FILES) >= 10


@pytest.mark.parametrize("name", sorted(FILES))
def test_file_is_grammar_of_3_8_and_asks_for_nothing_later(name: str) -> None:
    tree = ast.parse(FILES[name], feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in LATER_METHODS, f"line {node.lineno}"
        elif isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & LATER_MODULES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            assert not node.keywords, f"line {node.lineno}: zip(strict=...) came with 3.10"


@pytest.mark.parametrize("name", sorted(FILES))
def test_annotations_are_not_evaluated_and_nothing_else_is_a_later_type(name: str) -> None:
    tree = ast.parse(FILES[name])
    if name != "__init__.py":
        assert "from __future__ import annotations" in FILES[name]
    for node in _evaluated(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            assert node.value.id not in {"list", "dict", "tuple", "set", "frozenset", "type"}, f"line {node.lineno}"


def _evaluated(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node outside annotations."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _evaluated(child)
