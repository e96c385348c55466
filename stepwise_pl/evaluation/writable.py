"""The problems of a suite that a run can read: the tokenizer knows their words, and the model has a position for every token."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.encoding import EncodedExamples, encode, export_prompt
from stepwise_pl.data.tokenizers import ids_of
from stepwise_pl.models.architecture import num_positions
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks import Example, ExampleList


@dataclass(frozen=True)
class Reader:
    """A tokenizer and a number of positions, for which some problems are too long or hold unknown words.

    Attributes:
        by_step: whether reasoning steps are removed and not tokens.
        removed: units gone from every CoT (`Scorer.count`).
        side: the side that they are removed from.
        added: the most tokens that the method puts into an example.
        positions: the most tokens that the model takes; None: any number.
    """

    tokenizer: PreTrainedTokenizerBase
    by_step: bool
    removed: int
    side: str
    added: int
    positions: int | None

    @classmethod
    def of(cls, run: TrainedRun, stage: int) -> "Reader":
        """Return the reader of a run that is asked at a stage."""
        method, limits = run.config.method, run.limits
        gone = method.removed(stage, limits)
        removed = 0 if method.keep_position else int(Stage(gone, limits.max_removed).units[0])
        by_step = method.unit == "step" and gone < limits.max_removed
        added = method.added(stage, limits)
        return cls(run.tokenizer, by_step, removed, method.side, added, num_positions(run.model))

    def obstacles(self, part: str, examples: Sequence[Example]) -> list[str]:
        """Return for each problem what hinders the run from reading it; empty if nothing does.

        Args:
            part: the name of the problems, for messages.
        """
        if not examples:
            return []
        try:
            return self._lengths(encode(ExampleList(examples), self.tokenizer, part, self.by_step))
        except UserError:  # some problem cannot be written; each one is asked
            return [self._obstacle(part, example) for example in examples]

    def same_as(self, variant: str, original: str) -> bool:
        """Whether two prompts are the same tokens."""
        eos = str(self.tokenizer.eos_token)
        one, other = (ids_of(self.tokenizer, export_prompt(prompt, eos, False)) for prompt in (variant, original))
        return one == other

    def _obstacle(self, part: str, example: Example) -> str:
        try:
            return self._lengths(encode(ExampleList([example]), self.tokenizer, part, self.by_step))[0]
        except UserError as error:
            # Behind the place of the example, and without the advice on tokenizers.
            return str(error).removeprefix(f"{part} example 1: ").partition("; ")[0]

    def _lengths(self, encoded: EncodedExamples) -> list[str]:
        left = encoded.cot_left(self.removed, self.side)
        lengths = encoded.length - encoded.cot_length + left + self.added
        if self.positions is None:
            return [""] * len(encoded)
        why = f"longer than the {self.positions} positions of the model"
        return [why * int(length > self.positions) for length in lengths.tolist()]
