"""The contract's case of `ab`."""

from __future__ import annotations

CHANGES = {"until": 0.0}
