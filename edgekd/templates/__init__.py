"""Templates of the reports and of `edgekd init`."""
