"""Who is told how a run goes on."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Silent", "Watcher"]


class Watcher(Protocol):
    """Somebody who follows a run."""

    def stage(self, name: str, *, cached: bool) -> None:
        """A stage starts, or is skipped because its result is there."""
        ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        """The current stage went on."""
        ...

    def message(self, text: str) -> None:
        """Something the user should know; one line."""
        ...


class Silent:
    """A watcher that shows nothing."""

    def stage(self, name: str, *, cached: bool) -> None:
        """Ignored."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""
