"""Placement, float islands and the question whether int8 was worth it, on graphs that ONNX Runtime really ran."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_graphs import Graph

from edgekd._node_names import FileNodes, float_times, meant_int8, plain_name
from edgekd._placement_gate import costly_operators, placement_of, worth_of
from edgekd._report_device_model import PlacementRow
from edgekd._statistics import Ratio
from edgekd.devices._base import open_place
from edgekd.devices._place import NodePlacement, SessionSettings

CPU, GPU = "CPUExecutionProvider", "CUDAExecutionProvider"


def node(name: str, op: str, us: float, *, provider: str = CPU, kind: str = "float") -> NodePlacement:
    return NodePlacement(node=name, op=op, provider=provider, mean_us=us, input_types=[kind], output_types=[kind])


def judged(
    nodes: list[NodePlacement],
    *,
    requested: str = GPU,
    meant_int8: Collection[str] | None = None,
    allowed: bool = False,
) -> PlacementRow:
    return placement_of(
        nodes, rung="onnx_int8", target=None, device="d", requested=requested, meant_int8=meant_int8, allowed=allowed
    )


def test_everything_on_the_requested_provider_is_one_partition() -> None:
    row = judged([node("a", "Conv", 3.0, provider=GPU), node("b", "Conv", 1.0, provider=GPU)])
    assert (row.passed, row.partitions, row.nodes, row.shares) == (True, 1, {GPU: 2}, {GPU: 1.0})
    assert row.reason == f"all 2 nodes ran on {GPU}."


def test_fallback_fails_with_names_shares_and_partitions() -> None:
    row = judged([node("a", "Conv", 6.0, provider=GPU), node("b", "TopK", 3.0), node("c", "Conv", 1.0, provider=GPU)])
    assert not row.passed
    assert row.partitions == 3
    assert row.reason == (
        f"1 node did not run on {GPU} but on {CPU}, 30.0% of the time, in 3 partitions: TopK 'b' (30.0%). Repair it,"
        " or pass with bench.allow_fallback = true (--allow-fallback)."
    )
    allowed = judged([node("a", "Conv", 6.0, provider=GPU), node("b", "TopK", 3.0)], allowed=True)
    assert allowed.passed
    assert allowed.reason.endswith("(allowed).")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same two convolutions: all int8, float, and int8 with a Q/DQ pair missing behind the second."""
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for name, closed in (("int8", True), ("island", False)):
        graph = Graph()
        first = graph.pair(graph.conv(graph.pair("x", zero=np.uint8(128))), zero=np.uint8(128))
        second = graph.conv(first)
        model = graph.model(graph.pair(second, zero=np.uint8(128)) if closed else second)
        made[name] = folder / f"{name}.onnx"
        onnx.save(model, made[name])
    graph = Graph()
    out = "x"
    for _ in range(2):
        weights = graph.constant(graph.rng.normal(size=(8, 8, 3, 3)).astype(np.float32))
        out = graph.node("Relu", graph.node("Conv", out, weights, graph.bias(8), kernel_shape=[3, 3], pads=[1] * 4))
    made["float"] = folder / "float.onnx"
    onnx.save(graph.model(out), made["float"])
    return made


@pytest.fixture(scope="module")
def ran(files: dict[str, Path]) -> dict[str, list[NodePlacement]]:
    """What ran of each file on this machine's processor."""
    feeds = {"x": np.zeros((1, 8, 8, 8), np.float32)}
    with open_place("cpu") as place:
        place.put({path.name: path for path in files.values()})
        return {
            name: place.placement(path.name, feeds, session=SessionSettings(), runs=5) for name, path in files.items()
        }


def read(path: Path) -> FileNodes:
    return FileNodes(onnx.load(path))


def test_int8_file_has_no_island(files: dict[str, Path], ran: dict[str, list[NodePlacement]]) -> None:
    meant = meant_int8(ran["int8"], read(files["int8"]))
    assert len(meant) == 2
    row = judged(ran["int8"], requested=CPU, meant_int8=meant)
    assert row.passed


def test_convolution_without_a_pair_behind_it_is_an_island(
    files: dict[str, Path], ran: dict[str, list[NodePlacement]]
) -> None:
    row = judged(ran["island"], requested=CPU, meant_int8=meant_int8(ran["island"], read(files["island"])))
    islands = row.float_islands
    assert [one.op for one in islands] == ["Conv"]
    assert not row.passed
    assert "1 node that the file has as int8 computed on floats" in row.reason


def test_float_file_cannot_have_islands(ran: dict[str, list[NodePlacement]]) -> None:
    assert judged(ran["float"], requested=CPU).passed


def test_weighted_operators_find_their_float_counterparts_by_order(
    files: dict[str, Path], ran: dict[str, list[NodePlacement]]
) -> None:
    times = float_times(ran["int8"], ran["float"], read(files["int8"]), read(files["float"]))
    convolutions = [one.node for one in ran["int8"] if one.op == "QLinearConv"]
    assert sorted(times) == sorted(convolutions)
    assert len(convolutions) == 2
    # in the float file the runtime has renamed them and taken the activation in
    before = [one.mean_us for one in ran["float"] if one.op == "Conv"]
    assert sorted(times.values()) == sorted(before)


def test_costly_operators_are_conversions_floats_and_slower_kernels() -> None:
    nodes = [
        node("q", "QuantizeLinear", 5.0),
        node("a", "QLinearConv", 30.0, kind="uint8"),
        node("b", "QLinearConv", 20.0, kind="uint8"),
        node("s", "Softmax", 45.0),
    ]
    found = costly_operators(nodes, {"a": 10.0, "b": 40.0})
    assert [(one.name, one.why, one.share) for one in found] == [
        ("s", "computes in float", 0.45),
        ("a", "slower than in float32", 0.3),  # costs 20 us more than in float32
        ("q", "converts", 0.05),
    ]


@pytest.mark.parametrize(
    ("float32", "float16", "worth", "told"),
    [
        ((2.0, 1.9, 2.1), None, True, "On d int8 is 2.00 times (1.90 to 2.10) as fast as float32: it was worth it."),
        ((2.0, 1.9, 2.1), (0.8, 0.7, 0.9), False, "it was not worth it, float16 is faster."),
        ((1.01, 0.98, 1.04), None, None, "cannot be told"),
        ((0.5, 0.4, 0.6), None, False, "it was not worth it, float32 is faster."),
    ],
)
def test_worth_needs_the_whole_interval(
    float32: tuple[float, float, float], float16: tuple[float, float, float] | None, worth: bool | None, told: str
) -> None:
    ratios = [
        None if one is None else Ratio(speedup=one[0], ci95=[one[1], one[2]], n=100) for one in (float32, float16)
    ]
    row = worth_of(*ratios, [], target=None, device="d")
    assert row is not None
    assert row.worth is worth
    assert told in row.sentence


def test_nothing_to_compare_with_is_no_answer() -> None:
    assert worth_of(None, None, [], target=None, device="d") is None


@pytest.mark.parametrize(
    ("name", "plain"),
    [("conv_nchwc", "conv"), ("conv_token_3", "conv"), ("conv", "conv"), ("my_token_conv", "my_token_conv")],
)
def test_names_lose_what_the_runtime_adds(name: str, plain: str) -> None:
    assert plain_name(name) == plain
