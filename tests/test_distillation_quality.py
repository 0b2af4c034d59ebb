"""distillation_quality: KL, temperature, CKA and the floor, by numbers worked by hand and by what must not change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.distillation_quality import (
    CkaSums,
    agreement_floor,
    calibration,
    fitted_temperature,
    gram,
    hsic,
    linear_cka,
    mean_kl,
    scaled,
)
from edgekd.errors import MismatchError
from edgekd.evaluate import Predictions, accuracy, ece, kl_to, nll


def _random(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _predictions(logits: Any, labels: Any) -> Predictions:
    return Predictions(np.asarray(logits, dtype=np.float32), np.asarray(labels, dtype=np.int64))


def _rotation(seed: int, size: int) -> NDArray[np.float64]:
    rotation: NDArray[np.float64] = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return rotation


# two classes, logits (2, 0): class 0 with probability 0.881, which is right for 3 of 4 samples
SURE = _predictions([[2.0, 0.0]] * 4, [0, 0, 0, 1])


def test_kl_is_the_number_worked_by_hand() -> None:
    teacher, student = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.8, 0.2], [0.9, 0.1]])
    expected = (0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)) / 2
    assert mean_kl(teacher, student) == pytest.approx(expected, rel=1e-12)


def test_kl_is_that_of_the_ladder_and_zero_for_equal_ones() -> None:
    a, b = _random(0, 50, 7), _random(1, 50, 7)
    labels = np.zeros(50)
    assert mean_kl(a, b) == pytest.approx(kl_to(_predictions(a, labels), _predictions(b, labels)), rel=1e-12)
    assert mean_kl(a, a) == 0.0
    assert mean_kl(a + 5.0, a) == pytest.approx(0.0, abs=1e-6)  # a shift is no other probability


def test_kl_counts_nothing_for_a_class_that_the_teacher_excludes() -> None:
    teacher = np.array([[0.0, -np.inf]])
    assert mean_kl(teacher, np.log([[0.8, 0.2]])) == pytest.approx(-math.log(0.8))


def test_kl_refuses_other_shapes() -> None:
    with pytest.raises(MismatchError, match=r"two equal \(N, K\) arrays, got \(2, 3\) and \(2, 4\)"):
        mean_kl(np.zeros((2, 3)), np.zeros((2, 4)))


def test_temperature_has_its_known_minimum() -> None:
    # the best probability is 3/4: sigmoid(2 / T) = 3/4, so T = 2 / ln 3
    assert fitted_temperature(SURE) == pytest.approx(2 / math.log(3), rel=1e-5)


def test_temperature_of_stretched_logits_is_stretched_and_its_nll_is_least() -> None:
    logits = _random(2, 400, 5)
    labels = np.where(np.random.default_rng(3).random(400) < 0.6, logits.argmax(axis=1), 0)
    found = fitted_temperature(_predictions(logits, labels))
    assert found is not None
    assert fitted_temperature(_predictions(3 * logits, labels)) == pytest.approx(3 * found, rel=1e-4)
    own = _predictions(logits, labels)
    least = nll(scaled(own, found))
    assert all(nll(scaled(own, factor * found)) > least for factor in (0.5, 0.9, 1.1, 2.0))


def test_no_temperature_is_best_when_all_is_right_or_nothing_is_known() -> None:
    assert fitted_temperature(_predictions([[2.0, 0.0], [0.0, 1.0]], [0, 1])) is None
    assert fitted_temperature(_predictions([[2.0, 0.0], [0.0, 2.0]], [1, 0])) is None  # surely wrong: the hotter
    assert fitted_temperature(_predictions([[1.0, 1.0], [0.0, 0.0]], [0, 1])) is None


def test_temperature_outside_of_its_range_is_none() -> None:
    assert fitted_temperature(scaled(SURE, 1 / 1000)) is None
    assert fitted_temperature(scaled(SURE, 1000)) is None


def test_calibration_is_better_after_the_temperature_and_accuracy_is_the_same() -> None:
    found = calibration(SURE, SURE)
    sigmoid = 1 / (1 + math.exp(-2))
    assert found.temperature == pytest.approx(2 / math.log(3), rel=1e-5)
    assert (found.n_val, found.ece) == (4, pytest.approx(sigmoid - 0.75, rel=1e-5))
    assert found.ece_scaled == pytest.approx(0.0, abs=1e-5)
    assert found.nll == pytest.approx(-(3 * math.log(sigmoid) + math.log(1 - sigmoid)) / 4, rel=1e-5)
    assert found.nll_scaled == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4, rel=1e-5)
    # 3 samples miss by 1/4 in both classes, one by 3/4
    assert found.brier_scaled == pytest.approx((3 * 2 / 16 + 2 * 9 / 16) / 4, rel=1e-4)
    assert found.brier > found.brier_scaled
    cooled = scaled(SURE, 0.3)
    assert accuracy(cooled) == accuracy(SURE)
    assert ece(cooled) > found.ece


def test_calibration_without_a_temperature_has_no_scaled_numbers() -> None:
    found = calibration(_predictions([[2.0, 0.0], [0.0, 1.0]], [0, 1]), SURE)
    assert found.temperature is found.nll_scaled is found.ece_scaled is found.brier_scaled is None
    assert found.nll == nll(SURE)


A, B, C = (_predictions(np.eye(3)[[int(one) for one in classes]], [0, 1, 2, 0]) for classes in ("0120", "0121", "0000"))


def test_floor_is_of_two_students_alone_if_there_are_two() -> None:
    found = agreement_floor({"student_alone": A, "student_alone-seed1": B}, {"student": C})
    assert found is not None
    assert (found.a, found.b, found.agreement) == ("student_alone", "student_alone-seed1", 0.75)
    assert found.ci95[0] < 0.75 < found.ci95[1]


def test_floor_is_of_the_student_and_the_one_alone_else() -> None:
    found = agreement_floor({"student_alone": A}, {"student": C, "student-seed1": B})
    assert found is not None
    assert (found.a, found.b, found.agreement) == ("student", "student_alone", 0.5)


def test_floor_is_not_known_without_a_student_alone() -> None:
    assert agreement_floor({}, {"student": A, "student-seed1": B}) is None
    assert agreement_floor({"student_alone": A}, {}) is None


# one feature each, four samples: the kernels are +-1/4, and everything can be summed by hand
FIRST, SECOND = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.0], [1.0], [0.0], [1.0]])


def test_hsic_is_the_number_worked_by_hand() -> None:
    # 12 pairs: trace 12/16; all sums -1, so 1/6; rows -1/4 each, so 2/2 * 4/16; over n (n - 3) = 4
    assert hsic(gram(FIRST), gram(FIRST)) == pytest.approx((12 / 16 + 1 / 6 - 4 / 16) / 4)
    # 4 pairs differ in one of the two and 2 in both: trace -4/16
    assert hsic(gram(FIRST), gram(SECOND)) == pytest.approx((-4 / 16 + 1 / 6 - 4 / 16) / 4)
    assert linear_cka([(FIRST, SECOND)]) == pytest.approx(-0.5)


def _u_centred(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    n = len(kernel)
    bare = kernel - np.diag(kernel.diagonal())
    rows = bare.sum(axis=1)
    centred: NDArray[np.float64] = bare - (rows[:, None] + rows[None]) / (n - 2) + bare.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    return centred


def test_hsic_equals_the_product_of_centred_kernels() -> None:
    # Szekely and Rizzo's form of the same estimate
    x, y = _random(4, 30, 5), _random(5, 30, 8)
    expected = (_u_centred(gram(x)) * _u_centred(gram(y))).sum() / (30 * 27)
    assert hsic(gram(x), gram(y)) == pytest.approx(expected, rel=1e-9)


def test_hsic_does_not_see_the_mean_that_gram_takes_off() -> None:
    x, y = _random(6, 20, 4).astype(np.float64), _random(7, 20, 3).astype(np.float64)
    raw = (x + 3) @ (x + 3).T
    assert hsic(raw, y @ y.T) == pytest.approx(hsic(gram(x), gram(y)), rel=1e-4)


def test_hsic_is_right_on_average_over_batches_of_any_size() -> None:
    # the value of the whole population of pairs, from batches of 4 and of 16: no bias from small batches
    rng = np.random.default_rng(8)
    x = rng.normal(size=(4000, 2)).astype(np.float32)
    y = x + rng.normal(size=(4000, 2)).astype(np.float32)
    whole = hsic(gram(x[:2000]), gram(y[:2000]))
    for size in (4, 16):
        pieces = [hsic(gram(x[i : i + size]), gram(y[i : i + size])) for i in range(0, 4000, size)]
        error = np.std(pieces) / math.sqrt(len(pieces))
        assert abs(np.mean(pieces) - whole) < 4 * error + 0.05 * whole


def test_hsic_refuses_too_few_samples_and_other_shapes() -> None:
    with pytest.raises(MismatchError, match=r"n >= 4, got \(3, 3\)"):
        hsic(np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(MismatchError, match=r"got \(4, 4\) and \(5, 5\)"):
        hsic(np.zeros((4, 4)), np.zeros((5, 5)))


def test_cka_is_1_after_rotation_scale_and_shift() -> None:
    x = _random(9, 64, 12)
    moved = 7.0 * x @ _rotation(10, 12) + 3.0
    assert linear_cka([(x, x)]) == pytest.approx(1.0, abs=1e-9)
    assert linear_cka([(x, moved)]) == pytest.approx(1.0, abs=1e-5)
    halves = [(x[:32], moved[:32]), (x[32:], moved[32:])]
    assert linear_cka(halves) == pytest.approx(1.0, abs=1e-5)


def test_cka_is_not_1_after_another_linear_map_and_has_two_equal_sides() -> None:
    x = _random(11, 64, 12)
    squeezed = x * np.linspace(0.1, 3.0, 12, dtype=np.float32)
    ours, theirs = linear_cka([(x, squeezed)]), linear_cka([(squeezed, x)])
    assert ours == pytest.approx(theirs)
    assert ours is not None
    assert 0.5 < ours < 0.99


def test_cka_of_independent_features_is_about_0_where_the_biased_one_is_not() -> None:
    batches = [(_random(100 + i, 32, 256), _random(900 + i, 32, 256)) for i in range(40)]
    found = linear_cka(batches)
    assert found is not None
    assert abs(found) < 0.02
    biased = [np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)) for x, y in batches]
    assert np.mean(biased) > 0.5


def test_cka_takes_maps_of_any_shape_and_width() -> None:
    maps, vectors = _random(12, 16, 3, 4, 4), _random(13, 16, 9)
    assert linear_cka([(maps, maps.reshape(16, -1))]) == pytest.approx(1.0)
    assert linear_cka([(maps, vectors)]) is not None


def test_gram_of_many_features_is_the_sum_of_its_pieces() -> None:
    wide = _random(14, 6, 20_000)
    centred = wide.astype(np.float64) - wide.mean(axis=0, dtype=np.float64)
    assert gram(wide) == pytest.approx(centred @ centred.T, rel=1e-4, abs=1e-2)


def test_cka_is_not_known_for_what_does_not_vary_and_without_a_batch() -> None:
    assert linear_cka([(np.ones((8, 3)), _random(15, 8, 3))]) is None
    assert CkaSums().value is None
