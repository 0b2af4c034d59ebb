"""What the contract of methods needs to know of `collaborative`."""

OPTIONS = {"student_tap": "layer1"}
