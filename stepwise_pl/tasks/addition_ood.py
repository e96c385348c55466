"""Sums unlike those trained on, in named parts: the suite of `evaluate suite=ood` for addition."""

from collections.abc import Callable
from itertools import count

import numpy as np

from stepwise_pl.tasks.base import Examples
from stepwise_pl.tasks.sampling import CHUNK, Problems, SampledTask, part
from stepwise_pl.tasks.variants import prompts_of

FEWEST_OPERANDS, MOST_OPERANDS, MOST_DIGITS = 3, 20, 20  # that the task allows


def suite(
    sized: Callable[[int, int], SampledTask], trained_on: tuple[int, int], train: Examples, size: int
) -> dict[str, Examples]:
    """Return sums that were not trained on, up to `size` for each part.

    fewer_digits     each operand has one digit fewer than those trained on
    more_digits      each operand has one digit more
    twice_digits     each operand has twice as many digits
    fewer_operands   one operand fewer
    more_operands    one operand more
    twice_operands   twice as many operands
    leading_zeros    the sizes trained on; the highest digit of at least one operand is zero
    carry_heavy      the sizes trained on; every digit is 7, 8 or 9

    A part of sizes that the task does not allow is missing. Problems of validation and test may occur.

    Args:
        sized: gives the task with other numbers of operands and digits, which makes CoT and answer of a part.
        trained_on: the operands and digits trained on.
        train: the training split.
        size: the most problems of a part. A part has fewer if there are no more.
    """
    (operands, digits), task = trained_on, sized(*trained_on)
    sizes = {
        "fewer_digits": (operands, digits - 1),
        "more_digits": (operands, digits + 1),
        "twice_digits": (operands, 2 * digits),
        "fewer_operands": (operands - 1, digits),
        "more_operands": (operands + 1, digits),
        "twice_operands": (2 * operands, digits),
    }
    tasks: dict[str, SampledTask] = {}
    taken: set[tuple[int, int]] = set()
    for name, (number, width) in sizes.items():
        is_allowed = FEWEST_OPERANDS <= number <= MOST_OPERANDS and 1 <= width <= MOST_DIGITS
        # Of few digits or operands, one more is twice as many.
        if is_allowed and (number, width) not in taken:
            tasks[name] = sized(number, width)
        taken.add((number, width))
    in_size: dict[str, Callable[[np.random.Generator], Problems]] = {
        "leading_zeros": lambda rng: _leading_zeros(rng, operands, digits),
        "carry_heavy": lambda rng: rng.integers(7, 10, (CHUNK, operands, digits), dtype=np.uint8),
    }
    rngs = (np.random.default_rng([task.seed, number]) for number in count())
    parts: dict[str, Examples] = {
        name: part(other.draw, other.render, next(rngs), size) for name, other in tasks.items()
    }
    trained = prompts_of(train)
    return parts | {name: part(draw, task.render, next(rngs), size, trained) for name, draw in in_size.items()}


def _leading_zeros(rng: np.random.Generator, operands: int, digits: int) -> Problems:
    """Return digits [n, operands, digits], the highest of at least one operand zero, and no operand all zeros."""
    problems = rng.integers(0, 10, (CHUNK, operands, digits), dtype=np.uint8)
    problems[..., -1][rng.random((CHUNK, operands)) < 0.5] = 0
    has_zero, no_operand_is_zero = (problems[..., -1] == 0).any(axis=1), (problems != 0).any(axis=2).all(axis=1)
    return np.asarray(problems[has_zero & no_operand_is_zero])
