"""What a member's own tests tell the contract tests about it: `tests/<folder>/case_<name>.py`, if it is there."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["case"]


@cache
def case(folder: str, name: str) -> dict[str, Any]:
    """The names that the file defines; empty without a file."""
    path = Path(__file__).parent / folder / f"case_{name}.py"
    if not path.is_file():
        return {}
    spec = importlib.util.spec_from_file_location(f"{folder}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)
