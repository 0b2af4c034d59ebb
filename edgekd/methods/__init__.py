"""Methods: who learns from whom, one file each."""
