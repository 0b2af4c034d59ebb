from __future__ import annotations

import pytest

from edgekd.models._blocks import divisible


@pytest.mark.parametrize("channels", [1, 7, 8, 11.2, 16, 24.5, 33.6, 112, 1001])
def test_divisible_is_near_and_whole(channels):
    result = divisible(channels)
    assert result % 8 == 0
    assert result >= 0.9 * channels
    assert result <= max(8, channels + 8)
