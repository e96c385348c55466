"""The erasure of what linear probes read, against probes that are fitted anew."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from stepwise_pl.inside.directions import Erasure, Floats, RidgeProbe, _Fit
from stepwise_pl.inside.pairs import Ints
from stepwise_pl.inside.places import Place

WIDTH, LABELS, FIT = 24, 5, 1500


@pytest.fixture(scope="module")
def data() -> tuple[Floats, Ints]:
    """States in which the label shows in many directions, some with little noise and some with much."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, LABELS, 2 * FIT)
    states = rng.standard_normal((LABELS, WIDTH))[labels] + 0.3 * rng.standard_normal((2 * FIT, WIDTH)) @ np.diag(
        np.geomspace(1, 0.01, WIDTH)
    )
    return states @ np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] + 3, labels


def probe_of(states: Floats, labels: Ints, penalty: float) -> RidgeProbe:
    fit = _Fit.of(states)
    weight, covariance, offset = fit.solution(np.eye(LABELS)[labels], penalty)
    return RidgeProbe(Place("cot", 0), Place("prompt", -1), 0, fit.mean, weight, covariance, offset, np.arange(LABELS))


def read_again(states: Floats, labels: Ints) -> float:
    """The accuracy of a probe of another kind, fitted on half of the states and scored on the rest."""
    fitted = LogisticRegression(C=1e4, max_iter=5000).fit(states[:FIT], labels[:FIT])
    return float(fitted.score(states[FIT:], labels[FIT:]))


@pytest.mark.parametrize("penalty", [1e-6, 1e-2, 1.0, 100.0])
def test_no_linear_probe_reads_the_label_after_an_erasure(data: tuple[Floats, Ints], penalty: float) -> None:
    states, labels = data
    probe = probe_of(states[:FIT], labels[:FIT], penalty)
    erasure = probe.erasure()
    assert penalty > 1 or probe.accuracy(states[FIT:], labels[FIT:]) > 0.99
    assert erasure.dimensions == LABELS - 1
    left = erasure.of(states)
    outputs = np.eye(LABELS)[labels[:FIT]]
    covariance = (left[:FIT] - left[:FIT].mean(0)).T @ (outputs - outputs.mean(0)) / FIT
    assert np.abs(covariance).max() < 1e-9
    assert read_again(states, labels) > 0.99 and read_again(left, labels) < 1 / LABELS + 0.06
    np.testing.assert_allclose(left[:FIT].mean(0), states[:FIT].mean(0))
    np.testing.assert_allclose(erasure.of(left), left, atol=1e-8)


def test_to_take_out_the_weights_alone_would_leave_the_label_to_a_second_probe(data: tuple[Floats, Ints]) -> None:
    """The reason for the erasure."""
    states, labels = data
    probe = probe_of(states[:FIT], labels[:FIT], 1e-6)
    basis, size, _ = np.linalg.svd(probe.weight, full_matrices=False)
    basis = basis[:, size > 1e-6 * size.max()]
    left = states - (states - probe.mean) @ basis @ basis.T
    assert probe.accuracy(left[FIT:], labels[FIT:]) < 0.4 and read_again(left, labels) > 0.99


def test_a_control_changes_each_state_as_much_and_leaves_the_label(data: tuple[Floats, Ints]) -> None:
    states, labels = data
    erasure = probe_of(states[:FIT], labels[:FIT], 1e-2).erasure()
    rng = np.random.default_rng(0)
    first, second = erasure.turned(rng), erasure.turned(rng)
    changes = [each.of(states) - states for each in (erasure, first, second)]
    between = [change[:200] @ change[:200].T for change in changes]
    # All lengths and angles of the changes stay.
    np.testing.assert_allclose(between[1], between[0], atol=1e-8)
    np.testing.assert_allclose(between[2], between[0], atol=1e-8)
    assert np.abs(changes[1] - changes[2]).max() > 0.1 < np.abs(changes[1] - changes[0]).max()
    assert all(read_again(each.of(states), labels) > 0.99 for each in (first, second))


def test_states_that_say_nothing_are_left_as_they_are() -> None:
    states = np.ones((50, 4))
    erasure = probe_of(states, np.arange(50) % LABELS, 1e-2).erasure()
    assert erasure.dimensions == 0
    np.testing.assert_array_equal(erasure.of(states), states)
    assert isinstance(erasure.turned(np.random.default_rng(0)), Erasure)
