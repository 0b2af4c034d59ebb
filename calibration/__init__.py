"""Calibrators: how the range of a tensor is chosen, one file each."""
