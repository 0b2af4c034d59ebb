from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from edgekd.datasets._base import Wanted
from edgekd.datasets.digits import Digits


def test_every_digit_of_scikit_learn_is_in_one_split_with_its_label() -> None:
    bundle = Digits(Digits.Options()).load(Wanted())
    found = load_digits()
    expected = {(image.tobytes(), int(label)) for image, label in zip(found.images, found.target, strict=True)}
    got = set()
    for samples in (bundle.train, bundle.val, bundle.test):
        images = samples.images(torch.arange(len(samples)))[:, 0].to(torch.float64).numpy() * 16
        got |= {(image.tobytes(), int(label)) for image, label in zip(images, samples.labels, strict=True)}
    assert got == expected
    assert len(bundle.train) + len(bundle.val) + len(bundle.test) == 1797


def test_a_fifth_of_each_digit_is_tested() -> None:
    bundle = Digits(Digits.Options()).load(Wanted())
    counts = np.bincount(load_digits().target)
    assert np.bincount(bundle.test.labels).tolist() == [round(count * 0.2) for count in counts]
    assert bundle.classes == tuple("0123456789")
