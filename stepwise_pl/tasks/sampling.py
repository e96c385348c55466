"""Generated problems: an endless stream of draws gives distinct problems, and each goes to one split."""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import require
from stepwise_pl.tasks.base import SPLITS, Example, Splits, Task, shortages

Problems = npt.NDArray[Any]  # [problems, ...]; the task decides what a row means
Keys = npt.NDArray[np.uint64]

CHUNK = 1 << 14  # problems drawn at a time
PATIENCE = 32  # chunks without a new problem after which the stream counts as exhausted (half a million draws)
EVERY = 5  # at most one prompt in this many goes to validation, and one to test
LARGEST = {"train_size": 10_000_000, "validation_size": 1_000_000, "test_size": 1_000_000}


@dataclass
class SampledTask(Task):
    """Problems drawn at random. A subclass draws them (`draw`) and writes their texts (`render`).

    No prompt occurs twice, in one split or in two. If there are too few distinct prompts,
    the splits are smaller than asked for, and a note says so. Validation and test do not
    depend on `train_size`, and a smaller training set is the beginning of a larger one.

    Raises:
        UserError: a value is out of range.
    """

    # Problems of the training split; at least 1.
    train_size: int = 50_000
    # Problems of the validation split; at least 1.
    validation_size: int = 1_000
    # Problems of the test split; at least 1.
    test_size: int = 1_000
    # Seed of the problems, apart from the run's seed: runs of different seeds share a test set.
    seed: int = 0

    def __post_init__(self) -> None:
        for key, most in LARGEST.items():
            value = getattr(self, key)
            require(1 <= value <= most, f"task.{key}", value, f"must be between 1 and {most}")
        require(self.seed >= 0, "task.seed", self.seed, "must be at least 0")

    def draw(self, rng: np.random.Generator) -> Problems:
        """Return the next problems of the stream, about `CHUNK` of them; [n, ...]."""
        raise NotImplementedError

    def keys(self, problems: Problems) -> Keys:
        """Return one number per problem, the same for the same prompt; [n]. Problems with equal keys count as one."""
        return row_keys(problems)

    def render(self, problems: Problems) -> list[Example]:
        """Return the texts of problems [n, ...]."""
        raise NotImplementedError

    def fingerprint(self) -> tuple[str, ...]:
        return ()

    def load(self, reserved: tuple[str, ...] = ()) -> Splits:
        asked = {name: getattr(self, f"{name}_size") for name in SPLITS}
        rng = np.random.default_rng(self.seed)
        dealt = deal(distinct(lambda: self.draw(rng), self.keys, needed(asked)), asked)
        splits = {name: Rendered(problems, self.render) for name, problems in dealt.items()}
        return Splits(splits, shortages(splits, asked))


class Rendered:
    """A split of generated problems [problems, ...]. Their texts are made on demand."""

    def __init__(self, problems: Problems, render: Callable[[Problems], list[Example]]) -> None:
        self.problems, self.render = problems, render

    def __len__(self) -> int:
        return len(self.problems)

    def slice(self, start: int, stop: int) -> list[Example]:
        return self.render(self.problems[start:stop])


def distinct(draw: Callable[[], Problems], keys: Callable[[Problems], Keys], count: int) -> Problems:
    """Return the first `count` problems with different keys in a stream of chunks, in the order of first occurrence.

    The stream ends after `PATIENCE` chunks without a new problem; then there are fewer. A
    smaller `count` gives the beginning of what a larger one gives.
    """
    found: list[Problems] = []
    seen = np.empty(0, np.uint64)  # sorted
    idle = 0
    while len(seen) < count and idle < PATIENCE:
        problems = draw()
        key, first = np.unique(keys(problems), return_index=True)
        new = np.isin(key, seen, assume_unique=True, invert=True)
        found.append(problems[np.sort(first[new])])
        # A stable sort merges two sorted runs quickly.
        seen = np.sort(np.concatenate([seen, key[new]]), kind="stable")
        idle = 0 if new.any() else idle + 1
    return np.concatenate(found)[:count]


def part(
    draw: Callable[[np.random.Generator], Problems],
    render: Callable[[Problems], list[Example]],
    rng: np.random.Generator,
    size: int,
    trained: Set[str] = frozenset(),
) -> Rendered:
    """Return a part of a suite: the first `size` distinct problems that `draw` gives, or fewer if there are no more.

    Args:
        trained: prompts that are left out; empty if no problem of the part can be one of training.
    """

    def fresh() -> Problems:
        problems = draw(rng)
        if not trained:
            return problems
        # Texts take long, and a part with few problems draws each of them many times.
        _, first = np.unique(row_keys(problems), return_index=True)
        problems = problems[np.sort(first)]
        is_new = np.array([example.prompt not in trained for example in render(problems)], bool)
        return np.asarray(problems[is_new])

    return Rendered(distinct(fresh, row_keys, size), render)


def needed(asked: dict[str, int]) -> int:
    """Return how many distinct problems `deal` needs to fill every split."""
    return max(sum(asked.values()), EVERY * asked["validation"], EVERY * asked["test"])


def deal(problems: Problems, asked: dict[str, int]) -> dict[str, Problems]:
    """Deal distinct problems [n, ...] out to the splits in `SPLITS`.

    Of every `EVERY` problems one goes to validation and one to test, until those are full.
    The others go to train. The place in the stream alone decides.
    """
    turn = np.arange(len(problems)) % EVERY
    split = np.zeros(len(problems), np.int8)
    for number in (1, 2):
        split[np.flatnonzero(turn == number)[: asked[SPLITS[number]]]] = number
    return {name: problems[split == number][: asked[name]] for number, name in enumerate(SPLITS)}


def row_keys(rows: npt.NDArray[np.uint8]) -> Keys:
    """Return a hash of every row of small numbers [n, ...]; [n].

    Two different rows share a hash about once in 2**60 pairs. That costs one problem, no more.
    """
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:])).astype(np.uint64)  # -1 fails if there are no rows
    weights = np.frombuffer(np.random.default_rng(0).bytes(8 * flat.shape[1]), np.uint64)
    return np.asarray(flat @ weights)  # modulo 2**64


def digit_chars(digits: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the character codes of digits 0 to 9; same shape."""
    return (digits + ord("0")).astype(np.uint8)


def spaced(chars: npt.NDArray[np.uint8]) -> list[str]:
    """Return character codes [n, width] as n texts with a space between every two characters."""
    out = np.full((len(chars), 2 * chars.shape[1] - 1), ord(" "), np.uint8)
    out[:, ::2] = chars
    return [str(text) for text in out.view(f"S{out.shape[1]}").ravel().astype(str)]


def read_digits(text: str) -> list[int]:
    """Return the digits of a text `3 1 4`; none if it is another text."""
    words = text.split(" ")
    return list(map(int, words)) if all(len(word) == 1 and word in "0123456789" for word in words) else []


def in_places(rows: Sequence[int], examples: Sequence[Example], count: int) -> list[Example | None]:
    """Return `count` places: the examples in the places `rows`, and None in the others."""
    found: list[Example | None] = [None] * count
    for row, example in zip(rows, examples, strict=True):
        found[row] = example
    return found
