"""What the contract of methods needs to know of `native_ensemble`."""

OPTIONS = {"student_tap": "layer1"}
