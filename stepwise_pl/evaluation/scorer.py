"""Scores a trained model on examples: accuracy, every answer, speed."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.data.encoding import EncodedExamples
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.stream import EvalBatches
from stepwise_pl.evaluation.answers import Answers
from stepwise_pl.evaluation.metrics import EvaluationMetrics
from stepwise_pl.evaluation.validation import Validation
from stepwise_pl.evaluation.verifier import DECODED, Bounds
from stepwise_pl.models.learner import Learner
from stepwise_pl.schedules.spread import Stage


@dataclass
class Scorer:
    """A model with a split to score it on, at a stage."""

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    examples: EncodedExamples
    limits: Limits
    stage: int

    @property
    def removed(self) -> int:
        """Units gone from every CoT, at most m_max."""
        return self.learner.method.removed(self.stage, self.limits)

    @property
    def count(self) -> int:
        """Units to remove from every CoT; more than any CoT has once all are gone."""
        return int(Stage(self.removed, self.limits.max_removed).units[0])

    @property
    def bounds(self) -> Bounds:
        """The bounds of the run's data, or of these examples if they need more."""
        side = self.learner.method.side
        own = (self.examples.cot_left(gone, side) + self.examples.answer_length for gone in (self.count, 0))
        of_run = Bounds.of(self.limits, self.removed)
        return Bounds(*(max(most, int(length.max())) for most, length in zip(of_run, own, strict=True)))

    @property
    def bound(self) -> int:
        """The most tokens of CoT and answer that count as right."""
        return self.bounds.asked

    @property
    def _stage(self) -> Stage:
        return Stage(self.stage, self.learner.method.last_stage(self.limits))

    def views(self, batch_size: int, limit: int | None = None) -> Iterator[CoTBatch]:
        """Yield the views of the first `limit` examples (None: all), in batches."""
        for batch in EvalBatches(self.examples, batch_size, limit=limit):
            yield self.learner.method.view(self.learner, batch, self._stage)

    def evaluate(self, batch_size: int) -> tuple[dict[str, float], Answers]:
        """Return the metrics by name (`EvaluationMetrics.compute`), and the answers in the order of the examples."""
        metrics = EvaluationMetrics().to(self.learner.model.device)
        validation = Validation(self.learner, self.tokenizer, metrics, batch_size, keeps_answers=True)
        for batch in EvalBatches(self.examples, batch_size):
            validation.add(batch, self._stage)
        deque(validation.decode(self.bounds), maxlen=0)
        assert validation.answers is not None
        out = Answers(validation.answers[index] for index in range(len(self.examples)))
        return {name: float(value) for name, value in metrics.compute().items()}, out

    @torch.inference_mode()
    def speed(self, batch_size: int, problems: int) -> float:
        """Return the problems answered per second, `batch_size` at a time. A first batch warms up and is not counted.

        If the memory holds fewer problems, as `evaluate` has found, they are answered in batches of this smaller size.
        """
        batch_size = min(batch_size, self.learner.fitting.get(DECODED, batch_size))
        prepared = [view.to(self.learner.model.device) for view in self.views(batch_size, problems)]
        # The bound takes a pass over all examples, so it is computed before the clock starts.
        bound = self.bound
        self.learner.generate(prepared[0], bound)
        started = time.perf_counter()
        for view in prepared:
            self.learner.generate(view, bound)
        return sum(map(len, prepared)) / (time.perf_counter() - started)
