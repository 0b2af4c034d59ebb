"""What the contract of methods needs to know of `collaborative`."""

OPTIONS = {"students": "heads", "student_tap": "layer1"}
