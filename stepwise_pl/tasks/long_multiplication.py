"""Long multiplication on arrays of digits, and how it reads: shared by the task and its tests out of distribution."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.sampling import digit_chars, spaced

Digits = npt.NDArray[np.uint8]
PROMPT = re.compile(r"[0-9](?: [0-9])* \* [0-9](?: [0-9])*")


def render(operands: Digits, lengths: npt.NDArray[np.integer[Any]] | None = None) -> list[Example]:
    """The texts of multiplication problems from operand digits [n, 2, digits].

    Args:
        lengths: digits written of each operand, [n, 2]; where the operand has fewer, zeros lead it.
            None: as many as it has (`digit_counts`).
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
    """The rows, signs and running sums of a * b, and its digits, as character columns; and where the CoT's steps begin.

    A step is a row with its sign, and its running sum where there is one.
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
        steps.append(2 * sum(part.shape[1] for part in cot))  # a space behind every character
        if i > 0:
            cot.append(_symbol("+", a))
        cot.append(digit_chars(row))
        if 0 < i < last:
            cot += [_symbol("(", a), digit_chars(total[:, : row.shape[1]]), _symbol(")", a)]
    return cot, [digit_chars(total)], tuple(steps)


def _times_digit(a: Digits, digit: Digits) -> Digits:
    """a [n, width] times one digit each [n], as digits [n, width + 1]."""
    out = np.zeros((len(a), a.shape[1] + 1), np.uint8)
    carry = np.zeros(len(a), np.uint8)
    for place in range(a.shape[1]):
        value = a[:, place] * digit + carry  # at most 9 * 9 + 8
        out[:, place], carry = value % 10, value // 10
    out[:, -1] = carry
    return out


def _add(total: Digits, row: Digits) -> Digits:
    """total [n, width] plus row [n, at most width], as digits [n, width]; the sum must fit."""
    out = total.copy()
    out[:, : row.shape[1]] += row
    for place in range(out.shape[1] - 1):
        out[:, place + 1] += out[:, place] // 10
        out[:, place] %= 10
    return out


def _symbol(symbol: str, like: Digits) -> Digits:
    return np.full((len(like), 1), ord(symbol), np.uint8)


def digit_counts(operands: Digits) -> npt.NDArray[np.int64]:
    """Digits of each operand [n, 2]: one more than the place of its last non-zero digit."""
    nonzero = operands[..., ::-1] != 0
    return np.where(nonzero.any(-1), operands.shape[-1] - nonzero.argmax(-1), 1)


def pair_keys(operands: Digits, unordered: bool) -> npt.NDArray[np.bytes_]:
    """One byte string per pair, equal exactly for pairs of one class; [n]."""
    width = operands.shape[-1]
    # Most significant digit first, so that byte order is numeric order; no zero bytes, which numpy strips.
    numbers = np.ascontiguousarray(operands[..., ::-1] + np.uint8(1)).view(f"S{width}")[..., 0]
    if unordered:
        numbers = np.sort(numbers, axis=1)
    return np.ascontiguousarray(numbers).view(f"S{2 * width}").ravel()


def read_prompt(prompt: str) -> tuple[str, str] | None:
    """The two operands of `9 1 7 3 * 9 4 3 3` as their digits, `9173` and `9433`; None if it is no such prompt."""
    if not PROMPT.fullmatch(prompt):
        return None
    first, second = prompt.replace(" ", "").split("*")
    return first, second


def carries(first: str, second: str) -> int:
    """How often something is carried when two operands (digits, least significant first) are multiplied by hand.

    Two kinds count. In each row, a digit of the first operand times the digit of the
    second, with what was carried before, is 10 or more: also at the last digit, whose
    carry becomes the row's highest digit. And when a row is added to the running sum,
    a place (with what was carried before) comes to 10 or more.
    """
    a, count, total = int(first[::-1]), 0, 0
    for place, digit in enumerate(map(int, second)):
        # The lowest k digits of a times one digit, of which what goes beyond k places is carried.
        count += sum(a % 10**k * digit >= 10**k for k in range(1, len(first) + 1))
        row = a * digit * 10**place
        # Every carry of an addition makes ten of a place to one of the next: nine less in the sum of the digits.
        count += (_digit_sum(total) + _digit_sum(row) - _digit_sum(total + row)) // 9
        total += row
    return count


def _digit_sum(number: int) -> int:
    return sum(map(int, str(number)))
