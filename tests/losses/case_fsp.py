"""What the contract needs to know of `fsp`: both sides have the same channels, and `until` is a fraction."""

CHANNELS = (4, 4)
CHANGES = {"until": 0.0}
