"""What the contract of methods needs to know of `two_views`."""

OPTIONS = {"features_tap": "avgpool"}
