"""The lengths of CoTs and answers at every stage, and examples that are too long."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.encoding import EncodedExamples


@dataclass(frozen=True)
class Limits:
    """The greatest lengths, in tokens, once k units (tokens or reasoning steps) of every CoT are gone.

    Attributes:
        train_left: the longest CoT left in the training set, for k = 0 .. m_max; the last is 0.
        left: the same over all splits. At m_max everything goes, also from longer CoTs.
        longest_answer: the longest answer of any split, with separator and end token.
    """

    train_left: list[int]
    left: list[int]
    longest_answer: int

    @classmethod
    def of(cls, encoded: Mapping[str, EncodedExamples], side: str) -> "Limits":
        """Return the limits of the splits, for removal from `side`."""
        units = range(int(encoded["train"].units.max()))
        longest = {name: [split.longest_cot(k, side) for k in units] for name, split in encoded.items()}
        return cls(
            train_left=[*longest["train"], 0],
            left=[*map(max, zip(*longest.values(), strict=True)), 0],
            longest_answer=max(int(split.answer_length.max()) for split in encoded.values()),
        )

    @property
    def max_removed(self) -> int:
        """m_max: units in the longest CoT of the training set."""
        return len(self.train_left) - 1

    @property
    def max_cot(self) -> int:
        """Tokens in the longest CoT of the training set."""
        return self.train_left[0]

    def removed_tokens(self, removed: int) -> int:
        """Return the tokens that the longest CoT has lost once `removed` units are gone."""
        return self.max_cot - self.train_left[min(removed, self.max_removed)]

    def max_new_tokens(self, removed: int) -> int:
        """Return the most tokens that an example can need after its prompt once `removed` units are gone."""
        return self.left[min(removed, self.max_removed)] + self.longest_answer


def not_longer(examples: EncodedExamples, most: int, split: str) -> tuple[EncodedExamples, str]:
    """Return the examples of at most `most` tokens, and a note that counts the others; empty if there are none.

    Raises:
        UserError: all examples are longer.
    """
    rows = np.flatnonzero(examples.length <= most)
    count, longer = len(examples), len(examples) - len(rows)
    if not longer:
        return examples, ""
    if not len(rows):
        raise UserError(f"data.max_tokens={most}: all {count} examples of {split} are longer; give more, or null")
    note = f"{split}: {longer} of {count} examples are longer than data.max_tokens={most} and are left out"
    return examples.take(rows), note
