"""The subject of a look inside: a model at a stage, and the problems that it reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.stream import EvalBatches
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.trained_run import TrainedRun
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks.base import Example, ExampleList


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
            UserError: a problem cannot be encoded.
        """
        stage = min(run.stage, run.config.method.last_stage(run.limits))
        by_step = run.config.method.unit == "step"
        encoded = encode(ExampleList(texts), run.tokenizer, "problems", by_step)
        return cls(run.learner, run.tokenizer, run.limits, stage, texts, encoded)

    @property
    def side(self) -> str:
        """The side from which the CoT leaves."""
        return self.learner.method.side

    @cached_property
    def num_layers(self) -> int:
        """L: the states are numbered from 0, the sum of the embeddings, to L, the output of the last block after the final norm."""
        return int(self.learner.model.config.get_text_config().num_hidden_layers)

    def batches(self, batch_size: int) -> Iterator[tuple[CoTBatch, CoTBatch]]:
        """Yield the problems with their whole CoT, and as the model reads them at its stage. `draw` is the number of a problem."""
        stage = Stage(self.stage, self.learner.method.last_stage(self.limits))
        for whole in EvalBatches(self.encoded, batch_size):
            yield whole, self.learner.method.view(self.learner, whole, stage)
