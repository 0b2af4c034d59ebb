"""Hide what a library says about itself while it works: what is wrong comes as an error."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet(logger: str | None = None) -> Iterator[None]:
    """Drop warnings inside the block, and with a logger's name what it logs below an error."""
    talker = None if logger is None else logging.getLogger(logger)
    level = talker.level if talker else logging.NOTSET
    if talker:
        talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if talker:
            talker.setLevel(level)
