"""The rule table: real operators, no name in two roles, and one reading for torch and for ONNX."""

from __future__ import annotations

from collections import Counter

import onnx
import torch

from edgekd.catalog import CATALOGS
from edgekd.targets._rules import BY_ATEN, BY_ONNX, OPERATORS, USUAL


def test_every_aten_name_is_an_operator_of_torch():
    for name in BY_ATEN:
        packet, _, overload = name.partition(".")
        assert isinstance(getattr(getattr(torch.ops.aten, packet), overload), torch._ops.OpOverload), name
    assert len(BY_ATEN) >= 25


def test_every_onnx_name_is_an_operator_of_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(BY_ONNX) <= known
    assert len(BY_ONNX) >= 20


def test_no_aten_name_stands_twice():
    counts = Counter(name for one in OPERATORS.values() for name in one.aten)
    assert [name for name, count in counts.items() if count > 1] == []


def test_a_matmul_counts_as_linear_until_its_weight_turns_out_computed():
    assert BY_ONNX["MatMul"].name == "linear"


def test_every_target_takes_rows_of_the_table_only():
    for name in CATALOGS["targets"].names():
        numerics = CATALOGS["targets"].load(name).member.numerics
        assert numerics.operators <= set(OPERATORS), name
        assert {"convolution", "linear", "add"} <= numerics.operators, name
    assert "convolution" in USUAL
    assert "softmax" not in USUAL
