"""Targets: a runtime and its numerics, one file each."""
