"""Answers as text, and whether they are right. Only answers that the verifier could not prove are compared here."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from stepwise_pl.data.layout import written_answer


class Decoded(NamedTuple):
    """A generated answer and the target's.

    Attributes:
        predicted, target: the answers, normalised; None if none was finished.
        within_length: whether the answer was finished within the tokens asked for.
        cot_tokens, target_cot_tokens: CoT tokens that were written, and CoT tokens of the target.
        unfinished: the text in the place of an answer, if none was finished (`unfinished_answer`); else empty.
    """

    predicted: str | None
    target: str | None
    within_length: bool = True
    cot_tokens: int = 0
    target_cot_tokens: int = 0
    unfinished: str = ""

    @property
    def right(self) -> bool:
        return self.within_length and self.right_any_length

    @property
    def right_any_length(self) -> bool:
        return self.predicted is not None and self.predicted == self.target


class Answers(list[Decoded]):
    """The answers to several examples, in order."""

    @property
    def predicted(self) -> list[str | None]:
        """The answers of the model."""
        return [decoded.predicted for decoded in self]

    @property
    def target(self) -> list[str | None]:
        """The right answers."""
        return [decoded.target for decoded in self]


def answers(new: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """Return the normalised answer in each row of generated tokens; None if none was finished (`written_answer`)."""
    return [written_answer(row, tokenizer) for row in new]
