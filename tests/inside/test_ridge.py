"""Linear probes, against scikit-learn; what they are chosen by; and the intervals of their scores."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from stepwise_pl.common.statistics import wilson
from stepwise_pl.inside.measures import measure
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.problems import Sides
from stepwise_pl.inside.ridge import Labels, groups_of, linear_probes, ridge_outputs, score, standardised
from stepwise_pl.inside.targets import CLASS, NUMBER, Target


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def labels(name: str, values: np.ndarray, num_classes: int = 0) -> Labels:
    kind = CLASS if num_classes else NUMBER
    target = Target(name, kind, values.astype(np.float64), Place("answer", 1), num_classes)
    return Labels(target, target.values)


@pytest.mark.parametrize("width", [5, 60], ids=["narrow", "wider than there are problems"])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_outputs_are_those_of_scikit_learn(width: int, is_sparse: bool, rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, width)) * (rng.random((50, width)) < 0.4) + (0 if is_sparse else 3)
    y = rng.normal(size=(50, 3)) + x[:, :3]
    rows, others = np.arange(40), np.arange(40, 50)
    given = sparse.csr_array(x) if is_sparse else x
    found = ridge_outputs(given, y, rows, others, (1.0, 1e-3))
    for outputs, strength in zip(found, (1.0, 1e-3), strict=True):
        model = Ridge(alpha=strength * len(rows)).fit(x[rows], y[rows])
        np.testing.assert_allclose(outputs, model.predict(x[others]), rtol=1e-6, atol=1e-8)


def made(rng: np.random.Generator, count: int = 400, scored: int = 100) -> tuple[np.ndarray, list[Labels], Sides]:
    """States of a class, of a number, and of neither, and a number that some problems lack."""
    digit = rng.integers(0, 4, count + scored)
    number = rng.normal(size=count + scored)
    some = np.where(rng.random(count + scored) < 0.5, number, np.nan)
    x = rng.normal(size=(count + scored, 12))
    x[:, :4] += 3 * np.eye(4)[digit]
    x[:, 5] += 2 * number
    noise = rng.integers(0, 4, count + scored)
    found = [labels("digit", digit, 4), labels("number", number), labels("noise", noise, 4), labels("some", some)]
    return x, found, Sides.of(count, scored)


def test_what_the_states_hold_is_read_and_nothing_else(rng: np.random.Generator) -> None:
    x, found, sides = made(rng)
    digit, number, noise, some = linear_probes(x, groups_of(found, sides))
    assert score(CLASS, found[0].values[sides.scored], digit.predicted) > 0.8 and digit.held > 0.8
    assert 0.6 < score(NUMBER, found[1].values[sides.scored], number.predicted) < 0.9  # 4 / 5 of the variance
    assert score(CLASS, found[2].values[sides.scored], noise.predicted) < 0.4
    has = sides.where(found[3].target.has)
    assert len(some.predicted) == len(has.scored) < 100
    assert score(NUMBER, found[3].values[has.scored], some.predicted) > 0.6


def test_labels_in_one_solve_are_probed_as_if_alone(rng: np.random.Generator) -> None:
    x, found, sides = made(rng)
    together = linear_probes(x, groups_of(found, sides))
    for label, probe in zip(found, together, strict=True):
        (alone,) = linear_probes(x, groups_of([label], sides))
        assert alone.held == pytest.approx(probe.held)
        np.testing.assert_allclose(alone.predicted, probe.predicted, rtol=1e-8)


def test_nothing_is_chosen_on_problems_to_score(rng: np.random.Generator) -> None:
    x, found, sides = made(rng)
    before = [probe.held for probe in linear_probes(x, groups_of(found, sides))]
    other, mixed = x.copy(), rng.permutation(sides.scored)
    other[sides.scored] = rng.normal(size=(100, 12)) * 100
    changed = []
    for label in found:
        values = label.values.copy()
        values[sides.scored] = values[mixed]
        # The problems that lack a label are the same.
        values = np.where(label.target.has, np.nan_to_num(values), np.nan)
        changed.append(Labels(label.target, values))
    assert [probe.held for probe in linear_probes(other, groups_of(changed, sides))] == before


def test_sides_are_a_fifth_and_the_rest() -> None:
    sides = Sides.of(100, 30)
    assert (len(sides.fit), len(sides.held), len(sides.scored)) == (80, 20, 30)
    assert sorted([*sides.fit, *sides.held]) == list(range(100)) == sides.whole.tolist()
    assert sides.scored.tolist() == list(range(100, 130))
    assert np.ptp(np.diff(sides.held)) > 0  # drawn, not cut off


def test_states_that_are_constant_but_for_rounding_are_left_out(rng: np.random.Generator) -> None:
    states = rng.normal(size=(50, 4)).astype(np.float32) * 7 + 2
    states[:, 1] = 3.0
    states[:, 2] = 1000 + rng.normal(size=50) * 1e-4
    found = standardised(states, np.arange(40))
    assert (found[:, 1:3] == 0).all()
    np.testing.assert_allclose(found[:40, [0, 3]].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found[:40, [0, 3]].std(0), 1, atol=1e-6)


def test_r2_is_that_of_scikit_learn_and_classes_have_wilsons_interval(rng: np.random.Generator) -> None:
    values, predicted = rng.normal(size=80), rng.normal(size=80)
    assert score(NUMBER, values, predicted) == pytest.approx(r2_score(values, predicted))
    found = measure(CLASS, np.array([0, 1, 2, 1.0]), np.array([0, 1, 2, 2.0]))
    assert (found.score, found.error, found.num_scored) == (0.75, 0.25, 4)
    assert (found.low, found.high) == wilson(0.75, 4)
    perfect = measure(NUMBER, values, values)
    assert (perfect.score, perfect.low, perfect.high, perfect.error) == (1, 1, 1, 0)
    assert np.isnan(score(NUMBER, np.ones(3), np.ones(3)))


def test_the_interval_of_r2_holds_the_true_value_as_often_as_it_says() -> None:
    """y = x + noise of the same variance, predicted by x: R² is one half. 95% of 200 are 190; fewer than 178 have probability 1e-4."""
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=300)
        found = measure(NUMBER, x + rng.normal(size=300), x)
        assert found.low <= found.score <= found.high
        inside += found.low <= 0.5 <= found.high
    assert inside >= 178
