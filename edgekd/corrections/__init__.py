"""Corrections: what a float network or a calibrated graph is changed into so that int8 loses less, one file each."""
