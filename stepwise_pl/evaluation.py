"""Scoring a model on encoded examples: what validation, testing and `stepwise_pl.evaluate` share."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch, Part
from stepwise_pl.datamodule import EvalBatches, Limits
from stepwise_pl.decoding import Targets, answers, continuation, generate, target_logits
from stepwise_pl.metrics import EvaluationMetrics, TokenSums, token_sums
from stepwise_pl.removal import removal_count, remove
from stepwise_pl.tokenizing import EncodedExamples


class Decoded(NamedTuple):
    """A generated answer and the target's, normalised; None where none was finished."""

    predicted: str | None
    target: str | None

    @property
    def right(self) -> bool:
        return self.predicted is not None and self.predicted == self.target


class Answers(NamedTuple):
    """Answers after normalisation, [batch] each; None where none was finished."""

    predicted: list[str | None]  # greedily generated
    target: list[str | None]

    @property
    def right(self) -> list[bool]:
        """Whose answer is the target's."""
        return [Decoded(*one).right for one in zip(*self, strict=True)]


@dataclass
class Draft:
    """An example whose target the model does not agree with all the way.

    Attributes:
        target: CoT and answer.
        batch: the example alone, after removal, the first departing token in the place of the target's.
        accepted: how many tokens after the prompt are known to be what the model generates.
    """

    target: list[int]
    batch: CoTBatch
    accepted: int


class Verifier:
    """Greedy answers at the price of one teacher-forced pass, where the model is mostly right.

    The target serves as the draft of speculative decoding (arXiv 2211.17192, with greedy
    acceptance): where the arg-max at every target is the target, greedy decoding would
    write just that; elsewhere it would write the target up to the first departure, and
    decoding goes on from there, for the examples of all batches together. The pass yields
    loss and token accuracy as well.

    The decisions are those of plain greedy decoding (tested) up to rounding: a full pass
    and a step with a cache add in another order, so that two logits which differ by less
    than their rounding error may change places. The same is true of two batch sizes.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.drafts: list[Draft] = []

    @torch.inference_mode()
    def verify(self, batch: CoTBatch) -> tuple[TokenSums, list[int]]:
        """The sums over the targets of a batch after removal; and the rows proved right. The others are put by.

        Args:
            batch: on the host.
        """
        targets = Targets.of(batch)
        logits = target_logits(self.model, targets.to(self.model.device))
        sums = token_sums(logits, targets.label.to(logits.device))
        predicted = logits.argmax(-1).cpu()
        wrong = predicted != targets.label
        row = targets.index // targets.tokens.shape[1]
        column = targets.index % targets.tokens.shape[1] + 1
        # Targets stand row after row: of each row the first wrong one.
        rows, first = np.unique(row[wrong].numpy(), return_index=True)
        prompt = batch.length_of(Part.PROMPT)
        where = wrong.nonzero().squeeze(1)[torch.from_numpy(first)]
        for number, place in zip(rows.tolist(), where.tolist(), strict=True):
            alone = batch.row(number)
            (target,) = continuation(alone)
            at = int(column[place])
            alone.tokens[0, at] = predicted[place]
            self.drafts.append(Draft(target, alone, at + 1 - int(prompt[number])))
        departed = set(rows.tolist())
        return sums, [number for number in range(len(batch)) if number not in departed]

    @torch.inference_mode()
    def decode(self, max_new_tokens: int) -> Iterator[tuple[int, Decoded]]:
        """`draw` and answer of every example put by, the longest first."""
        drafts = sorted(self.drafts, key=lambda draft: -draft.batch.tokens.shape[1])
        self.drafts = []
        for start in range(0, len(drafts), self.batch_size):
            some = drafts[start : start + self.batch_size]
            batch = CoTBatch.stack([draft.batch for draft in some])
            accepted = torch.tensor([draft.accepted for draft in some], device=self.model.device)
            eos = self.tokenizer.eos_token_id
            tokens = generate(self.model, batch.to(self.model.device), eos, max_new_tokens, accepted)
            found = zip(
                answers(tokens, self.tokenizer), answers([one.target for one in some], self.tokenizer), strict=True
            )
            yield from zip(batch.draw.tolist(), (Decoded(*one) for one in found), strict=True)


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
        """The first `limit` examples (None: all), `removed` units of CoT gone from each."""
        for batch in EvalBatches(self.examples, batch_size, limit=limit):
            yield remove(batch, self.count, self.side, self.keep_position)

    def evaluate(self, batch_size: int) -> tuple[dict[str, float], Answers]:
        """loss, perplexity, answer_accuracy, token_accuracy and number of examples; and the answers, in order."""
        metrics = EvaluationMetrics().to(self.model.device)
        count = len(self.examples)
        out = Answers([None] * count, [None] * count)
        verifier = Verifier(self.model, self.tokenizer, batch_size)
        for batch in self.batches(batch_size):
            sums, proved = verifier.verify(batch)
            metrics.update(sums)
            for index, target in zip(batch.draw.tolist(), answers(continuation(batch), self.tokenizer), strict=True):
                out.target[index] = target
            for index in batch.draw[proved].tolist():
                out.predicted[index] = out.target[index]
        for index, decoded in verifier.decode(self.bound):
            out.predicted[index] = decoded.predicted
        metrics.update_answers(out.right)
        return {name: float(value) for name, value in metrics.compute().items()}, out

    @torch.inference_mode()
    def speed(self, batch_size: int, problems: int) -> float:
        """Problems answered per second, `batch_size` at a time, after one batch to warm up that is not counted."""
        prepared = [batch.to(self.model.device) for batch in self.batches(batch_size, problems)]
        eos = self.tokenizer.eos_token_id
        generate(self.model, prepared[0], eos, self.bound)
        started = time.perf_counter()
        for batch in prepared:
            generate(self.model, batch, eos, self.bound)
        return sum(map(len, prepared)) / (time.perf_counter() - started)
