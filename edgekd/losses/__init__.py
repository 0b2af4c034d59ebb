"""Losses: what knowledge is matched, one file each."""
