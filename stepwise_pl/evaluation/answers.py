"""Answers as text: what a model wrote, and whether it is right. Only what the verifier could not prove is compared here."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from stepwise_pl.data.layout import written_answer


class Decoded(NamedTuple):
    """A generated answer and the target's, normalised; None where none was finished.

    Attributes:
        within_length: it was finished within the tokens asked for.
        cot_tokens, target_cot_tokens: tokens of CoT that were written, and those of the target.
    """

    predicted: str | None
    target: str | None
    within_length: bool = True
    cot_tokens: int = 0
    target_cot_tokens: int = 0

    @property
    def right(self) -> bool:
        return self.within_length and self.right_any_length

    @property
    def right_any_length(self) -> bool:
        return self.predicted is not None and self.predicted == self.target


class Answers(list[Decoded]):
    """Of several examples, in order."""

    @property
    def predicted(self) -> list[str | None]:
        """The answers of the model."""
        return [one.predicted for one in self]

    @property
    def target(self) -> list[str | None]:
        """The right answers."""
        return [one.target for one in self]


def answers(new: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """The normalised answer in each row of generated tokens; None where none was finished (`written_answer`)."""
    return [written_answer(row, tokenizer) for row in new]
