"""edgekd: from a float32 teacher to a verified int8 student that is fast on the device, from one recipe."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a checkout, Python started in its root finds this folder before an installed edgekd; there `edgekd.cli` and
# `edgekd.calibration` lie beside it. An installed package has both inside and needs nothing.
_root = _Path(__file__).resolve().parent.parent
if not (_root / "edgekd" / "cli").exists() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
