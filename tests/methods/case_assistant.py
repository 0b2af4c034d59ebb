"""What the contract of methods needs to know of `assistant`."""

TEACHERS = 2
