"""Intervals and tests against scipy, and against what they promise."""

import itertools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stepwise_pl.common.statistics import (
    holm,
    mcnemar,
    mean_interval,
    newcombe,
    over_seeds,
    paired_difference,
    t_beyond,
    t_quantile,
    wilson,
)
from stepwise_pl.runs.predictions import Share
from stepwise_pl.runs.stages import StageAccuracy

counts = st.integers(0, 400)


@given(counts, counts)
def test_mcnemar_is_a_two_sided_binomial_test(first: int, second: int) -> None:
    assert mcnemar(first, second) == mcnemar(second, first)
    wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_of_many_problems() -> None:
    assert mcnemar(5_000, 5_200) == pytest.approx(stats.binomtest(5_000, 10_200).pvalue, rel=1e-9)
    assert mcnemar(0, 2_000) == pytest.approx(2.0**-1999, rel=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 31, 200])
def test_t_quantiles_are_scipys(freedom: int) -> None:
    for inside in (0.5, 0.95, 0.999):
        assert t_quantile(freedom, inside) == pytest.approx(stats.t.ppf((1 + inside) / 2, freedom), rel=1e-9)


@given(st.floats(-50, 50), st.integers(1, 60))
def test_p_values_of_students_t_are_scipys(t: float, freedom: int) -> None:
    assert t_beyond(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-6, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_the_interval_over_seeds_is_scipys(values: list[float]) -> None:
    mean, error = math.fsum(values) / len(values), stats.sem(values)
    wanted = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error) if error else (mean, mean)
    assert mean_interval(values) == pytest.approx(wanted, abs=1e-9)


def test_intervals_need_values() -> None:
    with pytest.raises(ValueError, match="at least two"):
        mean_interval([0.5])
    with pytest.raises(ValueError, match="at least one"):
        paired_difference(0, 0, 0)


@pytest.mark.parametrize("chances", [(0.1, 0.1), (0.3, 0.1), (0.02, 0.3), (0.05, 0.0), (0.5, 0.5)])
def test_the_paired_interval_holds_the_truth_in_about_95_percent(chances: tuple[float, float]) -> None:
    """Exactly, by going through all outcomes: with probabilities `chances` only the first (second) is right."""
    n, neither = 40, 1 - sum(chances)
    covered = 0.0
    for first, second in itertools.product(range(n + 1), repeat=2):
        if first + second <= n:
            low, high = paired_difference(first, second, n)
            if low <= chances[0] - chances[1] <= high:
                outcome = (first, second, n - first - second)
                covered += stats.multinomial.pmf(outcome, n, (*chances, max(neither, 0)))
    assert 0.93 < covered <= 1


@given(counts, counts, counts)
def test_the_paired_interval_is_about_the_difference(first: int, second: int, agreed: int) -> None:
    n = first + second + agreed + 1
    low, high = paired_difference(first, second, n)
    assert -1 <= low <= (first - second) / n <= high <= 1
    assert paired_difference(second, first, n) == pytest.approx((-high, -low))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected: set[int] = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_an_interval_over_seeds_is_about_them_where_they_differ(right: list[int]) -> None:
    accuracies = [count / 100 for count in right]
    low, high, how = over_seeds(accuracies, 100)
    assert how == ("Wilson" if len(set(right)) == 1 else "t")
    if len(set(right)) == 1:
        wanted = stats.binomtest(right[0], 100).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    else:
        low_t, high_t = stats.t.interval(
            0.95, len(right) - 1, loc=sum(accuracies) / len(right), scale=stats.sem(accuracies)
        )
        assert (low, high) == pytest.approx((max(0, low_t), min(1, high_t)), abs=1e-6)


def test_an_interval_over_seeds_needs_one() -> None:
    with pytest.raises(ValueError, match="at least one accuracy"):
        over_seeds([], 100)


def test_the_wilson_interval_ends_at_all_and_none_for_every_n() -> None:
    for n in range(1, 20_001):
        assert wilson(1.0, n)[1] == 1 and wilson(0.0, n)[0] == 0


@given(st.floats(0, 1), st.integers(1, 10**7))
def test_the_wilson_interval_contains_its_accuracy(accuracy: float, n: int) -> None:
    low, high = wilson(accuracy, n)
    assert 0 <= low <= accuracy <= high <= 1


@given(st.integers(1, 10**5).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_or_stage_contains_it_also_in_single_precision(counts: tuple[int, int]) -> None:
    right, n = counts
    share = Share(right, n)
    assert share.interval[0] <= share.accuracy <= share.interval[1]
    stage = StageAccuracy(0, 1, float(np.float32(right) / np.float32(n)), n)
    assert stage.interval[0] <= stage.accuracy <= stage.interval[1]


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.1, 1 / 3, 1.0, 1 - 2**-53])), min_size=1, max_size=9))
def test_the_interval_over_seeds_contains_their_mean(accuracies: list[float]) -> None:
    low, high, _ = over_seeds(accuracies, 50)
    assert 0 <= low <= fmean(accuracies) <= high <= 1
    if len(accuracies) > 1:
        low, high = mean_interval(accuracies)
        assert low <= fmean(accuracies) <= high


@given(counts, counts, counts)
def test_the_paired_interval_contains_the_difference(first: int, second: int, agreed: int) -> None:
    n = max(1, first + second + agreed)
    low, high = paired_difference(first, second, n)
    assert -1 <= low <= (first - second) / n <= high <= 1


# Newcombe (1998), table II: 56 of 70 against 48 of 80, and small samples, by method 10.
@pytest.mark.parametrize(
    ("first", "second", "interval"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
    ],
)
def test_newcombe_is_that_of_the_paper(
    first: tuple[int, int], second: tuple[int, int], interval: tuple[float, float]
) -> None:
    shares = [(right / n, n) for right, n in (first, second)]
    assert newcombe(*shares) == pytest.approx(interval, abs=5e-5)
    low, high = newcombe(*shares[::-1])
    assert (-high, -low) == pytest.approx(newcombe(*shares))


@given(st.integers(0, 50), st.integers(0, 80))
def test_newcombe_contains_the_difference(right: int, other: int) -> None:
    low, high = newcombe((right / 50, 50), (other / 80, 80))
    assert -1 <= low <= right / 50 - other / 80 <= high <= 1
