"""Logits as a cache keeps them: the mass of the k classes and of the others stays what it was."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekd._cache_codec import decoded, encoded

CLASSES = 12
ROWS = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=CLASSES, max_size=CLASSES), min_size=1, max_size=4).map(
    torch.tensor
)


def kept(logits: Tensor, k: int | None, dtype: torch.dtype = torch.float32) -> Tensor:
    return decoded(encoded(logits, top_k=k, dtype=dtype), classes=logits.shape[1])


def test_others_share_their_mass_evenly_by_hand() -> None:
    logits = torch.tensor([[6.0, 1.0, 3.0, 2.0]]).log()
    assert torch.allclose(kept(logits, 1).exp(), torch.tensor([[6.0, 2.0, 2.0, 2.0]]))
    assert torch.allclose(kept(logits, 2).exp(), torch.tensor([[6.0, 1.5, 3.0, 1.5]]))
    found = encoded(logits, top_k=2, dtype=torch.float32)
    assert found["classes"].tolist() == [[0, 2]]
    assert math.isclose(float(found["others"]), math.log(1.5), rel_tol=1e-6)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, CLASSES - 1))
def test_mass_of_the_k_classes_is_kept_and_all_of_it_is_one(logits: Tensor, k: int) -> None:
    found = torch.softmax(kept(logits, k), dim=1)
    exact = torch.softmax(logits.double(), dim=1)
    top = logits.topk(k, dim=1).indices
    assert torch.allclose(found.gather(1, top).double(), exact.gather(1, top), rtol=1e-4, atol=1e-7)
    assert torch.allclose(found.sum(dim=1), torch.ones(len(logits)), atol=1e-6)
    # nothing that was left out is above what was kept
    rest = kept(logits, k).scatter(1, top, -math.inf).max(dim=1).values
    assert bool((rest <= logits.gather(1, top).min(dim=1).values + 1e-5).all())


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_more_classes_are_never_further_from_the_teacher(logits: Tensor) -> None:
    exact = torch.log_softmax(logits.double(), dim=1)
    apart = []
    for k in (*range(1, CLASSES), None):
        found = torch.log_softmax(kept(logits, k).double(), dim=1)
        apart.append((exact.exp() * (exact - found)).sum(dim=1))
    for fewer, more in pairwise(apart):
        assert bool((more <= fewer + 1e-5).all())
    assert torch.allclose(apart[-1], torch.zeros(()).double(), atol=1e-9)


def test_renormalising_would_sharpen_and_this_does_not() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    renormalised = torch.softmax(logits[:, :1], dim=1)[0, 0]
    assert float(renormalised) == 1.0
    assert torch.isclose(torch.softmax(kept(logits, 1), dim=1)[0, 0], torch.softmax(logits, dim=1)[0, 0])


def test_all_logits_in_float32_are_the_same_bits() -> None:
    logits = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kept(logits, None), logits)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
@pytest.mark.parametrize("k", [3, None])
def test_half_precision_rounds_each_logit_once(dtype: torch.dtype, rounding: float, k: int | None) -> None:
    logits = 10 * torch.randn(50, CLASSES, generator=torch.Generator().manual_seed(0))
    found = kept(logits, k, dtype)
    top = logits.topk(k or CLASSES, dim=1).indices
    exact = logits.gather(1, top)
    assert bool(((found.gather(1, top) - exact).abs() <= rounding * exact.abs()).all())


@pytest.mark.parametrize(("classes", "dtype"), [(32768, torch.int16), (32769, torch.int32)])
def test_class_numbers_take_two_bytes_as_long_as_they_fit(classes: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(1, classes)
    logits[0, -1] = 9.0
    found = encoded(logits, top_k=1, dtype=torch.float16)
    assert found["classes"].dtype == dtype
    assert int(found["classes"]) == classes - 1
    assert int(decoded(found, classes=classes).argmax()) == classes - 1
