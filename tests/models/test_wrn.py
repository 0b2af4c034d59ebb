from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgekd.models.wrn import WideResNet


@pytest.mark.parametrize(("depth", "width", "published"), [(16, 2, 703_284), (40, 2, 2_255_156), (40, 1, 569_780)])
def test_size_is_that_of_the_family_within_one_percent(depth, width, published):
    model = WideResNet(WideResNet.Options(depth=depth, width=width)).build(100, (3, 32, 32))
    count = sum(parameter.numel() for parameter in model.parameters())
    # the order of a block moves a few normalisation parameters, nothing else
    assert abs(count - published) / published < 0.01


@pytest.mark.parametrize("depth", [4, 15, 20])
def test_depth_is_refused_when_not_6n_plus_4(depth):
    with pytest.raises(ValidationError, match=r"depth must be 6n\+4"):
        WideResNet.Options(depth=depth)
