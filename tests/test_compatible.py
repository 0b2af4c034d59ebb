from __future__ import annotations

import pytest

from edgekd.engine import check_compatible
from edgekd.errors import MismatchError
from edgekd.spec import ModelSpec, Preprocessing, TensorSpec


def interface(classes: int = 3, size: int = 8, mean: float = 0.5) -> ModelSpec:
    return ModelSpec(
        inputs=[TensorSpec(name="input", shape=["B", 1, size, size])],
        outputs=[TensorSpec(name="logits", shape=["B", classes])],
        labels=[f"class{index}" for index in range(classes)],
        preprocessing=Preprocessing(size=[size, size], channels=1, mean=[mean], std=[0.5]),
    )


def test_equal_interfaces_fit():
    check_compatible(interface(), interface())


def test_every_difference_is_named_with_both_values():
    with pytest.raises(MismatchError) as caught:
        check_compatible(interface(3, 8, 0.5), interface(10, 16, 0.25))
    message = str(caught.value)
    assert "classes: 3 and 10" in message
    assert "preprocessing size: [8, 8] and [16, 16]" in message
    assert "preprocessing mean: [0.5] and [0.25]" in message
    assert "input shape: [[1, 8, 8]] and [[1, 16, 16]]" in message


def test_order_of_the_labels_counts():
    teacher = interface().model_copy(update={"labels": ["class1", "class0", "class2"]})
    with pytest.raises(MismatchError, match="label of class 0: 'class0' and 'class1'"):
        check_compatible(interface(), teacher)
