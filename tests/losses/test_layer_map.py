from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgekd.losses._layer_map import LayerPairs, mapped_layers


def made(**changes: object) -> LayerPairs:
    values: dict[str, object] = {
        "student_taps": ["blocks.{}"], "teacher_taps": ["blocks.{}"], "student_layers": 6, "teacher_layers": 12
    }  # fmt: skip
    return LayerPairs.model_validate(values | changes)


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "expected"),
    [
        ("every", 6, 12, [1, 3, 5, 7, 9, 11]),  # counted from 1: i to 2i
        ("every", 4, 12, [2, 5, 8, 11]),  # TinyBERT's g(m) = 3m
        ("every", 1, 5, [4]),
        ("every", 3, 3, [0, 1, 2]),
        ("last", 2, 5, [3, 4]),
        ("last", 3, 3, [0, 1, 2]),
        ([0, 0, 11], 3, 12, [0, 0, 11]),
        ([1, 0], 2, 2, [1, 0]),
    ],
)
def test_map_worked_by_hand(layer_map, student, teacher, expected):
    assert mapped_layers(layer_map, student=student, teacher=teacher) == expected


def test_deepest_layers_meet_under_both_rules():
    for student in range(1, 7):
        for layer_map in ("every", "last"):
            assert mapped_layers(layer_map, student=student, teacher=student * 2)[-1] == student * 2 - 1


def test_names_are_filled_in():
    assert made(student_layers=2, teacher_layers=4).pairs() == [("blocks.0", "blocks.1"), ("blocks.1", "blocks.3")]


def test_plain_taps_pair_up_as_they_stand():
    options = LayerPairs(student_taps=["a", "b"], teacher_taps=["x", "y"])
    assert options.pairs() == [("a", "x"), ("b", "y")]


def test_plain_taps_and_patterns_mix():
    mixed = made(student_taps=["embed", "blocks.{}.mlp"], teacher_taps=["stem", "layer.{}"], student_layers=1)
    assert mixed.pairs() == [("embed", "stem"), ("blocks.0.mlp", "layer.11")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_layers": 5}, r"'every' needs teacher_layers to be a multiple of student_layers, got 12 and 5"),
        (
            {"layer_map": "last", "student_layers": 13},
            r"as many layers in the teacher as in the student, got 12 and 13",
        ),
        ({"layer_map": [1, 2]}, r"one layer of the teacher for each of the student's 6, got \[1, 2\]"),
        ({"layer_map": [0, 1, 2, 3, 4, 12]}, r"teacher's layer 12, but the teacher has 12 layers, 0 to 11"),
        ({"layer_map": [0, 1, 2, 3, 4, -1]}, r"teacher's layer -1, but the teacher has 12 layers"),
        ({"layer_map": "first"}, r"must be 'every', 'last' or a list of the teacher's layers"),
        ({"layer_map": ["last"]}, r"must be 'every', 'last' or a list of the teacher's layers"),
        ({"layer_map": [True]}, r"must be 'every', 'last' or a list of the teacher's layers"),
        ({"student_layers": None}, r"needs student_layers and teacher_layers"),
        ({"student_layers": 0}, r"greater than or equal to 1"),
        ({"teacher_taps": ["blocks.11"]}, r"both names of a pair or in none, got 'blocks.\{\}' and 'blocks.11'"),
        ({"teacher_taps": ["a.{}", "b.{}"]}, r"must pair up, got 1 and 2"),
        ({"student_taps": ["a"], "teacher_taps": ["b"]}, r"mean nothing without a tap with \{\}"),
    ],
)
def test_one_error_says_what_is_wrong(changes, message):
    with pytest.raises(ValidationError, match=message) as caught:
        made(**changes)
    assert caught.value.error_count() == 1


def test_map_is_refused_when_no_tap_has_a_place_for_it():
    with pytest.raises(ValidationError, match="mean nothing without"):
        LayerPairs(student_taps=["a"], teacher_taps=["b"], layer_map="last")
