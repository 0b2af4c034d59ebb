"""evaluate: numbers worked by hand, agreement with scipy and scikit-learn, and the edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import exp, log
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from edgekd._intervals import exact_mcnemar_p, newcombe_interval, wilson_interval
from edgekd.errors import DataError, GateFailed, MismatchError
from edgekd.evaluate import (
    Predictions,
    accuracy,
    agreement,
    brier,
    ece,
    kl_to,
    mcnemar,
    nll,
    paired,
    parity,
    predict,
    predict_runner,
    rung,
)
from edgekd.spec import TensorSpec

Counts = tuple[int, int, int, int]


def _random(n: int = 200, classes: int = 5, seed: int = 0, scale: float = 2.0) -> Predictions:
    random = np.random.default_rng(seed)
    logits = (scale * random.standard_normal((n, classes))).astype(np.float32)
    return Predictions(logits, np.random.default_rng(99).integers(0, classes, n))


def _of(classes: list[int], labels: list[int], n_classes: int = 3) -> Predictions:
    return Predictions(np.eye(n_classes, dtype=np.float32)[classes], np.array(labels))


def test_accuracy_counts_by_hand() -> None:
    result = accuracy(_of([0, 1, 2, 0], [0, 1, 1, 0]))
    assert (result.value, result.n) == (0.75, 4)
    assert result.ci95[0] < 0.75 < result.ci95[1]


def test_agreement_ignores_the_labels() -> None:
    assert agreement(_of([0, 1, 2, 0], [1, 1, 1, 1]), _of([0, 1, 0, 0], [1, 1, 1, 1])).value == 0.75


@given(n=st.integers(1, 3000), share=st.floats(0, 1))
def test_wilson_equals_scipy(n: int, share: float) -> None:
    successes = round(share * n)
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(successes, n)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert low <= successes / n <= high


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_when_counts_are_impossible(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"successes must be in \[0, n\]"):
        wilson_interval(successes, n)


@given(a_only=st.integers(0, 400), b_only=st.integers(0, 400))
def test_exact_mcnemar_equals_scipy(a_only: int, b_only: int) -> None:
    expected = binomtest(a_only, a_only + b_only).pvalue if a_only + b_only else 1.0
    assert exact_mcnemar_p(a_only, b_only) == pytest.approx(expected, rel=1e-9)


def test_exact_mcnemar_does_not_underflow_when_thousands_flip() -> None:
    assert 0 < exact_mcnemar_p(2000, 2600) < 1e-15
    assert exact_mcnemar_p(5000, 5000) == 1.0


def test_newcombe_equals_the_published_example() -> None:
    # Newcombe 1998, table III, cells 36, 12, 2, 0 by method 10
    assert newcombe_interval(36, 2, 12, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_newcombe_takes_a_weak_correlation_for_none() -> None:
    # cells 5, 3, 4, 3: the product difference 5*3 - 3*4 = 3 is less than n/2, so the two sides just add in quadrature
    (low_a, high_a), (low_b, high_b) = wilson_interval(8, 15), wilson_interval(9, 15)
    down = ((9 / 15 - low_b) ** 2 + (high_a - 8 / 15) ** 2) ** 0.5
    up = ((high_b - 9 / 15) ** 2 + (8 / 15 - low_a) ** 2) ** 0.5
    assert newcombe_interval(5, 3, 4, 3) == pytest.approx((1 / 15 - down, 1 / 15 + up))


@st.composite
def _tables(draw: st.DrawFn) -> Counts:
    cells = draw(st.tuples(*[st.integers(0, 500)] * 4).filter(lambda cells: sum(cells) > 0))
    return (cells[0], cells[1], cells[2], cells[3])


@given(cells=_tables())
def test_newcombe_holds_the_difference_and_flips_with_the_sides(cells: Counts) -> None:
    both, a_only, b_only, neither = cells
    low, high = newcombe_interval(both, a_only, b_only, neither)
    difference = (b_only - a_only) / sum(cells)
    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1
    swapped = newcombe_interval(both, b_only, a_only, neither)
    assert swapped == pytest.approx((-high, -low), abs=1e-12)


def test_newcombe_covers_the_truth_in_95_of_100_draws() -> None:
    random = np.random.default_rng(3)
    share = np.array([0.90, 0.02, 0.04, 0.04])
    draws = random.multinomial(500, share, size=2000)
    hits = [low <= 0.02 <= high for low, high in (newcombe_interval(*map(int, cells)) for cells in draws)]
    # 2000 draws put the observed coverage within 0.015 of 0.95 with three standard deviations
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_mcnemar_counts_by_hand() -> None:
    labels = np.zeros(10, dtype=np.int64)
    a = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    b = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 1])
    result = mcnemar(a, b, labels)
    assert (result.a_only, result.b_only, result.n) == (1, 4, 10)
    assert result.difference == pytest.approx(0.3)
    assert result.p_value == pytest.approx(2 * (1 + 5) / 2**5)
    assert result.ci95 == newcombe_interval(4, 1, 4, 1)


def test_mcnemar_refuses_when_lengths_differ() -> None:
    with pytest.raises(MismatchError, match=r"got \(2,\), \(3,\), \(3,\)"):
        mcnemar(np.zeros(2, np.int64), np.zeros(3, np.int64), np.zeros(3, np.int64))


def test_paired_gives_b_minus_a() -> None:
    result = paired(("ptq", _of([0, 0, 1], [0, 1, 1])), ("qat", _of([0, 1, 1], [0, 1, 1])))
    assert (result.a, result.b, result.a_only, result.b_only) == ("ptq", "qat", 0, 1)
    assert result.difference == pytest.approx(1 / 3)


def test_comparing_refuses_when_samples_differ() -> None:
    one, other = _of([0, 1], [0, 1]), _of([0, 1], [1, 0])
    for compare in (agreement, kl_to):
        with pytest.raises(MismatchError, match="not evaluated on the same samples"):
            compare(one, other)


def test_kl_by_hand() -> None:
    # p = (3/4, 1/4) against q = (1/2, 1/2)
    teacher = Predictions(np.array([[log(3.0), 0.0]], dtype=np.float32), np.array([0]))
    student = Predictions(np.zeros((1, 2), dtype=np.float32), np.array([0]))
    assert kl_to(teacher, student) == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5), rel=1e-6)


def test_kl_equals_torch() -> None:
    teacher, student = _random(seed=1), _random(seed=2)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(torch.from_numpy(student.logits).double(), 1),
        torch.log_softmax(torch.from_numpy(teacher.logits).double(), 1),
        log_target=True,
        reduction="batchmean",
    )
    assert kl_to(teacher, student) == pytest.approx(float(expected), rel=1e-9)


@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_kl_is_not_negative_and_zero_for_shifted_logits(seed: int, shift: float) -> None:
    teacher = _random(n=20, seed=seed)
    shifted = Predictions((teacher.logits + np.float32(shift)).astype(np.float32), teacher.labels)
    assert kl_to(teacher, shifted) == pytest.approx(0.0, abs=1e-9)
    assert kl_to(teacher, _random(n=20, seed=seed + 1)) > 0


def test_kl_stays_finite_when_the_student_is_certain_and_wrong() -> None:
    teacher = Predictions(np.array([[0.0, 200.0]], dtype=np.float32), np.array([1]))
    student = Predictions(np.array([[200.0, 0.0]], dtype=np.float32), np.array([1]))
    assert kl_to(teacher, student) == pytest.approx(200.0)


def test_kl_names_both_sides_when_classes_differ() -> None:
    with pytest.raises(MismatchError, match="disagree on classes: 3 and 4"):
        kl_to(_of([0], [0], 3), _of([0], [0], 4))


def test_nll_and_brier_equal_scikit_learn_and_the_definition() -> None:
    predictions = _random()
    p = torch.softmax(torch.from_numpy(predictions.logits).double(), 1).numpy()
    assert nll(predictions) == pytest.approx(log_loss(predictions.labels, p, labels=range(5)), rel=1e-6)
    assert brier(predictions) == pytest.approx(((p - np.eye(5)[predictions.labels]) ** 2).sum(1).mean(), rel=1e-6)
    uniform = Predictions(np.zeros((1, 4), dtype=np.float32), np.array([2]))
    assert (nll(uniform), brier(uniform)) == (pytest.approx(log(4)), pytest.approx(0.75))


def test_ece_by_hand() -> None:
    # both samples have confidence 0.9 (one bin) and one of two is right: |0.5 - 0.9|
    logits = np.array([[log(9.0), 0.0], [log(9.0), 0.0]], dtype=np.float32)
    assert ece(Predictions(logits, np.array([0, 1]))) == pytest.approx(0.4, abs=1e-6)


def test_ece_puts_a_boundary_into_the_lower_bin() -> None:
    # two bins: 0.5, right, and 0.9, wrong, lie in different ones: (0.5 + 0.9) / 2
    logits = np.array([[0.0, 0.0], [log(9.0), 0.0]], dtype=np.float32)
    assert ece(Predictions(logits, np.array([0, 1])), bins=2) == pytest.approx(0.7, abs=1e-6)


def test_ece_equals_scikit_learn_bins() -> None:
    predictions = _random(n=3000, scale=1.5)
    p = torch.softmax(torch.from_numpy(predictions.logits).double(), 1).numpy().max(1)
    right = predictions.classes == predictions.labels
    share, confidence = calibration_curve(right, p, n_bins=15)
    weights = np.histogram(p, bins=np.linspace(0, 1, 16))[0]
    weights = weights[weights > 0] / len(p)
    assert ece(predictions) == pytest.approx(float((weights * np.abs(share - confidence)).sum()), abs=1e-9)


def test_parity_by_hand() -> None:
    a = np.array([[3.0, 0.0], [0.0, 4.0]], dtype=np.float32)
    b = np.array([[3.0, 0.5], [0.0, 4.0]], dtype=np.float32)
    result = parity(a, b)
    assert (result.top1_agreement, result.n) == (1.0, 2)
    assert (result.max_abs_error, result.mean_abs_error) == (0.5, 0.125)
    assert result.sqnr_db == pytest.approx(20.0)  # signal 9 + 16, noise 0.25: a ratio of 100


def test_parity_has_no_sqnr_when_equal() -> None:
    logits = _random().logits
    result = parity(logits, logits)
    assert (result.top1_agreement, result.max_abs_error, result.sqnr_db) == (1.0, 0.0, None)


def test_parity_refuses_nan_and_other_shapes() -> None:
    logits = _random(n=4).logits
    broken = logits.copy()
    broken[2, 1] = np.nan
    with pytest.raises(GateFailed, match="1 of 4 samples have NaN or infinite"):
        parity(logits, broken)
    with pytest.raises(MismatchError, match=r"got \(4, 5\), \(3, 5\)"):
        parity(logits, logits[:3])


def test_predictions_refuse_nan_and_say_where() -> None:
    logits = np.zeros((5, 2), dtype=np.float32)
    logits[3, 0] = np.inf
    with pytest.raises(GateFailed, match=r"NaN or infinite logits for 1 of 5 samples \(first: sample 3\)"):
        Predictions(logits, np.zeros(5, dtype=np.int64))


def test_predictions_refuse_shapes_and_labels_that_do_not_fit() -> None:
    with pytest.raises(MismatchError, match=r"got \(2, 3\) and \(4,\)"):
        Predictions(np.zeros((2, 3), dtype=np.float32), np.zeros(4, dtype=np.int64))
    with pytest.raises(MismatchError, match="Labels run from 0 to 3, the model gives 3 classes"):
        _of([0, 1], [0, 3])
    with pytest.raises(DataError, match="no samples"):
        Predictions(np.zeros((0, 3), dtype=np.float32), np.zeros(0, dtype=np.int64))


def _batches(inputs: torch.Tensor, labels: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, Any]]:
    ids = torch.arange(len(labels))
    for start in range(0, len(labels), size):
        yield inputs[start : start + size], labels[start : start + size], ids[start : start + size]


@pytest.fixture(scope="module")
def linear(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, dict[str, Path]]:
    """A small torch model, samples, and the same model as ONNX with a free and with a fixed batch of 4."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 3)
    paths = {}
    for name, batch in (("free", "B"), ("fixed", 4)):
        weights = [
            onnx.numpy_helper.from_array(layer.weight.detach().numpy(), "w"),
            onnx.numpy_helper.from_array(layer.bias.detach().numpy(), "b"),
        ]
        graph = oh.make_graph(
            [oh.make_node("Gemm", ["x", "w", "b"], ["logits"], transB=1)],
            "linear",
            [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 6])],
            [oh.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, 3])],
            weights,
        )
        paths[name] = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
        onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10), paths[name])
    return layer, torch.randn(11, 6), torch.randint(0, 3, (11,)), paths


class _OnnxRunner:
    """The smallest real Runner: one ONNX Runtime session."""

    provider_requested = provider_used = "CPUExecutionProvider"

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = [TensorSpec(name=one.name, shape=one.shape) for one in self.session.get_inputs()]
        self.outputs = [TensorSpec(name=one.name, shape=one.shape) for one in self.session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip([one.name for one in self.outputs], self.session.run(None, dict(feeds)), strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@pytest.mark.parametrize("kind", ["free", "fixed"])
def test_runner_predicts_what_torch_predicts(linear: Any, kind: str) -> None:
    layer, inputs, labels, paths = linear
    by_torch = predict(layer, _batches(inputs, labels, 5))
    with _OnnxRunner(paths[kind]) as runner:
        by_runner = predict_runner(runner, _batches(inputs, labels, 5))
    assert by_runner.logits.shape == (11, 3)
    np.testing.assert_allclose(by_runner.logits, by_torch.logits, atol=1e-5)  # float32 sums in another order
    np.testing.assert_array_equal(by_runner.labels, labels.numpy())


def test_predict_builds_no_gradients_and_gives_float32(linear: Any) -> None:
    layer, inputs, labels, _ = linear
    seen: list[bool] = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return layer(batch).to(torch.bfloat16)

    result = predict(forward, _batches(inputs, labels, 4))
    assert seen == [False] * 3
    assert result.logits.dtype == np.float32
    assert result.labels.dtype == np.int64


def test_predict_refuses_when_there_are_no_batches(linear: Any) -> None:
    with pytest.raises(DataError, match="no samples to evaluate on"):
        predict(linear[0], iter(()))


def test_runner_with_two_inputs_is_refused(linear: Any) -> None:
    runner = _OnnxRunner(linear[3]["free"])
    runner.inputs = [*runner.inputs, TensorSpec(name="mask", shape=["B"])]
    with pytest.raises(MismatchError, match="this one has 2: x, mask"):
        predict_runner(runner, _batches(linear[1], linear[2], 4))


def test_rung_gathers_every_measure() -> None:
    teacher, student = _random(seed=1), _random(seed=2)
    made = rung("student", student, teacher=teacher, size_bytes=10, parameters=7, seeds=[0.5, 0.7])
    assert (made.value, made.ci95, made.n) == (accuracy(student).value, accuracy(student).ci95, 200)
    assert (made.agreement, made.kl) == (agreement(teacher, student).value, kl_to(teacher, student))
    assert (made.nll, made.ece, made.brier) == (nll(student), ece(student), brier(student))
    assert (made.mean, made.sd) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert (made.metric, made.size_bytes, made.parameters, made.target) == ("top1_accuracy", 10, 7, None)


def test_teacher_rung_agrees_with_itself() -> None:
    teacher = _random(seed=1)
    made = rung("teacher", teacher, teacher=teacher)
    assert (made.agreement, made.kl) == (1.0, 0.0)


def test_rung_leaves_out_what_was_not_measured() -> None:
    made = rung("alone", _random(), seeds=[0.5])
    assert (made.agreement, made.kl, made.mean, made.sd) == (None, None, 0.5, None)


def test_tied_logits_go_to_the_lower_class_in_every_measure() -> None:
    tied = Predictions(np.array([[1.0, 1.0, 0.0]], dtype=np.float32), np.array([0]))
    assert accuracy(tied).value == 1.0
    assert exp(-nll(tied)) == pytest.approx(1 / (2 + exp(-1)))
