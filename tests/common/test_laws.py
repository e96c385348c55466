"""Power laws against regressions written out here, and against laws from which the numbers were made."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stepwise_pl.common.laws import fit_power

KEYS = [2.0, 3.0, 4.0, 6.0, 8.0]


def noisy(
    random: np.random.Generator, exponent: float, noise: float, seeds: int = 3, factor: float = 5.0, bend: float = 0.0
) -> tuple[list[float], list[float]]:
    """Keys and values of a law with `seeds` values at each key; `bend`: of a term in (log key)²."""
    keys = np.repeat(KEYS, seeds)
    logs = (
        np.log(factor) + exponent * np.log(keys) + bend * np.log(keys) ** 2 + noise * random.standard_normal(len(keys))
    )
    return keys.tolist(), np.exp(logs).tolist()


def test_the_fit_of_one_group_is_scipys_regression() -> None:
    keys, values = noisy(np.random.default_rng(1), 1.3, 0.2)
    fit, wanted = fit_power(keys, values), stats.linregress(np.log(keys), np.log(values))
    half = stats.t.ppf(0.975, len(keys) - 2) * wanted.stderr
    assert (fit.exponent, fit.low, fit.high) == pytest.approx((wanted.slope, wanted.slope - half, wanted.slope + half))
    assert fit.factors == {0: pytest.approx(math.exp(wanted.intercept))}
    assert (fit.points, fit.freedom) == (15, 13)


def regression(columns: list[np.ndarray], wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Coefficients, their standard errors, and degrees of freedom, by the normal equations."""
    matrix = np.stack(columns, axis=1)  # [points, columns]
    found, _, rank, _ = np.linalg.lstsq(matrix, wanted, rcond=None)
    assert rank == matrix.shape[1]
    residuals = wanted - matrix @ found
    freedom = len(wanted) - matrix.shape[1]
    covariance = residuals @ residuals / freedom * np.linalg.inv(matrix.T @ matrix)
    return found, np.sqrt(np.diag(covariance)), freedom


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.lists(st.integers(2, 5), min_size=1, max_size=4))
def test_the_pooled_fit_is_a_regression_with_an_indicator_for_each_group(seed: int, sizes: list[int]) -> None:
    """Groups of several sizes at several keys, in any order; with the quadratic term as well."""
    random = np.random.default_rng(seed)
    group = random.permutation(np.repeat(np.arange(len(sizes)), [3 * size for size in sizes]))
    keys = random.uniform(1, 20, len(group))
    values = np.exp(group + 0.7 * np.log(keys) + 0.3 * random.standard_normal(len(group)))
    fit = fit_power(keys.tolist(), values.tolist(), [f"g{one}" for one in group])
    indicators = [(group == one).astype(float) for one in range(len(sizes))]
    logs = np.log(keys)
    found, errors, freedom = regression([*indicators, logs], np.log(values))
    half = stats.t.ppf(0.975, freedom) * errors[-1]
    assert fit.freedom == freedom == len(group) - len(sizes) - 1
    assert (fit.exponent, fit.low, fit.high) == pytest.approx((found[-1], found[-1] - half, found[-1] + half), rel=1e-6)
    assert fit.factors == {f"g{one}": pytest.approx(math.exp(found[one])) for one in range(len(sizes))}
    found, errors, freedom = regression([*indicators, logs, logs**2], np.log(values))
    assert fit.curvature_p == pytest.approx(2 * stats.t.sf(abs(found[-1] / errors[-1]), freedom), rel=1e-5, abs=1e-9)
    ends = [found[-2] + 2 * found[-1] * end for end in (logs.min(), logs.max())]
    assert (fit.first_slope, fit.last_slope) == pytest.approx(ends, rel=1e-5, abs=1e-7)


def test_the_interval_holds_the_exponent_in_95_percent_of_draws_and_the_bend_is_found_in_5_percent() -> None:
    random, draws = np.random.default_rng(7), 2000
    fits = [fit_power(*noisy(random, 1.3, 0.3, seeds=2)) for _ in range(draws)]
    covered = sum(fit.low <= 1.3 <= fit.high for fit in fits) / draws
    bent = sum(fit.curvature_p is not None and fit.curvature_p < 0.05 for fit in fits) / draws
    error = 3 * math.sqrt(0.95 * 0.05 / draws)
    assert abs(covered - 0.95) < error and abs(bent - 0.05) < error


def test_the_pooled_interval_holds_the_exponent_in_95_percent_of_draws() -> None:
    """With two points for each intercept: degrees of freedom that forget the intercepts would make it far too narrow."""
    random, draws, covered = np.random.default_rng(8), 1000, 0
    groups = np.repeat(np.arange(8), 2)
    for _ in range(draws):
        keys = np.tile([2.0, 5.0], 8) * (1 + groups)
        logs = random.uniform(-3, 3, 8)[groups] - 0.8 * np.log(keys) + 0.3 * random.standard_normal(16)
        fit = fit_power(keys.tolist(), np.exp(logs).tolist(), groups.tolist())
        covered += fit.low <= -0.8 <= fit.high
    assert abs(covered / draws - 0.95) < 3 * math.sqrt(0.95 * 0.05 / draws)


@pytest.mark.parametrize("exponent", [-2.0, 0.5, 1.0, 3.0])
def test_a_law_without_noise_is_found_exactly_and_not_called_bent(exponent: float) -> None:
    fit = fit_power(KEYS, [5 * key**exponent for key in KEYS])
    assert (fit.low, fit.exponent, fit.high) == pytest.approx((exponent, exponent, exponent), abs=1e-10)
    assert fit.factors == {0: pytest.approx(5)}
    assert fit.low < exponent < fit.high and not fit.low <= 0 <= fit.high
    assert fit.curvature_p is not None and fit.curvature_p > 0.05


@pytest.mark.parametrize("value", [1.0, 0.3, 12_800.0])
def test_equal_values_have_an_exponent_of_zero(value: float) -> None:
    fit = fit_power(KEYS, [value] * len(KEYS))
    assert fit.low <= 0 <= fit.high and fit.exponent == pytest.approx(0, abs=1e-12)
    assert fit.curvature_p is not None and fit.curvature_p > 0.05


def test_a_bend_is_found_with_the_slopes_at_its_ends() -> None:
    exact = fit_power(KEYS, [math.exp(0.5 * math.log(key) ** 2) for key in KEYS])
    assert exact.curvature_p is not None and exact.curvature_p < 1e-6
    assert (exact.first_slope, exact.last_slope) == pytest.approx((math.log(2), math.log(8)))
    noise = fit_power(*noisy(np.random.default_rng(3), 1.0, 0.1, bend=0.5))
    assert noise.curvature_p is not None and noise.curvature_p < 0.05


def test_a_bend_needs_three_keys_and_a_point_more_than_it_has_numbers() -> None:
    assert fit_power([2, 3, 4], [1, 2, 4]).curvature_p is None
    assert fit_power([2, 2, 4, 4], [1, 2, 4, 5]).curvature_p is None
    assert fit_power([2, 3, 4, 5], [1, 2, 4, 5]).curvature_p is not None


@pytest.mark.parametrize(
    "keys,values,groups,message",
    [
        ([1, 2, 0], [1, 2, 3], None, "above 0"),
        ([1, 2, 3], [1, 2, -3], None, "above 0"),
        ([1, 2, 3], [1, 2, math.inf], None, "above 0"),
        ([1, 2], [1, 2], None, "2 points are too few for an exponent and 1 intercept"),
        ([1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 1, 2], "4 points are too few for an exponent and 3 intercepts"),
        ([1, 1, 3, 3], [1, 2, 3, 4], [0, 0, 1, 1], "no group has two values of the key"),
    ],
)
def test_numbers_that_allow_no_fit_are_refused(
    keys: list[float], values: list[float], groups: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power(keys, values, groups)
