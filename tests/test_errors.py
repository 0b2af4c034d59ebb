"""errors: the tree in the docstring is the tree in the code, and every error has the design's exit code."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from edgekd import errors
from edgekd.errors import EdgeKDError, RecipeError, did_you_mean

# the exit codes of the design: what each class means to a script that calls `edgekd`
EXIT_CODES = {
    "EdgeKDError": 1,
    "UsageError": 2,
    "RecipeError": 2,
    "MismatchError": 2,
    "OverwriteRefused": 2,
    "ArtifactError": 3,
    "WeightsError": 3,
    "DataError": 3,
    "ModelFileError": 3,
    "StorageError": 3,
    "BackendMissing": 4,
    "OutOfMemory": 3,
    "TrainingDiverged": 1,
    "GateFailed": 1,
    "Inconclusive": 5,
}


def public_classes() -> dict[str, type[EdgeKDError]]:
    return {name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, EdgeKDError)}


def test_every_class_has_the_exit_code_of_the_design() -> None:
    assert {name: kind.exit_code for name, kind in public_classes().items()} == EXIT_CODES


def test_all_lists_every_class_and_function() -> None:
    defined = [node.name for node in ast.parse(inspect.getsource(errors)).body if hasattr(node, "name")]
    assert sorted(errors.__all__) == sorted(defined)


def test_docstring_draws_the_tree_as_it_is() -> None:
    drawn: dict[str, tuple[str | None, int]] = {}
    ancestors: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if (found := re.match(r"^    (?P<art>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<code>\d+)", line)) is None:
            continue
        depth = len(found["art"]) // 4
        ancestors[depth:] = [found["name"]]
        drawn[found["name"]] = (ancestors[depth - 1] if depth else None, int(found["code"]))
    real = {
        name: (kind.__base__.__name__ if kind is not EdgeKDError and kind.__base__ else None, kind.exit_code)
        for name, kind in public_classes().items()
    }
    assert drawn == real


def test_every_class_says_what_it_is_for() -> None:
    for name, kind in public_classes().items():
        assert (kind.__doc__ or "").split("\n")[0].endswith("."), name


def test_errors_defined_elsewhere_are_special_cases_of_the_tree(repository: Path) -> None:
    known = set(EXIT_CODES)
    found, visited = set(), 0
    for folder in ("edgekd", "calibration", "cli"):
        for file in (repository / folder).rglob("*.py"):
            visited += 1
            if file == repository / "edgekd" / "errors.py":
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and known & {ast.unparse(base) for base in node.bases}:
                    found.add(node.name)
    assert visited >= 120
    # an operation's own refinement of its base: it has an exit code, and nothing but that operation raises it
    assert found <= {"NotFaithful"}


def test_recipe_error_lists_every_problem() -> None:
    error = RecipeError("r.toml", ["a: wrong", "b: missing"])
    assert str(error) == "r.toml: 2 problems\n  a: wrong\n  b: missing"
    assert (error.source, error.problems) == ("r.toml", ("a: wrong", "b: missing"))
    assert str(RecipeError("r.toml", ["a: wrong"])).startswith("r.toml: 1 problem\n")


@pytest.mark.parametrize(
    ("name", "valid", "told"),
    [
        ("epoch", ["epochs", "lr"], "Did you mean 'epochs'?"),
        ("zzz", ["kd", "hint", "kd"], "Valid names: hint, kd."),
        ("zzz", [], "There are no valid names here."),
    ],
)
def test_did_you_mean_names_the_nearest_or_all(name: str, valid: list[str], told: str) -> None:
    assert did_you_mean(name, valid) == told
