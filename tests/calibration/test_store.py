"""Calibration statistics on disk: exact, refused when they are of something else, merged from several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.calibration._histogram import Histogram
from edgekd.calibration._store import SCHEMA_VERSION, Statistics, load, merge, save
from edgekd.errors import ArtifactError, MismatchError, StorageError

FINGERPRINT: Mapping[str, Any] = {
    "model": "sha256:12ab",
    "data": "digits",
    "samples": [3, 1, 2],
    "preprocessing": {"mean": [0.5], "size": (8, 8)},
}


def histogram(seed: int, *, samples: int = 4) -> Histogram:
    found = Histogram()
    found.update(torch.randn(samples, 30, generator=torch.Generator().manual_seed(seed)))
    return found


def statistics(**changed: Any) -> Statistics:
    return Statistics({**FINGERPRINT, **changed}, {"conv1": histogram(0), "conv2": histogram(1)})


def as_json(found: Statistics) -> dict[str, Any]:
    return {name: one.to_json() for name, one in found.histograms.items()}


def test_everything_is_as_before_when_saved_and_loaded(tmp_path: Path) -> None:
    path = save(statistics(), tmp_path / "statistics.json")
    again = load(path, fingerprint=FINGERPRINT)
    assert as_json(again) == as_json(statistics())
    assert again.parts == ("all",)
    # and once more: the same bytes
    assert save(again, tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_file_is_standard_json_with_its_version(tmp_path: Path) -> None:
    empty = Statistics({}, {"never run": Histogram()})
    content = json.loads(save(empty, tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["schema_version"] == SCHEMA_VERSION
    assert list(content["tensors"]) == ["never run"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "sha256:ffff"}, r'has model "sha256:12ab", here it is "sha256:ffff"'),
        ({"samples": [3, 1]}, r"has samples \[3, 1, 2\], here it is \[3, 1\]"),
        ({"preprocessing": {"mean": [0.4], "size": (8, 8)}}, r"has preprocessing.mean \[0.5\], here it is \[0.4\]"),
        ({"target": "tensorrt"}, r'has target nothing, here it is "tensorrt"'),
        ({"data": "x" * 100, "model": "sha256:12ab"}, r'here it is "x{59}\.\.\.'),
    ],
)
def test_load_names_the_field_when_it_was_made_from_something_else(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    path = save(statistics(), tmp_path / "statistics.json")
    with pytest.raises(MismatchError, match=f"{said}.*Calibrate again"):
        load(path, fingerprint={**FINGERPRINT, **changed})


def test_load_takes_any_when_it_is_not_told_what_to_expect(tmp_path: Path) -> None:
    assert load(save(statistics(model="other"), tmp_path / "a.json")).fingerprint["model"] == "other"


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_load_says_damaged_when_the_file_was_cut(tmp_path: Path, kept: int) -> None:
    path = save(statistics(), tmp_path / "statistics.json")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"statistics\.json are damaged.*Remove the file and calibrate again"):
        load(path)


@pytest.mark.parametrize("change", [(b'"limit":', b'"limit":1'), (b'"conv1"', b'"conv9"'), (b"digits", b"\xff\xfe")])
def test_load_says_damaged_when_the_file_was_changed(tmp_path: Path, change: tuple[bytes, bytes]) -> None:
    path = save(statistics(), tmp_path / "statistics.json")
    path.write_bytes(path.read_bytes().replace(*change, 1))
    with pytest.raises(ArtifactError, match="are damaged"):
        load(path)


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"tensors": {}}'])
def test_load_says_damaged_when_it_is_another_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match="are damaged"):
        load(path)


def test_load_says_what_to_do_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Cannot read the calibration statistics .*Calibrate to make them"):
        load(tmp_path / "none.json")


def test_load_names_both_versions_when_the_format_is_another(tmp_path: Path) -> None:
    path = save(statistics(), tmp_path / "statistics.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"schema_version":1', '"schema_version":7'))
    with pytest.raises(ArtifactError, match=r"have version 7 .* this edgekd reads 1\. Calibrate again"):
        load(path)


def test_old_file_is_untouched_when_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(statistics(), tmp_path / "statistics.json")
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        save(Statistics({}, {}), path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["statistics.json"]


def part(number: int, *seeds: int) -> Statistics:
    found = Histogram()
    for seed in seeds:
        found.merge(histogram(seed))
    return Statistics(FINGERPRINT, {"conv": found}, (f"{number} of 3",))


def test_merging_parts_equals_seeing_everything_in_any_order() -> None:
    parts = [part(0, 10), part(1, 11, 12), part(2)]
    together = Statistics(FINGERPRINT, {"conv": part(0, 10, 11, 12).histograms["conv"]})
    for several in (parts, parts[::-1], [merge(parts[1:]), parts[0]]):
        merged = merge(several)
        assert as_json(merged) == as_json(together)
        assert merged.parts == ("0 of 3", "1 of 3", "2 of 3")
    assert as_json(parts[0]) == as_json(part(0, 10))  # none was changed


def test_part_of_another_process_adds_up_with_one_of_this(tmp_path: Path) -> None:
    program = """
import sys, pathlib, torch
from edgekd.calibration._histogram import Histogram
from edgekd.calibration._store import Statistics, save
found = Histogram()
found.update(torch.randn(8, 30, generator=torch.Generator().manual_seed(0))[5:])
save(Statistics({"model": "m"}, {"conv": found}, ("1 of 2",)), pathlib.Path(sys.argv[1]))
"""
    path = tmp_path / "1.json"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=120)
    here = Histogram()
    here.update(torch.randn(8, 30, generator=torch.Generator().manual_seed(0))[:5])
    merged = merge([Statistics({"model": "m"}, {"conv": here}, ("0 of 2",)), load(path, fingerprint={"model": "m"})])
    assert as_json(merged) == {"conv": histogram(0, samples=8).to_json()}


def test_merging_is_refused_when_a_part_is_there_twice() -> None:
    with pytest.raises(MismatchError, match=r"Part '1 of 3' .* is there twice; its samples would count double"):
        merge([part(0, 1), part(1, 2), part(1, 2)])


def test_merging_is_refused_when_parts_are_of_different_models() -> None:
    with pytest.raises(MismatchError, match='One part has model "sha256:12ab", another has "b"'):
        merge([part(0, 1), Statistics({**FINGERPRINT, "model": "b"}, part(1, 2).histograms, ("1 of 3",))])


def test_merging_is_refused_when_a_part_has_other_tensors() -> None:
    odd = Statistics(FINGERPRINT, {"conv": histogram(0), "add": histogram(1)}, ("1 of 3",))
    for several in ([part(0, 1), odd], [odd, part(0, 1)]):
        with pytest.raises(MismatchError, match="'add' is in some only"):
            merge(several)
