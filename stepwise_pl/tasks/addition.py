"""Sums of several numbers. The chain of thought is the running sums."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.tasks import addition_ood
from stepwise_pl.tasks.base import Example, Examples, Splits
from stepwise_pl.tasks.formats import Form, with_sign
from stepwise_pl.tasks.long_multiplication import carried
from stepwise_pl.tasks.questions import in_usual_order, least_first, numbers_between
from stepwise_pl.tasks.sampling import CHUNK, Problems, SampledTask, digit_chars, in_places, read_digits, spaced


@register("task")
@dataclass
class Addition(SampledTask):
    """Sums of `operands` numbers of `digits` digits each, least significant digit first.

    Example line for `operands=4, digits=3`, 123 + 456 + 789 + 111 = 1479:
    `3 2 1 + 6 5 4 + 9 8 7 + 1 1 1||9 7 5 0 ; 8 6 3 1 #### 9 7 4 1`

    The CoT is the sum of the first two operands, then of the first three, and so on up to
    all but the last. Each sum is a reasoning step. A `;` begins every step but the first.
    The sums and the answer have as many digits as the largest possible total. The leading
    digit of an operand is never zero.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = "addition"
    # At least 3: two operands have no running sum, so there would be no CoT.
    operands: int = 4
    # Digits of an operand; 1 to 20.
    digits: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(3 <= self.operands <= 20, "task.operands", self.operands, "must be between 3 and 20")
        require(1 <= self.digits <= 20, "task.digits", self.digits, "must be between 1 and 20")

    def symbols(self) -> tuple[str, ...]:
        return (*"0123456789", "+", ";")

    def prompt_of(self, text: str) -> str:
        """Return the prompt of `123 + 456 + 789`, with digits in their usual order."""
        example = " + ".join(["1234567890"[: self.digits].ljust(self.digits, "2")] * self.operands)
        return " + ".join(map(least_first, numbers_between(text, ("+", "plus", "and"), example)))

    def readable(self, text: str) -> str:
        return in_usual_order(text)

    def cot_length_known(self) -> bool:
        return True

    def quantities(self) -> tuple[str, ...]:
        return ("running_sum", "carry")

    def values(self, name: str, examples: Sequence[Example]) -> list[npt.NDArray[np.float64]]:
        """Return, for each place k of the answer, the carry from the place before, or its sum with all digits of the place."""
        if name not in self.quantities():
            return super().values(name, examples)
        out = []
        for example in examples:
            sums = np.zeros(len(example.answer.split()))
            for operand in example.prompt.split(" + "):
                digits = operand.split()
                sums[: len(digits)] += np.array(digits, np.float64)
            out.append(carried(sums)[name])
        return out

    def results(self, examples: Sequence[Example]) -> dict[str, list[npt.NDArray[np.float64]]]:
        """Return the sums that the CoT writes, as `partial_sum`."""
        numbers = ([int(operand[::-1]) for operand in self.operands_of(example)] for example in examples)
        return {"partial_sum": [np.array(list(accumulate(each))[1:-1], np.float64) for each in numbers]}

    def operands_of(self, example: Example) -> tuple[str, ...]:
        return tuple(operand.replace(" ", "") for operand in example.prompt.split(" + "))

    def ood(self, splits: Splits, size: int) -> dict[str, Examples]:
        """Return the parts that `addition_ood.suite` describes."""
        return addition_ood.suite(
            lambda operands, digits: replace(self, operands=operands, digits=digits),
            (self.operands, self.digits),
            splits["train"],
            size,
        )

    def forms(self) -> dict[str, Form]:
        """Return the forms of every task; `;` for `+`, and `+` before the first operand. The small tokenizer knows both."""
        return {
            **super().forms(),
            "sign_semicolon": with_sign("+", ";"),
            "sign_before": lambda prompt: f"+ {prompt}",
        }

    def solved(self, prompts: Sequence[str]) -> list[Example | None]:
        problems = np.zeros((len(prompts), self.operands, self.digits), np.uint8)
        rows = []
        for row, prompt in enumerate(prompts):
            operands = [read_digits(operand) for operand in prompt.split(" + ")]
            # The highest digit stands last.
            if len(operands) == self.operands and all(len(each) == self.digits and each[-1] for each in operands):
                problems[row] = operands
                rows.append(row)
        return in_places(rows, self.render(problems[rows]), len(prompts))

    def draw(self, rng: np.random.Generator) -> Problems:
        """Return digits [CHUNK, operands, digits]."""
        digits = rng.integers(0, 10, (CHUNK, self.operands, self.digits), dtype=np.uint8)
        digits[..., -1] = rng.integers(1, 10, (CHUNK, self.operands), dtype=np.uint8)
        return digits

    def render(self, problems: Problems) -> list[Example]:
        width = len(str(self.operands * (10**self.digits - 1)))
        sums = running_sums(problems, width)
        prompts = spaced(_joined(problems, "+"))
        cots = spaced(_joined(sums[:, 1:-1], ";"))
        answers = spaced(digit_chars(sums[:, -1]))
        # Every character has a space behind it. Every sum but the first has a `;` before its digits.
        steps = (0, *(2 * (i * (width + 1) - 1) for i in range(1, self.operands - 2)))
        return [Example(x, z, y, steps) for x, z, y in zip(prompts, cots, answers, strict=True)]


def running_sums(operands: Problems, width: int) -> npt.NDArray[np.int64]:
    """Return the digits of the sum of the first operand, of the first two, and so on; [n, operands, width].

    The sums are made digit by digit, so that no number is too large for an integer type.

    Args:
        operands: digits [n, operands, digits].
        width: digits of each sum.
    """
    sums = np.zeros((*operands.shape[:2], width), np.int64)
    sums[..., : operands.shape[2]] = np.cumsum(operands, axis=1)
    for place in range(width - 1):
        sums[..., place + 1] += sums[..., place] // 10
        sums[..., place] %= 10
    return sums


def _joined(numbers: npt.NDArray[np.integer], symbol: str) -> npt.NDArray[np.uint8]:
    """Return digits [n, numbers, width] as characters [n, all], with `symbol` between the numbers."""
    chars = np.pad(digit_chars(numbers), ((0, 0), (0, 0), (1, 0)), constant_values=ord(symbol))
    return chars.reshape(len(chars), math.prod(chars.shape[1:]))[:, 1:]  # -1 fails if there are no rows
