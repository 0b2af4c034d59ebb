"""The contract's case of `nst`."""

from __future__ import annotations

CHANGES = {"kernel": "linear"}
