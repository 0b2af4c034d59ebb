"""What the contract of losses needs for `kd`: a list of temperatures has no obvious other value."""

CHANGES = {"more_taus": [1.0]}
