"""Power laws, fitted by least squares of the logarithms."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from stepwise_pl.common.statistics import t_beyond, t_quantile
from stepwise_pl.common.text import counted

# Logarithms are known to about this share of their size. Residuals below it are rounding and count as this much noise,
# so that numbers which follow a law exactly, or are all equal, are judged as such.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class PowerFit:
    """value = a · key^b, with one exponent b and a factor a for each group.

    Attributes:
        exponent: b.
        low, high: 95% interval of b, by Student's t from the residuals.
        factors: a of each group: the value of the law at key = 1.
        points: number of points.
        freedom: degrees of freedom of the residuals: points - groups - 1.
        curvature_p: two-sided p of a term in (log key)²; None if the points are too few to test it.
        first_slope, last_slope: exponents at the lowest and the highest key if that term is there; b if it is not tested.
    """

    exponent: float
    low: float
    high: float
    factors: dict[Hashable, float]
    points: int
    freedom: int
    curvature_p: float | None
    first_slope: float
    last_slope: float


def fit_power(keys: Sequence[float], values: Sequence[float], groups: Sequence[Hashable] | None = None) -> PowerFit:
    """Fit log value = log a + b · log key by least squares, with an intercept for each group.

    The slope is that of a regression with an indicator of each group: both columns are taken less their means in each
    group (Frisch and Waugh 1933, doi 10.2307/1907330).

    Args:
        keys, values: above 0, one for each point.
        groups: the group of each point; None: all points are one group.

    Raises:
        ValueError: a number is not above 0, no group has two keys, or the points are too few for the residuals of a fit.
    """
    if not all(math.isfinite(number) and number > 0 for number in (*keys, *values)):
        raise ValueError("a power law needs finite numbers above 0")
    groups = [0] * len(keys) if groups is None else groups
    names = list(dict.fromkeys(groups))
    group = np.array([names.index(name) for name in groups], int)  # [points]
    counts = np.bincount(group)  # [groups]
    freedom = len(keys) - len(names) - 1
    if freedom < 1:
        points, intercepts = counted(len(keys), "point"), counted(len(names), "intercept")
        raise ValueError(f"{points} are too few for an exponent and {intercepts}")

    def means(column: np.ndarray) -> np.ndarray:  # [points] -> [groups]
        return np.asarray(np.bincount(group, column) / counts)

    def within(column: np.ndarray) -> np.ndarray:  # [points] -> [points]
        return np.asarray(column - means(column)[group])

    log_keys, log_values = np.log(np.array(keys, float)), np.log(np.array(values, float))  # [points]
    x, y = within(log_keys), within(log_values)
    spread = float(x @ x)
    if spread <= (_ROUNDING * float(np.abs(log_keys).max())) ** 2 * len(keys):
        raise ValueError("no group has two values of the key")
    noise = (_ROUNDING * max(1.0, float(np.abs(log_values).max()))) ** 2  # the least variance
    slope = float(x @ y) / spread
    residuals = y - slope * x
    variance = max(float(residuals @ residuals) / freedom, noise)
    half = t_quantile(freedom) * math.sqrt(variance / spread)
    factors = np.exp(means(log_values) - slope * means(log_keys))  # [groups]
    p, first, last = _curvature(log_keys, within((log_keys - log_keys.mean()) ** 2), x, y, freedom - 1, noise)
    return PowerFit(
        slope, slope - half, slope + half, dict(zip(names, map(float, factors), strict=True)), len(keys), freedom, p,
        slope if first is None else first, slope if last is None else last,
    )  # fmt: skip


def _curvature(
    log_keys: np.ndarray, squares: np.ndarray, x: np.ndarray, y: np.ndarray, freedom: int, noise: float
) -> tuple[float | None, float | None, float | None]:
    """p of the quadratic term, and the slopes at the lowest and the highest key; None each if the term cannot be tested.

    Args:
        log_keys: [points].
        squares: (log key - mean)², less its mean in each group; [points].
        x, y: log keys and log values, less their means in each group; [points].
        freedom: degrees of freedom of the residuals with the term.
        noise: the least variance of the residuals.
    """
    spread = float(x @ x)
    bent = squares - float(squares @ x) / spread * x  # the part of the term that no line explains
    size = float(bent @ bent)
    if freedom < 1 or size <= 1e-18 * float(squares @ squares):
        return None, None, None
    term = float(bent @ y) / size
    slope = float(x @ (y - term * squares)) / spread
    residuals = y - slope * x - term * squares
    variance = max(float(residuals @ residuals) / freedom, noise)
    first, last = (slope + 2 * term * float(end - log_keys.mean()) for end in (log_keys.min(), log_keys.max()))
    return t_beyond(term / math.sqrt(variance / size), freedom), first, last
