from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from edgekd.catalog import CATALOGS
from edgekd.datasets._base import DataBundle, Wanted
from edgekd.errors import DataError, UsageError

MODULE = '''
import numpy as np
import torch
from dataclasses import replace
from edgekd.datasets._base import DataBundle, Dataset, InMemorySamples
from edgekd.spec import Preprocessing

X = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
Y = np.arange(40) % 4
SPLIT = InMemorySamples(torch.zeros(4, 1, 2, 2), torch.arange(4))
TALL = Preprocessing(size=[2, 3], channels=1, mean=[0.], std=[1.])
BUNDLE = DataBundle(SPLIT, SPLIT, SPLIT, tuple("abcd"), TALL.model_copy(update={"size": [2, 2]}), "f")
NONE = InMemorySamples(torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64))

def pair(wanted): return X, Y
def four(wanted): return X, Y, X[:8], Y[:8]
def named(wanted):
    return {"images": torch.from_numpy(X).permute(0, 3, 1, 2), "labels": Y, "layout": "NCHW", "classes": list("abcd")}
def bundle(wanted): return replace(BUNDLE, fingerprint=f"{wanted.seed} {wanted.val_fraction}")
def wrong_shape(wanted): return replace(BUNDLE, preprocessing=TALL)
def wrong_labels(wanted): return replace(BUNDLE, classes=("a", "b"))
def empty(wanted): return replace(BUNDLE, val=NONE)
def nothing(wanted): pass
def three(wanted): return X, Y, X
def misspelt(wanted): return {"images": X, "label": Y}
def half(wanted): return {"images": X, "labels": Y, "test_images": X}
def other_layout(wanted): return {"images": X, "labels": Y, "layout": "HWC"}
def no_arguments(): return X, Y
def fails(wanted): return open("/does/not/exist")
number = 3

class Mine(Dataset):
    """A data set of my own."""
    def load(self, wanted): return BUNDLE
'''


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DataBundle]]:
    (tmp_path / "my_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def loaded(function: str, wanted: Wanted | None = None) -> DataBundle:
        entry = CATALOGS["datasets"].load(f"my_data:{function}", allow_user_code=True)
        bundle: DataBundle = entry.member(entry.member.Options(), entry.argument).load(wanted or Wanted())
        return bundle

    yield loaded
    sys.modules.pop("my_data", None)


def test_a_tuple_of_arrays_is_split(load: Callable[..., DataBundle]) -> None:
    bundle = load("pair", Wanted(size=(4, 4)))
    assert len(bundle.train) + len(bundle.val) + len(bundle.test) == 40
    assert bundle.train.images(torch.arange(1)).shape == (1, 3, 4, 4)
    assert bundle.classes == ("0", "1", "2", "3")
    assert len(load("four").test) == 8


def test_a_dict_says_layout_and_classes(load: Callable[..., DataBundle]) -> None:
    named, pair = load("named"), load("pair")
    assert named.classes == ("a", "b", "c", "d")
    assert torch.equal(named.train.images(torch.arange(3)), pair.train.images(torch.arange(3)))


def test_a_bundle_is_taken_as_it_is_and_the_wanted_arrives(load: Callable[..., DataBundle]) -> None:
    assert load("bundle", Wanted(seed=5, val_fraction=0.25)).fingerprint == "5 0.25"


def test_a_subclass_of_dataset_is_used_directly(load: Callable[..., DataBundle]) -> None:
    assert load("Mine").fingerprint == "f"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", r"dataset 'my_data:nothing' returned NoneType\. Return a DataBundle, a tuple \(images, labels\)"),
        ("three", "returned a tuple of 3"),
        ("misspelt", "returned an unknown key 'label'. Did you mean 'labels'?"),
        ("half", "returned no 'test_labels'"),
        ("other_layout", "layout must be one of NHWC, NCHW, got 'HWC'"),
        ("no_arguments", r"failed: TypeError: .*It is called with one argument, a Wanted"),
        ("fails", r"failed: FileNotFoundError: .*/does/not/exist.*my_data\.py, line 29"),
        (
            "wrong_shape",
            r"\(train\): images are torch\.float32 of shape \(1, 2, 2\), the preprocessing says .*\(1, 2, 3\)",
        ),
        ("wrong_labels", r"\(train\): label 3 is out of range for 2 classes"),
        ("empty", "val has 0 samples and 0 labels"),
    ],
)
def test_what_cannot_be_used_is_refused(load: Callable[..., DataBundle], function: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(function)


def test_names_that_are_not_functions_are_refused(load: Callable[..., DataBundle]) -> None:
    with pytest.raises(UsageError, match="dataset 'my_data:number' must be a function, got int"):
        load("number")
    with pytest.raises(UsageError, match="has no 'missing'"):
        load("missing")
