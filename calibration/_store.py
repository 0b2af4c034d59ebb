"""What calibration saw, kept as one JSON file: used again by other calibrators, and merged from several processes.

The file says what it was made from (`fingerprint`) and holds a hash of itself. It is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd._files import write_whole
from edgekd.artifact import content_hash
from edgekd.calibration._histogram import Histogram
from edgekd.calibration._means import Mean
from edgekd.errors import ArtifactError, MismatchError

__all__ = ["Statistics", "load", "merge", "save"]

SCHEMA_VERSION = 1

_ABSENT = "nothing"


@dataclass(frozen=True)
class Statistics:
    """The histograms of a model's tensors.

    Args:
        fingerprint: what they were made from, as plain JSON values: hashes of model and data, sample numbers,
            preprocessing, whatever changes what is seen.
        histograms: by name of the tensor.
        parts: which parts of the samples were seen, if several processes share them: "0 of 2", ...; each counts once.
        means: of what weighted operators read.
    """

    fingerprint: Mapping[str, Any]
    histograms: Mapping[str, Histogram]
    parts: tuple[str, ...] = ("all",)
    means: Mapping[str, Mean] = field(default_factory=dict)


def save(statistics: Statistics, path: Path) -> Path:
    """Write the file, replacing one that is there; gives the path.

    Raises:
        StorageError: the disk refused; an old file is untouched.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": _plain(statistics.fingerprint),
        "parts": sorted(statistics.parts),
        "tensors": {name: statistics.histograms[name].to_json() for name in sorted(statistics.histograms)},
        "means": {name: statistics.means[name].to_json() for name in sorted(statistics.means)},
    }
    text = json.dumps({**content, "sha256": content_hash(content)}, allow_nan=False, separators=(",", ":"))
    write_whole(path, text.encode())
    return path


def load(path: Path, *, fingerprint: Mapping[str, Any] | None = None) -> Statistics:
    """Read a file that `save` wrote.

    Args:
        path: the file.
        fingerprint: what the statistics must be of; None takes any.

    Raises:
        ArtifactError: there is no such file, it is damaged, or of another version of its format.
        MismatchError: it was made from something else; names the first field that differs, and both values.
    """
    content = _content(path)
    if fingerprint is not None:
        _check_same(content["fingerprint"], _plain(fingerprint), f"{path} has", "here it is", "Calibrate again")
    try:
        histograms = {name: Histogram.from_json(values) for name, values in content["tensors"].items()}
        means = {name: Mean.from_json(values) for name, values in content["means"].items()}
        return Statistics(content["fingerprint"], histograms, tuple(content["parts"]), means)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(path) from error


def merge(several: Sequence[Statistics]) -> Statistics:
    """The statistics of all samples, from those of parts of them; the order does not matter.

    Args:
        several: at least one; none is changed.

    Raises:
        MismatchError: they are of different things or tensors, or a part is among them twice.
    """
    first = _plain(several[0].fingerprint)
    whole = {name: Histogram() for name in several[0].histograms}
    means = {name: Mean() for name in several[0].means}
    parts: set[str] = set()
    for one in several:
        _check_same(first, _plain(one.fingerprint), "One part has", "another has", "Merge parts of one calibration")
        if twice := parts & set(one.parts):
            raise MismatchError(
                f"Part '{min(twice)}' of the calibration statistics is there twice; its samples would count double."
                " Give each part once."
            )
        if odd := (set(whole) ^ set(one.histograms)) | (set(means) ^ set(one.means)):
            raise MismatchError(
                f"Parts of the calibration statistics have different tensors: '{min(odd)}' is in some only. Calibrate"
                " every part with the same model and target."
            )
        parts |= set(one.parts)
        for name, histogram in one.histograms.items():
            whole[name].merge(histogram)
        for name, mean in one.means.items():
            means[name].merge(mean)
    return Statistics(first, whole, tuple(sorted(parts)), means)


def _content(path: Path) -> dict[str, Any]:
    """What a file holds, its version and hash checked."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"Cannot read the calibration statistics {path}: {error.strerror}. Calibrate to make them."
        ) from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise _damaged(path) from error
    if not isinstance(content, dict) or "sha256" not in content:
        raise _damaged(path)
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"The calibration statistics {path} have version {content.get('schema_version')} of their format, this"
            f" edgekd reads {SCHEMA_VERSION}. Calibrate again."
        )
    if content.pop("sha256") != content_hash(content):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(
        f"The calibration statistics {path} are damaged: they are cut short or were changed. Remove the file and"
        " calibrate again."
    )


def _plain(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples become lists, keys become text."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(fingerprint), allow_nan=False))
    return plain


def _check_same(one: Mapping[str, Any], other: Mapping[str, Any], had: str, has: str, remedy: str) -> None:
    left, right = dict(_fields(one)), dict(_fields(other))
    for name in sorted(left.keys() | right.keys()):
        if left.get(name, _ABSENT) != right.get(name, _ABSENT):
            mine, theirs = (_shown(side.get(name, _ABSENT)) for side in (left, right))
            raise MismatchError(
                f"Calibration statistics are of something else: {had} {name} {mine}, {has} {theirs}. {remedy}."
            )


def _fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with the path to it, `preprocessing.mean`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any, most: int = 60) -> str:
    text = value if value is _ABSENT else json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}..."
