"""What the contract of methods needs to know of `hydra`."""

OPTIONS = {"student_tap": "flatten"}
TEACHERS = 2
