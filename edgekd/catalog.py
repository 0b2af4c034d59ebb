"""A folder is the list of its plug-ins: one new file adds one member.

A member's name is its file's name, its summary the first line of the file's docstring, and both are read
without importing it. Files whose name starts with an underscore are not members. A name with a colon is
either a member with an argument (`timm:resnet18`) or a user's own `package.module:name`, which is loaded
only when the recipe allows user code.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgekd.errors import BackendMissing, UsageError, did_you_mean
from edgekd.spec import Options

__all__ = ["CATALOGS", "Catalog", "Entry", "user_code_beside"]


@dataclass(frozen=True)
class Entry:
    """A resolved catalog name: the member's class, and what stood after a colon ("" if nothing)."""

    member: type[Any]
    argument: str = ""


@dataclass(frozen=True)
class Catalog:
    """The members of one folder.

    Args:
        package: the folder as a package, "edgekd.losses".
        noun: what one member is called in messages, "loss".
        base: name of the contract class in the folder's `_base.py`.
    """

    package: str
    noun: str
    base: str

    @property
    def folder(self) -> Path:
        """The folder on disk; found without importing the package's members."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"package {self.package} is not installed with edgekd")
        return Path(next(iter(spec.submodule_search_locations)))

    def names(self) -> list[str]:
        """Every member's name, sorted."""
        return sorted(file.stem for file in self.folder.glob("*.py") if not file.stem.startswith("_"))

    def summary(self, name: str) -> str:
        """The first line of the member's docstring, read without importing it."""
        tree = ast.parse((self.folder / f"{name}.py").read_text(encoding="utf-8"))
        return (ast.get_docstring(tree) or "").split("\n")[0]

    def load(self, name: str, *, allow_user_code: bool = False) -> Entry:
        """Import the member called `name`.

        Raises:
            UsageError: no such member, or user code that the recipe does not allow.
            BackendMissing: the member needs a package that is not installed.
        """
        head, _, argument = name.partition(":")
        if head in self.names():
            member = _member_of(self.package, head, self.base)
            if argument and not _takes_argument(member):
                raise UsageError(f"{self.noun} '{name}': '{head}' takes nothing after a colon. Write '{head}'.")
            return Entry(member, argument)
        if not argument:
            raise UsageError(f"There is no {self.noun} '{name}'. {did_you_mean(name, self.names())}")
        if not allow_user_code:
            raise UsageError(
                f"{self.noun} '{name}' is code of your own. If you trust it, put allow_user_code = true at the top of"
                " the recipe."
            )
        return self._user(name)

    def _user(self, name: str) -> Entry:
        target = _import_object(name, self.noun)
        base = getattr(importlib.import_module(f"{self.package}._base"), self.base)
        if inspect.isclass(target) and issubclass(target, base):
            return Entry(target)
        if importlib.util.find_spec(f"{self.package}._user") is None:
            raise UsageError(f"{self.noun} '{name}' must be a subclass of {self.package}.{self.base}, got {target!r}")
        return Entry(_member_of(self.package, "_user", self.base), name)

    def options(self, name: str, *, allow_user_code: bool = False) -> type[Options]:
        """The options class of the member called `name`."""
        options: type[Options] = self.load(name, allow_user_code=allow_user_code).member.Options
        return options


def user_code_beside(folder: Path) -> None:
    """Let `package.module:name` be found beside the recipe, which lies in this folder."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
        importlib.invalidate_caches()


def _takes_argument(member: type[Any]) -> bool:
    taken: bool = getattr(member, "takes_argument", "argument" in inspect.signature(member).parameters)
    return taken


def _import_object(name: str, noun: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise UsageError(f"{noun} '{name}': write package.module:name.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{noun} '{name}': cannot import '{error.name}'. Put the file beside the recipe or install its package."
        ) from error
    except Exception as error:
        # the fault is in the user's code: say where, since no traceback is shown for it
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{noun} '{name}': importing '{module_name}' failed: {type(error).__name__}: {error} ({frame.filename},"
            f" line {frame.lineno})."
        ) from error
    if not hasattr(module, attribute):
        raise UsageError(f"{noun} '{name}': module '{module_name}' has no '{attribute}'.")
    return getattr(module, attribute)


@cache
def _member_of(package: str, name: str, base_name: str) -> type[Any]:
    try:
        module = importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "edgekd":
            raise
        raise BackendMissing(
            f"'{name}' needs the package '{error.name}', which is not installed. Install edgekd[{name.strip('_')}]."
        ) from error
    base = getattr(importlib.import_module(f"{package}._base"), base_name)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
        if not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise RuntimeError(f"{package}.{name} must define exactly one public {base_name}, found {len(found)}")
    return found[0]


CATALOGS = {
    "losses": Catalog("edgekd.losses", "loss", "Loss"),
    "methods": Catalog("edgekd.methods", "method", "Method"),
    "models": Catalog("edgekd.models", "model", "ModelFactory"),
    "datasets": Catalog("edgekd.datasets", "dataset", "Dataset"),
    "targets": Catalog("edgekd.targets", "target", "Target"),
    "devices": Catalog("edgekd.devices", "device", "Device"),
    "calibration": Catalog("edgekd.calibration", "calibrator", "Calibrator"),
    "corrections": Catalog("edgekd.corrections", "correction", "Correction"),
}
