"""Long multiplication on arrays of digits, and its texts. The task and its suite out of distribution share them."""

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.sampling import digit_chars, spaced

Digits = npt.NDArray[np.uint8]
PROMPT = re.compile(r"[0-9](?: [0-9])* \* [0-9](?: [0-9])*")


def render(operands: Digits, lengths: npt.NDArray[np.integer[Any]] | None = None) -> list[Example]:
    """Return the texts of multiplication problems.

    Args:
        operands: digits [n, 2, digits], least significant first.
        lengths: digits to write of each operand, [n, 2]. Leading zeros fill a shorter operand.
            None: the digits that the operand has (`digit_counts`).
    """
    lengths = digit_counts(operands) if lengths is None else lengths
    out: list[Example] = [Example("", "", "")] * len(operands)
    for first, second in np.unique(lengths, axis=0):
        rows = np.flatnonzero((lengths == (first, second)).all(axis=1))
        a, b = operands[rows, 0, :first], operands[rows, 1, :second]
        cot, answer, steps = _cot_and_answer(a, b)
        texts = zip(*(spaced(np.concatenate(part, axis=1)) for part in (_prompt(a, b), cot, answer)), strict=True)
        for row, (x, z, y) in zip(rows, texts, strict=True):
            out[row] = Example(x, z, y, steps)
    return out


def _prompt(a: Digits, b: Digits) -> list[Digits]:
    return [digit_chars(a), _symbol("*", a), digit_chars(b)]


def _cot_and_answer(a: Digits, b: Digits) -> tuple[list[Digits], list[Digits], tuple[int, ...]]:
    """Return the CoT and the answer of a * b as character columns, and the characters at which reasoning steps begin.

    The CoT consists of rows, signs and running sums. A step is a row with its sign and its running sum, if it has one.
    """
    n, width = a.shape
    last = b.shape[1] - 1
    total = np.zeros((n, width + last + 1), np.uint8)
    cot: list[Digits] = []
    steps: list[int] = []
    for i in range(last + 1):
        row = np.zeros((n, width + 1 + i), np.uint8)
        row[:, i:] = _times_digit(a, b[:, i])
        total = _add(total, row)
        # Every character has a space behind it.
        steps.append(2 * sum(part.shape[1] for part in cot))
        if i > 0:
            cot.append(_symbol("+", a))
        cot.append(digit_chars(row))
        if 0 < i < last:
            cot += [_symbol("(", a), digit_chars(total[:, : row.shape[1]]), _symbol(")", a)]
    return cot, [digit_chars(total)], tuple(steps)


def _times_digit(a: Digits, digit: Digits) -> Digits:
    """Return the digits [n, width + 1] of a [n, width] times one digit each [n]."""
    out = np.zeros((len(a), a.shape[1] + 1), np.uint8)
    carry = np.zeros(len(a), np.uint8)
    for place in range(a.shape[1]):
        value = a[:, place] * digit + carry  # at most 9 * 9 + 8
        out[:, place], carry = value % 10, value // 10
    out[:, -1] = carry
    return out


def _add(total: Digits, row: Digits) -> Digits:
    """Return the digits [n, width] of total [n, width] plus row [n, at most width]; the sum must fit."""
    out = total.copy()
    out[:, : row.shape[1]] += row
    for place in range(out.shape[1] - 1):
        out[:, place + 1] += out[:, place] // 10
        out[:, place] %= 10
    return out


def _symbol(symbol: str, like: Digits) -> Digits:
    return np.full((len(like), 1), ord(symbol), np.uint8)


def digit_counts(operands: Digits) -> npt.NDArray[np.int64]:
    """Return how many digits each operand has, [n, 2]: one more than the place of its last non-zero digit."""
    nonzero = operands[..., ::-1] != 0
    return np.where(nonzero.any(-1), operands.shape[-1] - nonzero.argmax(-1), 1)


def pair_keys(operands: Digits, unordered: bool) -> npt.NDArray[np.bytes_]:
    """Return one byte string per pair, [n]. Two are equal exactly if the pairs are: `unordered` pairs may be swapped."""
    width = operands.shape[-1]
    # The most significant digit comes first, so that byte order is numeric order. numpy would strip zero bytes, hence + 1.
    numbers = np.ascontiguousarray(operands[..., ::-1] + np.uint8(1)).view(f"S{width}")[..., 0]
    if unordered:
        numbers = np.sort(numbers, axis=1)
    return np.ascontiguousarray(numbers).view(f"S{2 * width}").ravel()


def read_prompt(prompt: str) -> tuple[str, str] | None:
    """Return the two operands of `9 1 7 3 * 9 4 3 3` as their digits, `9173` and `9433`; None for any other prompt."""
    if not PROMPT.fullmatch(prompt):
        return None
    first, second = prompt.replace(" ", "").split("*")
    return first, second


def place_sums(first: str, second: str) -> dict[str, npt.NDArray[np.float64]]:
    """Return what stands behind each digit of the product of two operands (digits, least significant first).

    Returns:
        `products`, `carry` and `running_sum` (`Multiplication.values`), each [digits of both].
    """
    a, b = (np.array(list(operand), np.float64) for operand in (first, second))
    products = np.append(np.convolve(a, b), 0.0)
    return {"products": products, **carried(products)}


def row_results(first: str, second: str) -> dict[str, npt.NDArray[np.float64]]:
    """Return what stands behind each row of the CoT of two operands (digits, least significant first), each [digits of the second].

    Returns:
        `row`: the first operand times a digit of the second, not shifted. `partial_sum`: the sum of the rows so far; nan
        behind the first and the last row, where the CoT has none.
    """
    a, width = int(first[::-1] or 0), len(second)
    sums = [a * int(second[i::-1]) if 0 < i < width - 1 else math.nan for i in range(width)]
    return {
        "row": np.array([a * int(digit) for digit in second], np.float64),
        "partial_sum": np.array(sums, np.float64),
    }


def carried(sums: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the carry into each place, and the running sum that it makes of the sum of the place; all [places]."""
    carry = np.zeros_like(sums)
    for place in range(1, len(sums)):
        carry[place] = (sums[place - 1] + carry[place - 1]) // 10
    return {"carry": carry, "running_sum": sums + carry}


def carries(first: str, second: str) -> int:
    """Count the carries when two operands (digits, least significant first) are multiplied by hand.

    Two kinds count. In a row, a digit of the first operand times the digit of the second,
    plus the carry from the place before, is 10 or more. The last digit counts too: its
    carry becomes the row's highest digit. In the running sum, a place (plus the carry from
    the place before) comes to 10 or more when a row is added.
    """
    a, count, total = int(first[::-1]), 0, 0
    for place, digit in enumerate(map(int, second)):
        # The lowest k digits of a times one digit: the part beyond k places is carried.
        count += sum(a % 10**k * digit >= 10**k for k in range(1, len(first) + 1))
        row = a * digit * 10**place
        # Every carry of an addition turns ten of a place into one of the next: the sum of the digits falls by nine.
        count += (_digit_sum(total) + _digit_sum(row) - _digit_sum(total + row)) // 9
        total += row
    return count


def _digit_sum(number: int) -> int:
    return sum(map(int, str(number)))
