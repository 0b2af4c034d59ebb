"""edgekd: from a float32 teacher to a verified int8 student that is fast on the device, from one recipe."""

__version__ = "0.1.0"
