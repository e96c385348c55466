"""Strings of digits, and their running sums modulo a small number."""

import numpy as np

from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.sampling import CHUNK, Problems, digit_chars, spaced


def drawn_digits(rng: np.random.Generator, modulus: int, least: int, most: int) -> Problems:
    """Draw digits below `modulus`, [CHUNK, most]. `modulus` itself stands behind the last digit of a shorter problem."""
    drawn = rng.integers(0, modulus, (CHUNK, most), dtype=np.uint8)
    length = rng.integers(least, most + 1, (CHUNK, 1))
    drawn[np.arange(most) >= length] = modulus
    return drawn


def running_sums(problems: Problems, modulus: int) -> list[Example]:
    """Return the texts of digits [n, most]: prompt, running sums modulo `modulus`, and the last of them as answer."""
    prompts = spaced(np.where(problems == modulus, np.uint8(ord(" ")), digit_chars(problems)))
    cots = spaced(digit_chars((np.cumsum(problems, axis=1) % modulus).astype(np.uint8)))
    out = []
    for prompt, cot in zip(map(str.rstrip, prompts), cots, strict=True):
        cot = cot[: len(prompt)]
        out.append(Example(prompt, cot, cot[-1], tuple(range(0, len(cot), 2))))
    return out
