"""The contract's case of `mgd`."""

from __future__ import annotations

CHANGES = {"masked": 0.9, "mask": "channel"}
