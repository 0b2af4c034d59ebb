"""Options of a device as the command line gives them: --device-option KEY=VALUE."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.errors import UsageError

__all__ = ["device_options"]


def device_options(texts: Sequence[str] | None) -> dict[str, str]:
    """Values by key.

    Raises:
        UsageError: a text has another form.
    """
    pairs = {text: text.partition("=") for text in texts or ()}
    if wrong := [text for text, (key, sign, _) in pairs.items() if not key or not sign]:
        raise UsageError(f"--device-option must be KEY=VALUE, got {', '.join(wrong)}.")
    return {key: value for key, _, value in pairs.values()}
