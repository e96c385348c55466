"""The problems of a probe: some to fit it on, and others to score it on, which share no operand with them."""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, islice, zip_longest
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks import Example, Examples, Task

# Texts of generated problems are quicker to make in blocks. Their order in a split is random anyway.
BLOCK = 1000
FEWEST_FIT, FEWEST_SCORED = 20, 10
OPERANDS, PROBLEMS = "operands", "problems"

Rows: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Problems:
    """Problems to fit probes on, and behind them those to score probes on.

    Attributes:
        num_fit: the number of the first.
        split: `operands` if no operand of a problem to fit is one of a problem to score; else `problems`.
    """

    texts: list[Example]
    num_fit: int
    split: str

    @property
    def num_scored(self) -> int:
        return len(self.texts) - self.num_fit

    def where(self, keep: Sequence[bool]) -> "Problems":
        """Return the problems for which `keep` is true."""
        return Problems(list(compress(self.texts, keep)), sum(keep[: self.num_fit]), self.split)

    def require_enough(self, advice: str = "") -> None:
        """Raise `UserError` if there are too few problems; `advice` ends the message."""
        if self.num_fit < FEWEST_FIT or self.num_scored < FEWEST_SCORED:
            raise UserError(
                f"too few different problems for a probe: {self.num_fit} to fit and {self.num_scored} to score, at least {FEWEST_FIT} and "
                f"{FEWEST_SCORED} are needed{advice}"
            )

    def line(self, task: Task) -> str:
        """Return the sizes and the split, for reading."""
        how = {
            OPERANDS: "no operand is on both sides",
            PROBLEMS: f"split by problem{'' if has_operands(task, self.texts[0]) else f' (task={task.kind} names no operands)'}",
        }
        return f"{self.num_fit:,} problems to fit, {self.num_scored:,} to score; {how[self.split]}"


@dataclass(frozen=True)
class Sides:
    """The problems on each side, by number.

    Attributes:
        fit: those that a probe is fitted on at first.
        held: those held back from the fit, a fifth; they choose strengths, places and layers.
        scored: those that nothing is chosen on.
    """

    fit: Rows
    held: Rows
    scored: Rows

    @classmethod
    def of(cls, num_fit: int, num_scored: int, seed: int = 0) -> "Sides":
        """Return the sides of problems of which the first `num_fit` are to fit."""
        order = np.random.default_rng([seed, 1]).permutation(num_fit)
        held = max(1, num_fit // 5)
        return cls(np.sort(order[held:]), np.sort(order[:held]), np.arange(num_fit, num_fit + num_scored))

    @property
    def whole(self) -> Rows:
        """All problems to fit, with those held back."""
        return np.sort(np.concatenate([self.fit, self.held]))

    def where(self, has: npt.NDArray[np.bool_]) -> "Sides":
        """Return the sides without the problems for which `has` is false."""
        return Sides(*(rows[has[rows]] for rows in (self.fit, self.held, self.scored)))


def has_operands(task: Task, example: Example) -> bool:
    """Whether the task names the operands of a problem."""
    return bool(task.operands_of(example))


def draw_problems(
    task: Task, splits: Mapping[str, Examples], fit: int, scored: int, split: str = OPERANDS, seed: int = 0
) -> Problems:
    """Draw problems to fit from the training split, and problems to score from validation and test. Equal arguments give equal problems.

    Args:
        fit, scored: the most problems.
        split: `operands`: an operand belongs to one side, by a hash, and a problem of operands of both sides is left out. If the
            task names no operands, a problem is on one side. `problems`: the same.

    Raises:
        UserError: there are too few problems.
    """
    fit, scored = (min(most, sys.maxsize) for most in (fit, scored))
    rng = np.random.default_rng(seed)
    first = next(_drawn(splits["train"], np.random.default_rng(seed)), None)
    operands = len(task.operands_of(first)) if first is not None and split == OPERANDS else 0
    share = _share_of_fit(len(splits["train"]), fit, operands)

    def is_fit(example: Example) -> set[bool]:
        return {_fraction(operand) < share for operand in task.operands_of(example)} if operands else set()

    prompts: set[str] = set()
    of_train = (each for each in _drawn(splits["train"], rng) if False not in is_fit(each))
    to_fit = list(islice(_new(of_train, prompts), fit))
    held_out = zip_longest(*(_drawn(splits[name], rng) for name in ("validation", "test")))
    others = (each for each in chain.from_iterable(held_out) if each is not None and True not in is_fit(each))
    to_score = list(islice(_new(others, prompts), scored))
    found = Problems([*to_fit, *to_score], len(to_fit), OPERANDS if operands else PROBLEMS)
    found.require_enough(f"; split={PROBLEMS} lets them share operands" if operands else "")
    return found


def _new(examples: Iterable[Example], prompts: set[str]) -> Iterator[Example]:
    """Yield the examples whose prompts have not come before, and add these to `prompts`.

    A problem that comes twice could be fitted and held back, or would count twice.
    """
    for example in examples:
        if example.prompt not in prompts:
            prompts.add(example.prompt)
            yield example


def _share_of_fit(there: int, wanted: int, operands: int) -> float:
    """Return the share of the operands that problems to fit may have.

    Validation and test are small, so that a problem to score should seldom be lost: a large training split lets problems to fit
    do with fewer operands, down to a quarter.
    """
    if not operands:
        return 1.0
    needed = float((2 * wanted / max(1, there)) ** (1 / operands))
    return min(0.5, max(0.25, needed))


def _fraction(operand: str) -> float:
    """Return a number in [0, 1) that depends on the operand alone."""
    return int.from_bytes(hashlib.blake2b(operand.encode(), digest_size=6).digest()) / 2**48


def _drawn(examples: Examples, rng: np.random.Generator) -> Iterator[Example]:
    """Yield all examples in a random order."""
    block = 1 if isinstance(examples, list) else BLOCK
    starts: npt.NDArray[np.int64] = rng.permutation(np.arange(0, len(examples), block))
    for start in starts.tolist():
        yield from examples.slice(start, min(start + block, len(examples)))
