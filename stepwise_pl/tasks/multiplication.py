"""Long multiplication. The chain of thought is its partial products and running sums."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.registry import register
from stepwise_pl.tasks import multiplication_ood
from stepwise_pl.tasks.base import EASY, Example, Examples, Splits, Task, shortages
from stepwise_pl.tasks.formats import Form
from stepwise_pl.tasks.long_multiplication import (
    Digits,
    carries,
    digit_counts,
    pair_keys,
    place_sums,
    read_prompt,
    render,
    row_results,
)
from stepwise_pl.tasks.questions import in_usual_order, least_first, numbers_between, printed
from stepwise_pl.tasks.sampling import in_places

ENUMERATED = 2_000_000  # if there are no more ordered pairs than this, all are listed, so that none is missed
CHUNK = 1 << 16  # random pairs drawn at a time
MOST_EASY = 200_000
EVERY = 5  # at most one class in this many goes to the test set, and one to validation


@register("task")
@dataclass
class Multiplication(Task):
    """Products of two numbers, of `digits` and `second_digits` digits, least significant digit first.

    Example line for `digits=2`, 38 * 57 = 2166:
    `8 3 * 7 5||6 6 2 + 0 0 9 1 #### 6 6 1 2`

    Row i of the CoT is the first operand times digit i of the second, shifted by i. The
    running sum stands in brackets after every row but the first and the last. Row i has
    (digits of the first operand) + 1 + i digits, and the answer has as many digits as both
    operands together, also if operands have different lengths (`min_digits` below `digits`).

    No operand pair of validation or test occurs in training. With `split="unordered"`
    b * a does not either. If there are too few pairs, the splits are smaller than asked
    for, and a note says so; they never overlap. Validation and test do not depend on
    `train_size`.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = "multiplication"
    # Digits of the first operand; 1 to 100.
    digits: int = 4
    # Digits of the second operand; null: as many as the first.
    second_digits: int | None = None
    # Operand lengths are drawn uniformly from min_digits up; null: every operand has the most digits.
    min_digits: int | None = None
    # `ordered`: no pair a * b is in two splits; `unordered`: b * a is not either.
    split: str = "ordered"
    # Easy problems (data.easy_first) are training problems with more zeros: each digit but the leading one of an operand
    # becomes zero with this probability. They show the parts of a product one by one. 0: there are no easy problems.
    zeros: float = 0.0
    # Problems of the training split; at least 1.
    train_size: int = 808_000
    # Problems of the validation split; at least 1.
    validation_size: int = 1_000
    # Problems of the test split; at least 1.
    test_size: int = 1_000
    # Seed of the split, apart from the run's seed: runs of different seeds share a test set.
    seed: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.digits <= 100, "task.digits", self.digits, "must be between 1 and 100")
        if self.second_digits is not None:
            require(1 <= self.second_digits <= self.digits, "task.second_digits", self.second_digits,
                    f"must be between 1 and task.digits={self.digits}")  # fmt: skip
        if self.min_digits is not None:
            shorter = self.second_digits or self.digits
            require(1 <= self.min_digits <= shorter, "task.min_digits", self.min_digits,
                    f"must be between 1 and the digits of the shorter operand, {shorter}")  # fmt: skip
        require(0 <= self.zeros <= 1, "task.zeros", self.zeros, "must be between 0 and 1")
        one_of("task.split", self.split, ("ordered", "unordered"))
        for key in ("train_size", "validation_size", "test_size"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "must be at least 1")
        require(self.seed >= 0, "task.seed", self.seed, "must be at least 0")
        pairs = math.prod(high - low for low, high in self._ranges())
        wanted = self.train_size + self.validation_size + self.test_size
        require(pairs <= ENUMERATED or 4 * wanted <= pairs, "task.train_size", self.train_size,
                f"must be at most {pairs // 4 - self.validation_size - self.test_size}, a quarter of the pairs there are")  # fmt: skip

    def lengths(self) -> list[tuple[int, int]]:
        """Return the fewest and the most digits of the first and of the second operand."""
        return [(self.min_digits or most, most) for most in (self.digits, self.second_digits or self.digits)]

    def _ranges(self) -> list[tuple[int, int]]:
        """Return the smallest number, and one more than the largest, of the first and of the second operand."""
        return [(10 ** (fewest - 1), 10**most) for fewest, most in self.lengths()]

    def fingerprint(self) -> tuple[str, ...]:
        return ()

    def load(self, reserved: tuple[str, ...] = ()) -> Splits:
        pairs = self._split()
        asked = {"train": self.train_size, "validation": self.validation_size, "test": self.test_size}
        notes = shortages(pairs, asked)
        if self.zeros:
            pairs[EASY] = self._easy(pairs["train"], np.concatenate([pairs["validation"], pairs["test"]]))
        return Splits({name: Problems(digits) for name, digits in pairs.items()}, notes)

    def symbols(self) -> tuple[str, ...]:
        return (*"0123456789", "*", "+", "(", ")")

    def quantities(self) -> tuple[str, ...]:
        return ("running_sum", "carry", "products")

    def values(self, name: str, examples: Sequence[Example]) -> list[npt.NDArray[np.float64]]:
        """Return, for each place k of the answer (arXiv 2510.00184, section 2):

        products: the sum of the digit products a_i · b_j with i + j = k.
        carry: ⌊ĉ_(k-1) / 10⌋, which comes in from the place before.
        running_sum: ĉ_k, their sum. Its last digit is the answer's digit.
        """
        if name not in self.quantities():
            return super().values(name, examples)
        operands = [read_prompt(example.prompt) for example in examples]
        return [place_sums(*pair)[name] for pair in operands if pair is not None]

    def results(self, examples: Sequence[Example]) -> dict[str, list[npt.NDArray[np.float64]]]:
        """Return, for each row of the CoT, its partial product as `row` (not shifted), and the running sum behind it as `partial_sum`."""
        found: dict[str, list[npt.NDArray[np.float64]]] = {"row": [], "partial_sum": []}
        for example in examples:
            for name, numbers in row_results(*read_prompt(example.prompt) or ("", "")).items():
                found[name].append(numbers)
        return found

    def operands_of(self, example: Example) -> tuple[str, ...]:
        return read_prompt(example.prompt) or ()

    def solved(self, prompts: Sequence[str]) -> list[Example | None]:
        operands = np.zeros((len(prompts), 2, self.digits), np.uint8)
        rows = []
        for row, prompt in enumerate(prompts):
            pair = read_prompt(prompt) or ("", "")
            lengths = zip(pair, self.lengths(), strict=True)
            # The highest digit stands last.
            if all(fewest <= len(digits) <= most and digits[-1] != "0" for digits, (fewest, most) in lengths):
                for number, digits in enumerate(pair):
                    operands[row, number, : len(digits)] = list(map(int, digits))
                rows.append(row)
        return in_places(rows, render(operands[rows]), len(prompts))

    def prompt_of(self, text: str) -> str:
        """Return the prompt of `38 * 57` or `what is 38 times 57?`. The digits of the text stand in their usual order."""
        example = " * ".join(
            first[:most].ljust(most, "2") for first, (_, most) in zip(("38", "57"), self.lengths(), strict=True)
        )
        factors = numbers_between(text, ("*", "x", "×", "·", "times", "multiplied by", "by", "and"), example)
        if len(factors) != 2:
            raise UserError(
                f"{printed(text)}: has {len(factors)} factors, and a problem of this task has two; write {example}"
            )
        return " * ".join(map(least_first, factors))

    def readable(self, text: str) -> str:
        return in_usual_order(text)

    def cot_length_known(self) -> bool:
        return True

    def strata(self, example: Example) -> dict[str, str]:
        """Return operand lengths (`4x4`), zeros among the operands' digits, and carries (`long_multiplication.carries`).

        Digits count as they are written, with leading zeros. Carries come in ranges of
        ⌈digits · second_digits / 4⌉; a test set fills about six of them. A prompt that is no
        multiplication, as a file may hold, has no strata.
        """
        operands = read_prompt(example.prompt)
        if operands is None:
            return {}
        first, second = operands
        width = -(-self.digits * (self.second_digits or self.digits) // 4)
        low = carries(first, second) // width * width
        return {
            "operand lengths": f"{len(first)}x{len(second)}",
            "zeros in operands": str((first + second).count("0")),
            "carries": f"{low}-{low + width - 1}" if width > 1 else str(low),
        }

    def ood(self, splits: Splits, size: int) -> dict[str, Examples]:
        """Return the parts that `multiplication_ood.suite` describes."""
        train = splits["train"]
        assert isinstance(train, Problems)
        return multiplication_ood.suite(train.operands, self.lengths(), self.split == "unordered", self.seed, size)

    def forms(self) -> dict[str, Form]:
        """Return the forms of every task, and operands in brackets, which the CoT has too."""
        return {**super().forms(), "brackets": lambda prompt: f"( {prompt.replace(' * ', ' ) * ( ')} )"}

    def _split(self) -> dict[str, Digits]:
        """Return the operands [problems, 2, digits] of train, validation and test.

        A class is a pair, with the swapped pair if the split is unordered. Each class occurs in one split only.
        """
        drawn = np.empty((0, 2, self.digits), np.uint8)
        fresh: list[Digits] = []
        needed = self.train_size + self.validation_size + self.test_size
        for chunk in self._pairs():
            fresh.append(chunk)
            if len(drawn) + sum(map(len, fresh)) < needed and len(chunk) == CHUNK:
                continue  # draw more first, because splitting is the slow part
            drawn, fresh = _first_of_each(np.concatenate([drawn, *fresh])), []
            held_out = self._held_out(drawn)
            first = _first_index(pair_keys(drawn, self.split == "unordered"))  # one pair of each class
            train, validation, test = (
                drawn[held_out == 0],
                drawn[first & (held_out == 1)],
                drawn[first & (held_out == 2)],
            )
            if (
                len(train) >= self.train_size
                and len(validation) == self.validation_size
                and len(test) == self.test_size
            ):
                break
        return {"train": train[: self.train_size], "validation": validation, "test": test}

    def _easy(self, train: Digits, held_out: Digits) -> Digits:
        """Return training problems with more zeros. Problems that become held-out ones are dropped; a problem may repeat."""
        rng = np.random.default_rng([self.seed, 1])
        out = train[:MOST_EASY].copy()
        leading = np.arange(self.digits) >= digit_counts(out)[..., None] - 1
        out[(rng.random(out.shape) < self.zeros) & ~leading] = 0
        unordered = self.split == "unordered"
        return out[~np.isin(pair_keys(out, unordered), pair_keys(held_out, unordered))]

    def _held_out(self, operands: Digits) -> npt.NDArray[np.int8]:
        """Return the split of every pair: 0 train, 1 validation, 2 test; [n].

        Classes of pairs are numbered as they come, within each combination of operand lengths.
        Of `EVERY` classes one may go to validation and one to test, until those are full. There
        are few short operands, so most of their pairs stay in training.
        """
        keys = pair_keys(operands, self.split == "unordered")
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        arrival = np.argsort(np.argsort(first))  # of each class, in the order of `first`
        lengths = digit_counts(operands[first])
        if self.split == "unordered":
            lengths = np.sort(lengths, axis=1)
        stratum = lengths[:, 0] * (self.digits + 1) + lengths[:, 1]
        number = np.empty_like(arrival)  # of each class within its stratum, by arrival
        order = np.lexsort((arrival, stratum))
        starts = np.concatenate([[True], np.diff(stratum[order]) != 0])
        begin = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
        number[order] = np.arange(len(order)) - begin
        part = np.zeros(len(first), np.int8)
        for value, size, turn in ((1, self.validation_size, 1), (2, self.test_size, 0)):
            eligible = np.flatnonzero(number % EVERY == turn)
            part[eligible[np.argsort(arrival[eligible])][:size]] = value
        return part[inverse]

    def _pairs(self) -> Iterator[Digits]:
        """Yield operand pairs [n, 2, digits] in random order: all pairs once, or an endless stream of draws."""
        lengths, ranges = self.lengths(), self._ranges()
        seed = [self.seed, *(number for pair in lengths for number in pair)]
        if math.prod(high - low for low, high in ranges) <= ENUMERATED:
            operands = [np.arange(low, high) for low, high in ranges]
            digits = [(numbers[:, None] // 10 ** np.arange(self.digits) % 10).astype(np.uint8) for numbers in operands]
            first, second = np.divmod(np.arange(len(operands[0]) * len(operands[1])), len(operands[1]))
            pairs = np.stack([digits[0][first], digits[1][second]], axis=1)
            # Sorting by exponential draws over weights is sampling without replacement in
            # proportion to the weights (Efraimidis and Spirakis): uniform over operand lengths.
            size = (9 * 10.0 ** (digit_counts(pairs) - 1)).prod(axis=1)
            rng = np.random.default_rng(seed)
            yield pairs[np.argsort(rng.exponential(size=len(pairs)) * size, kind="stable")]
            return
        fewest, most = np.array(lengths).T
        place = np.arange(self.digits)
        index = 0
        while True:
            rng = np.random.default_rng([*seed, index])
            pairs = rng.integers(0, 10, (CHUNK, 2, self.digits), dtype=np.uint8)
            length = rng.integers(fewest, most + 1, (CHUNK, 2))[..., None]
            pairs[place >= length] = 0
            top = place == length - 1
            pairs[top] = rng.integers(1, 10, top.sum(), dtype=np.uint8)
            yield pairs
            index += 1


class Problems:
    """A split of multiplication problems, kept as operand digits [problems, 2, digits]."""

    def __init__(self, operands: Digits) -> None:
        self.operands = operands

    def __len__(self) -> int:
        return len(self.operands)

    def slice(self, start: int, stop: int) -> list[Example]:
        return render(self.operands[start:stop])


def _first_index(keys: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Whether each key occurs for the first time; [n] bool."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first


def _first_of_each(operands: Digits) -> Digits:
    """Return the operands without repeated ordered pairs, in the order of first occurrence."""
    return operands[_first_index(pair_keys(operands, unordered=False))]
