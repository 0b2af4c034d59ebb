"""Devices: where a model runs and is measured, one file each."""
