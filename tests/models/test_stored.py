"""A teacher whose answers were stored: looked up by sample, in three forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import DataError, MismatchError, ModelFileError, UsageError
from edgekd.methods._observe import example_outputs, observe_frozen
from edgekd.models.stored import Stored
from edgekd.taps import Tapped

CLASSES, SHAPE = 4, (1, 2, 2)
LOGITS = np.random.default_rng(0).standard_normal((6, CLASSES)).astype(np.float32)


def built(folder: Path, options: dict[str, Any] | None = None, **arrays: Any) -> nn.Module:
    np.savez(folder / "answers.npz", **arrays)
    return Stored(Stored.Options(**(options or {})), str(folder / "answers.npz")).build(CLASSES, SHAPE)


def asked(network: nn.Module, ids: list[int]) -> Tensor:
    return observe_frozen(Tapped(network), torch.randn(len(ids), *SHAPE), torch.tensor(ids)).logits


def test_logits_are_those_of_the_samples(tmp_path):
    network = built(tmp_path, logits=LOGITS)
    assert torch.equal(asked(network, [5, 0, 5]), torch.from_numpy(LOGITS[[5, 0, 5]]))
    assert network.samples == 6
    assert network.test_logits is None


def test_half_precision_comes_as_float(tmp_path):
    assert asked(built(tmp_path, logits=LOGITS.astype(np.float16)), [1]).dtype == torch.float32


def test_top_k_keeps_the_given_probabilities(tmp_path):
    indices, values = np.array([[3, 1], [0, 2]]), np.array([[0.7, 0.2], [0.5, 0.5]])
    found = asked(built(tmp_path, indices=indices, values=values), [0, 1]).softmax(dim=1)
    np.testing.assert_allclose(found, [[0.05, 0.2, 0.05, 0.7], [0.5, 0, 0.5, 0]], atol=1e-6)
    again = asked(built(tmp_path, {"values": "log_probabilities"}, indices=indices, values=np.log(values)), [0, 1])
    torch.testing.assert_close(again.softmax(dim=1), found)


def test_labels_get_the_confidence(tmp_path):
    network = built(tmp_path, {"confidence": 0.7}, labels=np.array([2, 0]))
    np.testing.assert_allclose(asked(network, [1, 0]).exp(), [[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]], rtol=1e-5)


def test_it_refuses_images_without_numbers(tmp_path):
    network = built(tmp_path, logits=LOGITS)
    with pytest.raises(UsageError, match="here an image comes without one"):
        network(torch.zeros(2, *SHAPE))
    # the numbers of one batch are not those of the next
    asked(network, [0, 1])
    with pytest.raises(UsageError, match="here an image comes without one"):
        network(torch.zeros(2, *SHAPE))
    network.look_up(torch.tensor([0]))
    with pytest.raises(UsageError, match="here an image comes without one"):
        network(torch.zeros(2, *SHAPE))


def test_a_copy_shows_shapes_without_numbers(tmp_path):
    network = built(tmp_path, logits=LOGITS)
    assert example_outputs(Tapped(network), torch.zeros(9, *SHAPE)).logits.shape == (9, CLASSES)
    with pytest.raises(UsageError, match="without one"):
        network(torch.zeros(9, *SHAPE))


def test_it_refuses_samples_that_have_no_row(tmp_path):
    with pytest.raises(MismatchError, match="answers for 6 training samples, sample 6 was asked for"):
        asked(built(tmp_path, logits=LOGITS), [0, 6])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": LOGITS[:, :3]}, r"logits has the shape \(6, 3\), the data has 4 classes"),
        ({"logits": LOGITS, "test_logits": LOGITS[0]}, r"test_logits has the shape \(4,\)"),
        ({"logits": np.where(LOGITS > 1, np.nan, LOGITS)}, "logits: NaN or infinity for"),
        ({"logits": LOGITS.astype(np.int64)}, "logits must be floats, got int64"),
        ({"logits": LOGITS[:0]}, "holds no answers"),
        ({"indices": np.array([[0, 9]]), "values": np.array([[0.5, 0.1]])}, "classes run from 0 to 9"),
        ({"indices": np.array([[0, 1]]), "values": np.array([[8.0, -1.0]])}, "Logits of a few classes do not tell"),
        ({"labels": np.array([4])}, "labels: classes run from 4 to 4"),
        ({"labels": np.array([0]), "true_labels": np.array([0.5])}, "true_labels: classes must be integers"),
    ],
)
def test_it_refuses_arrays_that_do_not_fit(tmp_path, arrays, message):
    with pytest.raises(MismatchError, match=message):
        built(tmp_path, **arrays)


def test_it_refuses_files_without_one_of_the_forms(tmp_path):
    with pytest.raises(DataError, match=r"has the arrays logit. Give one of these: logits; indices and values; labels"):
        built(tmp_path, logit=LOGITS)
    with pytest.raises(DataError, match="has the arrays labels, logits"):
        built(tmp_path, logits=LOGITS, labels=np.zeros(6, dtype=np.int64))
    with pytest.raises(DataError, match=r"not an .npz file of plain arrays"):
        built(tmp_path, logits=np.array([{"code": 1}], dtype=object))
    with pytest.raises(DataError, match="an array that is not of numbers"):
        built(tmp_path, logits=np.array([["text"]]))
    (tmp_path / "text.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"not an .npz file"):
        Stored(Stored.Options(), str(tmp_path / "text.npz")).build(CLASSES, SHAPE)
    np.save(tmp_path / "one.npy", LOGITS)
    with pytest.raises(DataError, match=r"not an .npz file"):
        Stored(Stored.Options(), str(tmp_path / "one.npy")).build(CLASSES, SHAPE)
    with pytest.raises(ModelFileError, match=r"gone.npz does not exist"):
        Stored(Stored.Options(), str(tmp_path / "gone.npz")).build(CLASSES, SHAPE)
