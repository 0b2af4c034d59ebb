"""A teacher behind a function: what it returns becomes logits, or one sentence that names it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import MismatchError, UsageError
from edgekd.models.black_box import BlackBox

CLASSES, SHAPE = 3, (1, 2, 2)
SOURCE = """
import numpy as np
import torch

PROBABILITIES = np.array([0.7, 0.2, 0.1])
seen = []

def logits(images):
    seen.append((type(images).__name__, images.dtype.name, images.shape))
    images += 1  # may write into what it is given
    return np.log(np.tile(PROBABILITIES, (len(images), 1)))

def probabilities(images):
    return torch.tensor(np.tile(PROBABILITIES, (len(images), 1)))

def top_k(images):
    return np.tile([0, 1], (len(images), 1)), np.tile([0.7, 0.2], (len(images), 1))

def log_top_k(images):
    indices, values = top_k(images)
    return indices, np.log(values)

def labels(images):
    return [0] * len(images)

def too_few(images):
    return logits(images)[:-1]

def other_classes(images):
    return np.zeros((len(images), 5), dtype=np.float32)

def broken(images):
    return logits(images) * np.nan

def text(images):
    return ["cat"] * len(images)

def fails(images):
    raise ConnectionError("no route")

def none(images):
    return None

def two(images, key):
    return images

number = 3
"""


@pytest.fixture(autouse=True)
def _users_file(tmp_path, monkeypatch):
    (tmp_path / "users_service.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def built(name: str, **options: Any) -> nn.Module:
    return BlackBox(BlackBox.Options(**options), f"users_service:{name}").build(CLASSES, SHAPE)


def images(count: int = 2) -> Tensor:
    return torch.zeros(count, *SHAPE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("logits", {}),
        ("probabilities", {"gives": "probabilities"}),
        ("top_k", {"gives": "top_k"}),
        ("log_top_k", {"gives": "top_k", "values": "log_probabilities"}),
    ],
)
def test_every_kind_of_answer_is_the_same_distribution(name, options):
    logits = built(name, **options)(images())
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.softmax(dim=1), [[0.7, 0.2, 0.1]] * 2, rtol=1e-5)


def test_labels_get_the_confidence():
    logits = built("labels", gives="labels", confidence=0.8)(images())
    np.testing.assert_allclose(logits.exp(), [[0.8, 0.1, 0.1]] * 2, rtol=1e-5)


def test_it_is_given_an_array_of_its_own():
    given = images()
    built("logits")(given)
    assert torch.equal(given, images())
    import users_service

    assert users_service.seen[-1] == ("ndarray", "float32", (2, 1, 2, 2))


def test_its_source_is_the_file_of_the_function(tmp_path):
    factory = BlackBox(BlackBox.Options(), "users_service:logits")
    assert [path.name for path in factory.sources()] == ["users_service.py"]
    assert BlackBox.runs_user_code


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("too_few", {}, r"must return one row for each of 2 images, got \(1, 3\)"),
        ("other_classes", {}, "gives 5 classes, the data has 3"),
        ("broken", {}, r"NaN or infinity for 2 of 2 samples \(first: row 0\)"),
        ("labels", {}, r"gives \(2,\) for 2 samples, but logits must be \(B, K\)"),
        ("text", {}, "must return arrays of numbers, got a list of 2"),
        ("none", {}, "must return arrays of numbers, got a NoneType"),
        ("none", {"gives": "top_k"}, "must return a tuple of classes and values, got a NoneType"),
        ("logits", {"gives": "probabilities"}, "rows must be probabilities that sum to 1"),
        ("log_top_k", {"gives": "top_k"}, "values = 'log_probabilities'"),
        ("logits", {"gives": "labels"}, r"labels must be \(B,\), got \(2, 3\)"),
    ],
)
def test_an_answer_is_refused_by_name_when_it_is_not_what_it_gives(name, options, message):
    with pytest.raises(MismatchError, match=f"Model 'black_box:users_service:{name}' .*{message}"):
        built(name, **options)(images())


def test_the_line_is_named_when_the_function_fails():
    with pytest.raises(
        UsageError, match=r"'black_box:users_service:fails' failed for .*ConnectionError: no route .*py, line \d"
    ):
        built("fails")(images())


def test_it_refuses_what_cannot_be_asked():
    with pytest.raises(UsageError, match="must be a function, got int"):
        built("number")
    with pytest.raises(UsageError, match=r"cannot be called with the images alone: missing .*'key'"):
        built("two")
    with pytest.raises(UsageError, match="has no 'gone'"):
        built("gone")
    with pytest.raises(UsageError, match=r"Write black_box:package.module:function"):
        BlackBox(BlackBox.Options(), "users_service").build(CLASSES, SHAPE)
