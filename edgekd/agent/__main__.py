"""Start the program: from the archive that was sent, whose bytes are `ARCHIVE`, or from the installed package."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import io
import sys
import zipfile
from types import CodeType, ModuleType
from typing import Any, Optional

PACKAGE = "edgekd_agent"


class Packed(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Import the package from an archive in memory; nothing of it lies on the device's disk.

    Args:
        archive: a zip file whose entries are the package's files.
    """

    def __init__(self, archive: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            self._sources = {name: opened.read(name).decode() for name in opened.namelist()}

    def find_spec(
        self, fullname: str, path: Any = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        """Where a module comes from; None if it is not of this package."""
        if fullname.partition(".")[0] != PACKAGE or self._file(fullname) not in self._sources:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def is_package(self, fullname: str) -> bool:
        """Whether it is the package itself."""
        return fullname == PACKAGE

    def get_source(self, fullname: str) -> str:
        """The text of a module."""
        return self._sources[self._file(fullname)]

    def get_code(self, fullname: str) -> Optional[CodeType]:
        """A module compiled, under a name that a traceback can show."""
        return compile(self.get_source(fullname), f"{PACKAGE}/{self._file(fullname)}", "exec", dont_inherit=True)

    @staticmethod
    def _file(fullname: str) -> str:
        return (fullname.partition(".")[2] or "__init__") + ".py"


def start(archive: Optional[bytes]) -> int:
    """Answer requests on stdin until it ends; the exit code."""
    if archive is None:
        return int(importlib.import_module(".serve", __package__).main())
    sys.meta_path.insert(0, Packed(archive))
    # the shell's folder is no place to import from: a numpy.py lying there would be taken for numpy
    sys.path = [place for place in sys.path if place]
    return int(importlib.import_module(PACKAGE + ".serve").main())


if __name__ == "__main__":
    raise SystemExit(start(globals().get("ARCHIVE")))
