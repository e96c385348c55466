"""The subject of a look inside: a model at a stage, and the problems that it reads."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.data.encoding import EncodedExamples, answer_frame, encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.stream import EvalBatches
from stepwise_pl.models.architecture import check_positions
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks.base import Example, ExampleList


class Source(NamedTuple):
    """The checkpoint that a row of a table is about: the row's first fields (`runs.inside.Row`)."""

    checkpoint: str
    removed_tokens: int
    stage: int

    @classmethod
    def of(cls, run: TrainedRun) -> "Source":
        """Return where a loaded run stands."""
        stage = min(run.stage, run.config.method.last_stage(run.limits))
        return cls(run.checkpoint.stem, run.removed_tokens, stage)


@dataclass
class Subject:
    """A model at a stage, and the problems that it reads.

    Attributes:
        texts: the problems.
        encoded: the same as tokens.
    """

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    stage: int
    texts: list[Example]
    encoded: EncodedExamples

    @classmethod
    def of(cls, run: TrainedRun, texts: list[Example]) -> "Subject":
        """Return the model of a run at the stage of its checkpoint.

        Raises:
            UserError: a problem cannot be encoded, or is longer than the model reads.
        """
        method, limits = run.config.method, run.limits
        # If the whole CoT is removed, step boundaries are not needed. A file may lack them.
        by_step = method.unit == "step" and method.removed(Source.of(run).stage, limits) < limits.max_removed
        return cls.of_encoded(run, texts, encode(ExampleList(texts), run.tokenizer, "problems", by_step))

    @classmethod
    def of_encoded(cls, run: TrainedRun, texts: list[Example], encoded: EncodedExamples) -> "Subject":
        """Return the same for problems that are encoded already. Raise `UserError` if one is longer than the model reads."""
        method, stage = run.config.method, Source.of(run).stage
        removed = Stage(method.removed(stage, run.limits), run.limits.max_removed)
        longest = encoded.longest(0 if method.keep_position else int(removed.units[0]), method.side)
        check_positions(run.model, longest + method.added(stage, run.limits))
        return cls(run.learner, run.tokenizer, run.limits, stage, texts, encoded)

    @property
    def side(self) -> str:
        """The side from which the CoT leaves."""
        return self.learner.method.side

    @cached_property
    def num_layers(self) -> int:
        """L: the states are numbered from 0, the sum of the embeddings, to L, the output of the last block after the final norm."""
        return int(self.learner.model.config.get_text_config().num_hidden_layers)

    @cached_property
    def frame(self) -> tuple[int, int]:
        """The tokens of an answer's part before the answer itself, and behind it (`answer_frame`)."""
        target = self.encoded.prompt_and_target(0)[1]
        return answer_frame(target[-int(self.encoded.answer_length[0]) :], self.tokenizer)

    def batches(self, batch_size: int) -> Iterator[tuple[CoTBatch, CoTBatch]]:
        """Yield the problems with their whole CoT, and as the model reads them at its stage. `draw` is the number of a problem."""
        for whole in EvalBatches(self.encoded, batch_size):
            yield whole, self._view(whole)

    def batch(self, rows: npt.NDArray[np.int64]) -> tuple[CoTBatch, CoTBatch]:
        """Return some problems as `batches` does; `rows` are their numbers, [batch]."""
        whole = self.encoded.collate(rows)
        return whole, self._view(whole)

    def take(self, rows: npt.NDArray[np.int64]) -> "Subject":
        """Return the model with some of the problems, `rows` [n], in that order."""
        return replace(self, texts=[self.texts[row] for row in rows], encoded=self.encoded.take(rows))

    def _view(self, whole: CoTBatch) -> CoTBatch:
        stage = Stage(self.stage, self.learner.method.last_stage(self.limits))
        return self.learner.method.view(self.learner, whole, stage)
