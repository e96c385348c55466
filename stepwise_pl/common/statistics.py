"""Intervals and tests for accuracies, in plain Python."""

import math
from collections.abc import Sequence
from statistics import fmean

Z95 = 1.959964  # 97.5% quantile of the standard normal distribution


def wilson(accuracy: float, examples: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of an accuracy measured on `examples` examples; 95% by default.

    Unlike the normal interval it is honest at 0% and 100%, and ends there. Raises `ValueError` for no example.
    """
    if examples < 1:
        raise ValueError("an interval needs at least one example")
    spread = z * z / examples
    centre = (accuracy + spread / 2) / (1 + spread)
    half = math.sqrt(accuracy * (1 - accuracy) * spread + spread * spread / 4) / (1 + spread)
    return _around(accuracy, centre - half, centre + half, 0.0)


def _around(estimate: float, low: float, high: float, least: float, most: float = 1.0) -> tuple[float, float]:
    """The interval cut at what is possible. It contains its estimate, however the ends were rounded."""
    return min(max(least, low), estimate), max(min(most, high), estimate)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test for two models answering the same problems.

    Under equal accuracy each problem that only one of them gets right is as likely to be
    the one's as the other's, so that a binomial distribution with probability 1/2 decides.

    Args:
        only_first, only_second: problems that only this one gets right.
    """
    count = only_first + only_second
    term = tail = 1  # binomial coefficients, exact
    for k in range(min(only_first, only_second)):
        term = term * (count - k) // (k + 1)
        tail += term
    return min(1.0, tail / (1 << count) * 2)


def paired_difference(only_first: int, only_second: int, examples: int) -> tuple[float, float]:
    """95% interval of accuracy of the first minus accuracy of the second, measured on the same problems.

    The adjusted Wald interval of Bonett and Price (2012, doi 10.3102/1076998611411915):
    one problem is added to each kind that the two disagree on. Raises `ValueError` for no example.
    """
    if examples < 1:
        raise ValueError("an interval needs at least one example")
    first, second = (only_first + 1) / (examples + 2), (only_second + 1) / (examples + 2)
    difference = first - second
    half = Z95 * math.sqrt((first + second - difference**2) / (examples + 2))
    return _around((only_first - only_second) / examples, difference - half, difference + half, -1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) for several tests, as adjusted p values in the order given.

    Calling significant what is below 0.05 wrongly calls any at all in at most 5% of cases.
    """
    out, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        out[index] = worst
    return out


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean (`statistics.fmean`) by Student's t distribution.

    Raises `ValueError` for fewer than two values.
    """
    count = len(values)
    if count < 2:
        raise ValueError("an interval needs at least two values")
    mean = fmean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(count - 1) * math.sqrt(variance / count)
    return mean - half, mean + half


def over_seeds(accuracies: Sequence[float], examples: int) -> tuple[float, float, str]:
    """95% interval of an accuracy, given that of each seed, and what it is: `t` or `Wilson`.

    Student's t is about other seeds. One seed, or some that agree (as at 100%), say nothing
    about others: then Wilson's of `examples` examples, about other problems. Either contains
    the mean (`statistics.fmean`). Raises `ValueError` for no accuracy or no example.
    """
    if not accuracies:
        raise ValueError("an interval needs at least one accuracy")
    mean = fmean(accuracies)
    agree = len(set(accuracies)) == 1
    low, high = wilson(accuracies[0], examples) if agree else mean_interval(accuracies)
    return *_around(mean, low, high, 0.0), "Wilson" if agree else "t"


def t_quantile(freedom: int, inside: float = 0.95) -> float:
    """What the absolute value of Student's t with `freedom` degrees of freedom stays below with probability `inside`."""
    low, high = 0.0, math.pi / 2  # θ = atan(t / √freedom)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < inside else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _t_inside(angle: float, freedom: int) -> float:
    """P(|t| < √freedom · tan(angle)), by the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
