"""Scoring a model on encoded examples: what validation, testing and `stepwise_pl.evaluate` share."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch
from stepwise_pl.datamodule import EvalBatches, Limits
from stepwise_pl.decoding import answers, continuation, forward, generate
from stepwise_pl.metrics import EvaluationMetrics, TokenSums, token_sums
from stepwise_pl.removal import removal_count, remove
from stepwise_pl.tokenizing import EncodedExamples


def score(
    model: PreTrainedModel, batch: CoTBatch, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> tuple[TokenSums, Tensor]:
    """Score a batch after removal.

    Returns:
        The teacher-forced sums over its target tokens, and [batch] bool: whose greedily
        generated answer equals the target's after normalisation.
    """
    sums = token_sums(forward(model, batch), batch)
    eos = tokenizer.eos_token_id
    generated = answers(generate(model, batch, eos, max_new_tokens), tokenizer)
    target = answers(continuation(batch, eos), tokenizer)
    right = [answer is not None and answer == wanted for answer, wanted in zip(generated, target, strict=True)]
    return sums, torch.tensor(right)


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

    def batches(self, batch_size: int, limit: int | None) -> Iterator[CoTBatch]:
        """The first `limit` examples (None: all) on the model's device, `removed` units of CoT gone from each."""
        count = removal_count(self.removed, self.limits.max_removed)
        for batch in EvalBatches(self.examples, batch_size, limit=limit):
            yield remove(batch, count, self.side, self.keep_position).to(self.model.device)

    @torch.inference_mode()
    def evaluate(self, batch_size: int, limit: int | None = None) -> dict[str, float]:
        """loss, perplexity, answer_accuracy, token_accuracy and the number of examples."""
        metrics = EvaluationMetrics().to(self.model.device)
        bound = self.limits.max_new_tokens(self.removed)
        for batch in self.batches(batch_size, limit):
            metrics.update(*score(self.model, batch, self.tokenizer, bound))
        return {name: float(value) for name, value in metrics.compute().items()}

    @torch.inference_mode()
    def speed(self, batch_size: int, problems: int) -> float:
        """Problems answered per second, `batch_size` at a time, after one batch to warm up that is not counted."""
        bound = self.limits.max_new_tokens(self.removed)
        prepared = list(self.batches(batch_size, problems))
        eos = self.tokenizer.eos_token_id
        generate(self.model, prepared[0], eos, bound)
        started = time.perf_counter()
        for batch in prepared:
            generate(self.model, batch, eos, bound).tolist()  # waits for the device
        return sum(map(len, prepared)) / (time.perf_counter() - started)
