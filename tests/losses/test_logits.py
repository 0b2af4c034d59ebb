from __future__ import annotations

import pytest
import torch

from edgekd.errors import MismatchError
from edgekd.losses._base import Outputs
from edgekd.losses._logits import classes_of, needs_softmax, needs_three_classes, needs_to_standardize, standardized


def of_shape(*shape: int) -> Outputs:
    return Outputs(torch.zeros(*shape))


def test_standardized_logits_worked_by_hand():
    # mean 2; squared differences 4, 1, 0, 1, 4 sum to 10, over K - 1 = 4 that is 2.5
    found = standardized(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]))
    torch.testing.assert_close(found, torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]]) / 2.5**0.5)


def test_standardized_logits_do_not_see_shift_and_scale():
    logits = torch.randn(6, 5)
    torch.testing.assert_close(standardized(logits * 30 + 7), standardized(logits), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(standardized(-logits), -standardized(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 3000.0])
def test_standardized_logits_and_gradient_are_finite_when_half_precision(dtype, scale):
    torch.manual_seed(0)
    logits = (torch.randn(4, 10) * scale).to(dtype).requires_grad_()
    found = standardized(logits)
    found.pow(3).mean().backward()
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert logits.grad.isfinite().all()


def test_equal_logits_become_zeros_with_a_gradient_of_ordinary_size():
    # a head that starts at zero gives such rows; dividing by the epsilon would multiply its gradient by 1e7
    logits = torch.full((1, 4), 0.3, requires_grad=True)
    found = standardized(logits)
    assert found.abs().max() < 1e-6
    (found * torch.tensor([1.0, 0.0, 0.0, 0.0])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.25, -0.25, -0.25]]))


def test_two_standardized_logits_keep_only_the_argmax():
    found = standardized(torch.tensor([[0.0, 0.1], [0.0, 9.0]]))
    torch.testing.assert_close(found, torch.tensor([[-(0.5**0.5), 0.5**0.5]]).repeat(2, 1), atol=1e-5, rtol=0)


def test_classes_are_counted_when_the_sides_agree():
    assert classes_of("kd", of_shape(2, 5), of_shape(2, 5)) == 5
    assert classes_of("cross_entropy", of_shape(2, 5), None) == 5
    assert needs_softmax("kd", of_shape(2, 2), of_shape(2, 2), instead="binary_kd") == 2


@pytest.mark.parametrize("teacher", [(2, 4), (2, 3, 1)])
def test_error_names_both_shapes_when_the_sides_disagree(teacher):
    with pytest.raises(MismatchError, match=r"student \(2, 3\), teacher \(2, "):
        classes_of("kd", of_shape(2, 3), of_shape(*teacher))


def test_error_when_logits_are_not_one_row_for_each_sample():
    with pytest.raises(MismatchError, match=r"cross_entropy compares logits of shape \(B, K\).*student \(2, 3, 4, 4\)"):
        classes_of("cross_entropy", of_shape(2, 3, 4, 4), None)


def test_error_points_to_the_other_loss_when_there_is_one_logit():
    with pytest.raises(MismatchError, match=r"1 logit, whose softmax is always 1\. Use binary_kd"):
        needs_softmax("kd", of_shape(2, 1), of_shape(2, 1), instead="binary_kd")


@pytest.mark.parametrize("classes", [1, 2])
def test_error_when_too_few_logits_are_standardized(classes):
    needs_to_standardize("kd", 3)
    with pytest.raises(MismatchError, match=f"kd cannot standardize {classes} logits.*argmax.*standardize = false"):
        needs_to_standardize("kd", classes)


def test_error_when_two_classes_say_nothing():
    needs_three_classes("dist", 3, because="it cannot", instead="kd")
    with pytest.raises(MismatchError, match=r"dist needs three classes or more, got 2: it cannot\. Use kd\."):
        needs_three_classes("dist", 2, because="it cannot", instead="kd")
