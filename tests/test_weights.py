from __future__ import annotations

import os
import re
import resource

import pytest
import torch
from torch import nn

from edgekd.errors import StorageError, WeightsError
from edgekd.weights import load_weights, read_metadata, read_weights, save_weights


def network(hidden: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, hidden, 3), nn.BatchNorm2d(hidden), nn.Flatten(), nn.Linear(hidden, 3))


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


class Runs:
    """What a hostile pickle does: unpickling it calls a function."""

    def __reduce__(self):
        return (os.system, ("true",))


def test_weights_return_when_saved_as_safetensors(tmp_path):
    ours, theirs = network(), network()
    assert not same(ours, theirs)
    save_weights(tmp_path / "w.safetensors", ours, metadata={"classes": "3"})
    load_weights(theirs, tmp_path / "w.safetensors")
    assert same(ours, theirs)
    assert read_metadata(tmp_path / "w.safetensors") == {"classes": "3"}
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_tied_and_strided_tensors_are_saved(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    save_weights(tmp_path / "w", {"a": base, "b": base, "c": base.t()}, metadata={})
    found = read_weights(tmp_path / "w")
    assert torch.equal(found["c"], base.t())
    assert torch.equal(found["a"], found["b"])


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict_of_torch_save_is_read(tmp_path, key, prefix, legacy):
    ours, theirs = network(), network()
    state = {prefix + name: value for name, value in ours.state_dict().items()}
    content = state if key is None else {key: state, "epoch": 3}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    load_weights(theirs, tmp_path / "w.pth")
    assert same(ours, theirs)


def test_counters_may_be_absent(tmp_path):
    state = {name: value for name, value in network().state_dict().items() if "num_batches" not in name}
    save_weights(tmp_path / "w", state, metadata={})
    load_weights(network(), tmp_path / "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_with_code_is_refused(tmp_path, legacy):
    torch.save({"a": Runs()}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"w\.pth is a pickle of Python objects.*could run code: refused"):
        read_weights(tmp_path / "w.pth")


def test_error_names_keys_and_both_shapes_when_the_model_differs(tmp_path):
    state = network(5).state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["3.bias"]
    save_weights(tmp_path / "w", state, metadata={})
    model = network(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, tmp_path / "w")
    message = str(caught.value)
    assert str(tmp_path / "w") in message
    assert "missing from the file: 3.bias" in message
    assert "not in the model: extra.weight" in message
    assert "0.weight: model [4, 1, 3, 3], file [5, 1, 3, 3]" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_error_stays_short_when_hundreds_of_keys_are_missing(tmp_path):
    save_weights(tmp_path / "w", network().state_dict(), metadata={})
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    with pytest.raises(WeightsError, match=r"and \d+ more") as caught:
        load_weights(deep, tmp_path / "w")
    assert len(str(caught.value)) < 1500


def test_error_when_a_value_is_not_finite(tmp_path):
    state = network().state_dict()
    state["3.bias"][0] = float("nan")
    save_weights(tmp_path / "w", state, metadata={})
    with pytest.raises(WeightsError, match=r"holds NaN or infinity:\n  not finite: 3\.bias"):
        load_weights(network(), tmp_path / "w")


def test_every_truncation_is_an_error(tmp_path):
    save_weights(tmp_path / "whole.safetensors", network(), metadata={})
    torch.save(network().state_dict(), tmp_path / "whole.pth")
    tried = 0
    for whole in ("whole.safetensors", "whole.pth"):
        content = (tmp_path / whole).read_bytes()
        for length in [0, 1, 8, 9, 40, len(content) // 2, len(content) - 1]:
            (tmp_path / "cut").write_bytes(content[:length])
            with pytest.raises(WeightsError, match=re.escape(str(tmp_path / "cut"))):
                load_weights(network(), tmp_path / "cut")
            tried += 1
    assert tried == 14


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"not weights at all, but long enough", "neither safetensors nor a state dict"),
        (b"\x80\x04\x95", "truncated or damaged|pickle"),
        (b"\xff" * 64, "neither safetensors nor a state dict"),
    ],
)
def test_error_when_the_file_is_something_else(tmp_path, content, expected):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(WeightsError, match=expected):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {"model": {"a": "text"}}])
def test_error_when_it_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="is no state dict"):
        read_weights(tmp_path / "w.pth")


def test_error_when_missing_or_a_folder_or_empty(tmp_path):
    with pytest.raises(WeightsError, match="nothing does not exist"):
        read_weights(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="does not exist"):
        read_metadata(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="is a folder"):
        read_weights(tmp_path)
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_weights(tmp_path / "w.pth")


def test_old_file_stays_when_the_disk_refuses(tmp_path):
    path = tmp_path / "w"
    save_weights(path, network(), metadata={"version": "old"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(StorageError, match=r"Cannot write .*: File too large.*the old file is untouched"):
            save_weights(path, network(1000), metadata={"version": "new"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_metadata(path) == {"version": "old"}
    assert [file.name for file in tmp_path.iterdir()] == ["w"]
