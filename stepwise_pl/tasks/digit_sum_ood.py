"""Strings of digits unlike those trained on, in named parts: the suite of `evaluate suite=ood` for parity and modular sums."""

from collections.abc import Callable
from functools import partial

import numpy as np

from stepwise_pl.tasks.base import Examples
from stepwise_pl.tasks.digit_strings import drawn_digits, running_sums
from stepwise_pl.tasks.sampling import CHUNK, Problems, part
from stepwise_pl.tasks.variants import prompts_of

MOST = 1024  # digits of the longest problem
HEAVY = 0.75  # how often a digit of a heavy problem is replaced
Draw = Callable[[np.random.Generator], Problems]


def suite(train: Examples, shape: tuple[int, int, int], seed: int, size: int) -> dict[str, Examples]:
    """Return problems that were not trained on, up to `size` for each part.

    shorter          one digit fewer than the shortest trained on
    longer           one digit more than the longest trained on
    half_longer      half as many digits again
    twice_as_long    twice as many digits
    zero_heavy       lengths trained on; at least three quarters of the digits are zero
    high_heavy       lengths trained on; at least three quarters of the digits are the largest one

    Args:
        train: the training split. Problems of validation and test may occur.
        shape: the modulus, and the fewest and the most digits trained on.
        seed: the seed of the draws.
        size: the most problems of a part. A part has fewer if there are no more.
    """
    modulus, fewest, most = shape
    lengths = {
        "shorter": fewest - 1, "longer": most + 1, "half_longer": most + most // 2, "twice_as_long": 2 * most,
    }  # fmt: skip
    draws: dict[str, Draw] = {}
    taken: set[int] = set()
    for name, length in lengths.items():
        # Of few digits, some parts would be the same, or none at all.
        is_new = not fewest <= length <= most and length not in taken
        taken.add(length)
        if 1 <= length <= MOST and is_new:
            draws[name] = partial(drawn_digits, modulus=modulus, least=length, most=length)
    in_shape: dict[str, Draw] = {
        "zero_heavy": partial(_heavy, shape=shape, value=0),
        "high_heavy": partial(_heavy, shape=shape, value=modulus - 1),
    }
    render, trained = partial(running_sums, modulus=modulus), prompts_of(train)
    return {
        name: part(draw, render, np.random.default_rng([seed, number]), size, trained if name in in_shape else set())
        for number, (name, draw) in enumerate({**draws, **in_shape}.items())
    }


def _heavy(rng: np.random.Generator, shape: tuple[int, int, int], value: int) -> Problems:
    """Return the problems of a chunk in which at least three quarters of the digits are `value`; [n, most]."""
    modulus, _, most = shape
    problems = drawn_digits(rng, *shape)
    is_digit = problems != modulus
    problems[is_digit & (rng.random((CHUNK, most)) < HEAVY)] = value
    return np.asarray(problems[4 * (problems == value).sum(axis=1) >= 3 * is_digit.sum(axis=1)])
