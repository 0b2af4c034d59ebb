"""What the contract of methods needs to know of `own_teacher`."""

OPTIONS = {"taps": ["stem", "layer1"], "deepest_tap": "layer2"}
