"""Scoring a model on encoded examples: what validation, testing and `stepwise_pl.evaluate` share."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch
from stepwise_pl.datamodule import EvalBatches, Limits
from stepwise_pl.decoding import answers, continuation, forward, generate
from stepwise_pl.metrics import EvaluationMetrics, TokenSums, token_sums
from stepwise_pl.removal import removal_count, remove
from stepwise_pl.tokenizing import EncodedExamples


class Answers(NamedTuple):
    """Answers after normalisation, [batch] each; None where none was finished."""

    predicted: list[str | None]  # greedily generated
    target: list[str | None]

    @property
    def right(self) -> list[bool]:
        """Whose answer is the target's."""
        return [answer is not None and answer == target for answer, target in zip(*self, strict=True)]


def answer(
    model: PreTrainedModel, batch: CoTBatch, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> tuple[TokenSums, Answers]:
    """The teacher-forced sums over the target tokens of a batch after removal, and its answers."""
    sums = token_sums(forward(model, batch), batch)
    eos = tokenizer.eos_token_id
    generated = answers(generate(model, batch, eos, max_new_tokens), tokenizer)
    return sums, Answers(generated, answers(continuation(batch, eos), tokenizer))


def score(
    model: PreTrainedModel, batch: CoTBatch, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> tuple[TokenSums, Tensor]:
    """The sums of `answer`, and [batch] bool: whose answer is right."""
    sums, answered = answer(model, batch, tokenizer, max_new_tokens)
    return sums, torch.tensor(answered.right)


@dataclass
class Scorer:
    """A model with what it takes to score it on a split at a given number of removed tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    examples: EncodedExamples
    limits: Limits
    removed: int  # units
    side: str = "left"
    keep_position: bool = False

    @property
    def count(self) -> int:
        """Units to remove from every CoT: all of them once the model was trained without."""
        return int(removal_count(self.removed, self.limits.max_removed))

    @property
    def bound(self) -> int:
        """Most tokens to generate: what any example of the run's data can need, and any of these."""
        own = self.examples.cot_left(self.count, self.side) + self.examples.answer_length
        return max(self.limits.max_new_tokens(self.removed), int(own.max()))

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[CoTBatch]:
        """The first `limit` examples (None: all) on the model's device, `removed` units of CoT gone from each."""
        for batch in EvalBatches(self.examples, batch_size, limit=limit):
            yield remove(batch, self.count, self.side, self.keep_position).to(self.model.device)

    @torch.inference_mode()
    def evaluate(self, batch_size: int) -> tuple[dict[str, float], Answers]:
        """loss, perplexity, answer_accuracy, token_accuracy and number of examples; and the answers, in order."""
        metrics = EvaluationMetrics().to(self.model.device)
        count = len(self.examples)
        out = Answers([None] * count, [None] * count)
        for batch in self.batches(batch_size):
            sums, answered = answer(self.model, batch, self.tokenizer, self.bound)
            metrics.update(sums, torch.tensor(answered.right))
            for index, predicted, target in zip(batch.draw.tolist(), *answered, strict=True):
                out.predicted[index], out.target[index] = predicted, target
        return {name: float(value) for name, value in metrics.compute().items()}, out

    @torch.inference_mode()
    def speed(self, batch_size: int, problems: int) -> float:
        """Problems answered per second, `batch_size` at a time, after one batch to warm up that is not counted."""
        prepared = list(self.batches(batch_size, problems))
        eos = self.tokenizer.eos_token_id
        generate(self.model, prepared[0], eos, self.bound)
        started = time.perf_counter()
        for batch in prepared:
            generate(self.model, batch, eos, self.bound).tolist()  # waits for the device
        return sum(map(len, prepared)) / (time.perf_counter() - started)
