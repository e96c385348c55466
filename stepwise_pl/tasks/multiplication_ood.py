"""Multiplication problems unlike those trained on, in named parts: the suite of `evaluate suite=ood`.

A problem is [2, digits + 1] uint8: the digits of each operand, least significant first, and
then the number of digits to write of it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.tasks.base import Example, Examples
from stepwise_pl.tasks.long_multiplication import Digits, digit_counts, pair_keys, render
from stepwise_pl.tasks.sampling import Rendered, distinct, row_keys

Ints = npt.NDArray[np.integer[Any]]

CHUNK = 1 << 13  # problems drawn at a time
ZERO = 0.75  # how often a digit of a zero-heavy operand is a zero


def suite(
    trained: Digits, lengths: list[tuple[int, int]], unordered: bool, seed: int, size: int
) -> dict[str, Examples]:
    """Return problems that were not trained on, up to `size` for each part.

    fewer_digits     at least one operand is shorter than any trained on, none is longer
    leading_zeros    as many digits as trained on, the highest of at least one operand being zero
    swapped          b * a of problems that were trained on as a * b only
    repeated_digits  each operand repeats one digit, for example 111 * 777
    carry_heavy      every digit is 7, 8 or 9
    zero_heavy       at least half of each operand's digits below the highest are zero, and at least one is

    The last four have operands of the lengths trained on, without leading zeros. `swapped` is
    empty if the lengths trained on do not allow b * a. All parts but `swapped` leave out pairs
    that were trained on; if the split is unordered, in either order. Problems of validation
    and test may occur.

    Args:
        trained: operand digits of the training set, [problems, 2, digits].
        lengths: fewest and most digits trained on, of the first and of the second operand.
        unordered: whether a * b and b * a count as one pair.
        seed: the seed of the draws. The same arguments give the same problems.
        size: the most problems of a part. A part has fewer if there are no more.
    """
    fewest, most = np.array(lengths).T
    parts = {"swapped": _swapped(trained, fewest, most)[:size]}
    seen = np.sort(pair_keys(trained, unordered))
    for number, (name, draw) in enumerate(DRAWN.items()):
        rng = np.random.default_rng([seed, number])

        def fresh(draw: Draw = draw, rng: np.random.Generator = rng) -> Digits:
            problems = draw(rng, fewest, most)
            return problems[~_among(pair_keys(problems[..., :-1], unordered), seen)]

        parts[name] = distinct(fresh, row_keys, size)
    return {name: Rendered(parts[name], _render) for name in PARTS}


def _render(problems: Digits) -> list[Example]:
    return render(problems[..., :-1], problems[..., -1])


def _among(keys: npt.NDArray[np.bytes_], known: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Whether each key is among the sorted `known` keys, [n] bool. For few keys this is faster than `np.isin`, which sorts."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return np.asarray(known[np.searchsorted(known, keys).clip(max=len(known) - 1)] == keys)


def _swapped(trained: Digits, fewest: Ints, most: Ints) -> Digits:
    """Return b * a for every a * b of the training set, if b * a is not in it and has lengths that were trained on."""
    swapped = trained[:, ::-1]
    written = digit_counts(swapped)
    right = ((written >= fewest) & (written <= most)).all(axis=1)
    return _problems(swapped, written)[right & ~_among(pair_keys(swapped, False), np.sort(pair_keys(trained, False)))]


def _problems(digits: Ints, written: Ints, keep: Any = True) -> Digits:
    """Return the problems to `keep` [n] from digits [n, 2, most] and the digits to write [n, 2]."""
    problems: Digits = np.concatenate([digits, written[..., None]], axis=-1).astype(np.uint8)
    return np.asarray(problems[np.broadcast_to(keep, len(problems))])


# Draws up to CHUNK problems of a part, given the fewest and the most digits trained on, each [2].
Draw = Callable[[np.random.Generator, Ints, Ints], Digits]


def _fewer_digits(rng: np.random.Generator, fewest: Ints, most: Ints) -> Digits:
    length = rng.integers(1, fewest + 1, (CHUNK, 2))
    return _problems(_any_digits(rng, length, most), length, (length < fewest).any(axis=1))


def _leading_zeros(rng: np.random.Generator, fewest: Ints, most: Ints) -> Digits:
    written = rng.integers(fewest, most + 1, (CHUNK, 2))
    length = rng.integers(1, written + 1)
    return _problems(_any_digits(rng, length, most), written, (length < written).any(axis=1))


def _repeated_digits(rng: np.random.Generator, fewest: Ints, most: Ints) -> Digits:
    length = rng.integers(fewest, most + 1, (CHUNK, 2))
    return _problems(_cut(rng.integers(1, 10, (CHUNK, 2, 1)), length, most), length, (length > 1).any(axis=1))


def _carry_heavy(rng: np.random.Generator, fewest: Ints, most: Ints) -> Digits:
    length = rng.integers(fewest, most + 1, (CHUNK, 2))
    return _problems(_cut(rng.integers(7, 10, (CHUNK, 2, most.max())), length, most), length)


def _zero_heavy(rng: np.random.Generator, fewest: Ints, most: Ints) -> Digits:
    length = rng.integers(fewest, most + 1, (CHUNK, 2))
    digits = _any_digits(rng, length, most)
    below = np.arange(most.max()) < length[..., None] - 1
    digits[below & (rng.random(digits.shape) < ZERO)] = 0
    zeros = (below & (digits == 0)).sum(axis=-1)
    return _problems(digits, length, (2 * zeros >= length - 1).all(axis=1) & zeros.any(axis=1))


def _any_digits(rng: np.random.Generator, length: Ints, most: Ints) -> Ints:
    """Draw numbers of `length` digits [n, 2] uniformly; return their digits [n, 2, most]."""
    digits = _cut(rng.integers(0, 10, (*length.shape, most.max())), length, most)
    np.put_along_axis(digits, length[..., None] - 1, rng.integers(1, 10, (*length.shape, 1)), axis=-1)
    return digits


def _cut(digits: Ints, length: Ints, most: Ints) -> Ints:
    """Return the digits with zeros beyond `length` [n, 2]; [n, 2, most]."""
    return np.where(np.arange(most.max()) < length[..., None], digits, 0)


DRAWN: dict[str, Draw] = {
    "fewer_digits": _fewer_digits, "leading_zeros": _leading_zeros, "repeated_digits": _repeated_digits,
    "carry_heavy": _carry_heavy, "zero_heavy": _zero_heavy,
}  # fmt: skip
PARTS = ("fewer_digits", "leading_zeros", "swapped", "repeated_digits", "carry_heavy", "zero_heavy")
