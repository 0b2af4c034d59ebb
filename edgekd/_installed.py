"""Installed packages against what edgekd's own metadata asks for."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgekd.spec import Frozen

__all__ = ["Extra", "Package", "extras", "packages"]

_DISTRIBUTION = "edgekd"


class Package(Frozen):
    """A required package.

    Args:
        required: supported versions, "<2.14,>=2.11".
        installed: its version; None if it is not installed.
        supported: it is installed in a version that is supported.
    """

    name: str
    required: str
    installed: str | None
    supported: bool


class Extra(Frozen):
    """An optional part of edgekd.

    Args:
        installed: all its packages are here, in supported versions; None if it does not exist for this platform.
        missing: those that are not.
        command: what installs it.
    """

    name: str
    installed: bool | None
    missing: list[str]
    command: str


def packages() -> list[Package]:
    """The packages that edgekd requires, by name; empty if edgekd itself is not installed."""
    wanted = [one for one in _requirements() if _applies(one, "")]
    return sorted((_package(one) for one in wanted), key=lambda one: one.name)


def extras() -> list[Extra]:
    """The optional parts, by name."""
    try:
        names = importlib.metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [_extra(name) for name in sorted(names)]


def _extra(name: str) -> Extra:
    wanted = [one for one in _requirements() if _applies(one, name) and not _applies(one, "")]
    own = [_package(one) for one in wanted if canonicalize_name(one.name) != _DISTRIBUTION]
    missing = [one.name for one in own if not one.supported]
    for nested in (inner for one in wanted if canonicalize_name(one.name) == _DISTRIBUTION for inner in one.extras):
        missing += _extra(nested).missing
    return Extra(
        name=name,
        installed=not missing if wanted else None,
        missing=missing,
        command=f"pip install '{_DISTRIBUTION}[{name}]'",
    )


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in importlib.metadata.requires(_DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement) -> Package:
    try:
        installed = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        installed = None
    # prereleases=True: a nightly build inside the range is inside the range
    supported = installed is not None and requirement.specifier.contains(installed, prereleases=True)
    return Package(name=requirement.name, required=str(requirement.specifier), installed=installed, supported=supported)
