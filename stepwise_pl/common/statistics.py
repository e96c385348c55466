"""Intervals and tests for accuracies, in plain Python."""

import math
from collections.abc import Sequence
from statistics import fmean

Z95 = 1.959964  # 97.5% quantile of the standard normal distribution


def wilson(accuracy: float, examples: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of an accuracy (0 to 1) measured on `examples` examples; 95% by default.

    Unlike the normal interval, the Wilson interval is honest at 0% and 100%, and never reaches beyond them.

    Raises:
        ValueError: there is no example.
    """
    if examples < 1:
        raise ValueError("an interval needs at least one example")
    spread = z * z / examples
    centre = (accuracy + spread / 2) / (1 + spread)
    half = math.sqrt(accuracy * (1 - accuracy) * spread + spread * spread / 4) / (1 + spread)
    return _around(accuracy, centre - half, centre + half, 0.0)


def _around(estimate: float, low: float, high: float, least: float, most: float = 1.0) -> tuple[float, float]:
    """The interval within the bounds `least` and `most`, widened to contain its estimate if rounding moved an end past it."""
    return min(max(least, low), estimate), max(min(most, high), estimate)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test for two models answering the same problems.

    If both models are equally accurate, a problem that only one of them gets right is as likely to be right for the
    first as for the second. The count for one model then has a binomial distribution with probability 1/2.

    Args:
        only_first: number of problems that only the first model gets right.
        only_second: the same for the second model.
    """
    count = only_first + only_second
    term = tail = 1  # binomial coefficients, exact
    for k in range(min(only_first, only_second)):
        term = term * (count - k) // (k + 1)
        tail += term
    return min(1.0, tail / (1 << count) * 2)


def paired_difference(only_first: int, only_second: int, examples: int) -> tuple[float, float]:
    """95% interval of the accuracy of a first model minus that of a second one on the same problems.

    This is the adjusted Wald interval of Bonett and Price (2012, doi 10.3102/1076998611411915). One problem is added to
    `only_first` and one to `only_second` (see `mcnemar`).

    Raises:
        ValueError: there is no example.
    """
    if examples < 1:
        raise ValueError("an interval needs at least one example")
    first, second = (only_first + 1) / (examples + 2), (only_second + 1) / (examples + 2)
    difference = first - second
    half = Z95 * math.sqrt((first + second - difference**2) / (examples + 2))
    return _around((only_first - only_second) / examples, difference - half, difference + half, -1.0)


def newcombe(first: tuple[float, int], second: tuple[float, int]) -> tuple[float, float]:
    """95% interval of a first accuracy minus a second one, each measured on problems of its own.

    This is the hybrid score interval (Newcombe 1998, doi 10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I,
    method 10), made of the two Wilson intervals.

    Args:
        first, second: accuracy (0 to 1) and number of examples.

    Raises:
        ValueError: there is no example.
    """
    (one, _), (other, _) = first, second
    (low, high), (other_low, other_high) = wilson(*first), wilson(*second)
    below = math.hypot(one - low, other_high - other)
    above = math.hypot(high - one, other - other_low)
    difference = one - other
    return _around(difference, difference - below, difference + above, -1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) for several tests: the adjusted p values, in the order given.

    If every test with an adjusted p below 0.05 is called significant, the chance of any false call is at most 5%.
    """
    out, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        out[index] = worst
    return out


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean (`statistics.fmean`) by Student's t distribution.

    Raises:
        ValueError: there are fewer than two values.
    """
    count = len(values)
    if count < 2:
        raise ValueError("an interval needs at least two values")
    mean = fmean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(count - 1) * math.sqrt(variance / count)
    return mean - half, mean + half


def over_seeds(accuracies: Sequence[float], examples: int) -> tuple[float, float, str]:
    """95% interval of the mean accuracy over seeds, and its kind: `t` or `Wilson`.

    Student's t interval is about other seeds. A single seed, or several that agree (as at 100%), say nothing about other
    seeds. Their interval is Wilson's, about other problems. Both intervals contain the mean (`statistics.fmean`).

    Args:
        accuracies: accuracy of each seed, 0 to 1.
        examples: number of examples that each seed was tested on.

    Raises:
        ValueError: there is no accuracy or no example.
    """
    if not accuracies:
        raise ValueError("an interval needs at least one accuracy")
    mean = fmean(accuracies)
    agree = len(set(accuracies)) == 1
    low, high = wilson(accuracies[0], examples) if agree else mean_interval(accuracies)
    return *_around(mean, low, high, 0.0), "Wilson" if agree else "t"


def t_quantile(freedom: int, inside: float = 0.95) -> float:
    """The bound that |t| stays below with probability `inside`, for Student's t with `freedom` degrees of freedom."""
    low, high = 0.0, math.pi / 2  # θ = atan(t / √freedom)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < inside else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def t_beyond(t: float, freedom: int) -> float:
    """Two-sided p of a value of Student's t with `freedom` degrees of freedom: the probability of a larger |t|."""
    return max(0.0, 1 - _t_inside(math.atan(abs(t) / math.sqrt(freedom)), freedom))


def _t_inside(angle: float, freedom: int) -> float:
    """P(|t| < √freedom · tan(angle)), by the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
