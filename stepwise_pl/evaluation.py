"""Scoring a model on encoded examples: what validation, testing and `stepwise_pl.evaluate` share."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch
from stepwise_pl.datamodule import CoTDataModule, EvalBatches
from stepwise_pl.decoding import answers, continuation, forward, generate
from stepwise_pl.metrics import EvaluationMetrics, TokenSums, token_sums
from stepwise_pl.removal import REMOVE_ALL, remove


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
    """A model with what it takes to score it at a given number of removed tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: CoTDataModule
    removed_tokens: int
    side: str = "left"
    keep_position: bool = False

    def remove(self, batch: CoTBatch) -> CoTBatch:
        """The batch without its first (or last) `removed_tokens` CoT tokens."""
        count = REMOVE_ALL if self.removed_tokens >= self.data.max_cot else self.removed_tokens
        return remove(batch, count, self.side, self.keep_position)

    @torch.inference_mode()
    def evaluate(self, split: str, batch_size: int, limit: int | None = None) -> dict[str, float]:
        """loss, perplexity, answer_accuracy, token_accuracy and examples over a split or its first `limit` examples."""
        metrics = EvaluationMetrics()
        bound = self.data.max_new_tokens(self.removed_tokens)
        for batch in EvalBatches(self.data.encoded[split], batch_size, limit=limit):
            metrics.update(*score(self.model, self.remove(batch), self.tokenizer, bound))
        return {name: float(value) for name, value in metrics.compute().items()}

    @torch.inference_mode()
    def speed(self, split: str, batch_size: int, problems: int) -> float:
        """Problems answered per second, decoding `batch_size` at a time; the first batch warms up and is not counted."""
        bound = self.data.max_new_tokens(self.removed_tokens)
        batches = EvalBatches(self.data.encoded[split], batch_size, limit=problems)
        prepared = [self.remove(batch) for batch in batches]
        generate(self.model, prepared[0], self.tokenizer.eos_token_id, bound)
        started = time.perf_counter()
        for batch in prepared:
            generate(self.model, batch, self.tokenizer.eos_token_id, bound).tolist()
        return sum(map(len, prepared)) / (time.perf_counter() - started)
