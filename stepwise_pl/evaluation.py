"""Scoring a model on encoded examples: what validation, testing and `stepwise_pl.evaluate` share."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch, Part
from stepwise_pl.datamodule import EvalBatches, Limits
from stepwise_pl.decoding import Targets, answers, continuation, generate, target_logits
from stepwise_pl.metrics import EvaluationMetrics, TokenSums, token_sums
from stepwise_pl.records import Sample
from stepwise_pl.removal import removal_count, remove
from stepwise_pl.tokenizing import EncodedExamples, answer_frame


class Bounds(NamedTuple):
    """Most tokens that a model may write after a prompt.

    Decoding goes on up to `whole`, so that a model which still writes a CoT that is to be
    gone is seen to answer; a claim about k removed tokens is about answers within `asked`.

    Attributes:
        asked: what a target can take at the number of removed units.
        whole: what CoT and answer can take with nothing removed.
    """

    asked: int
    whole: int

    @classmethod
    def of(cls, limits: Limits, removed: int) -> "Bounds":
        """Of the run's data with `removed` units gone."""
        return cls(limits.max_new_tokens(removed), limits.max_new_tokens(0))


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

    Attributes:
        right: `draw` of every example known so far to be answered rightly.
        wrong: by `draw`, the answer of every other that was decoded so far.
        too_long: `draw` of those whose answer is right, but took more tokens than were asked for.
        digit_counts: how many examples have each token of the answer, and in how many of
            them it is the arg-max, teacher-forced; [2, tokens of the longest answer so far] int64.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.drafts: list[Draft] = []
        self.right: list[int] = []
        self.wrong: dict[int, str | None] = {}
        self.too_long: set[int] = set()
        self.digit_counts = torch.zeros(2, 0, dtype=torch.long)
        self._frame: tuple[int, int] | None = None

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
        self._count_digits(batch, row, column, ~wrong)
        departed = set(rows.tolist())
        proved = [number for number in range(len(batch)) if number not in departed]
        self.right += batch.draw[proved].tolist()
        return sums, proved

    def _count_digits(self, batch: CoTBatch, row: Tensor, column: Tensor, right: Tensor) -> None:
        """Add the targets of a batch to `digit_counts`; row, column and outcome of each, [targets]."""
        ends = batch.attention_mask.sum(1)
        starts = ends - batch.length_of(Part.ANSWER)
        if self._frame is None:
            self._frame = answer_frame(batch.tokens[0, starts[0] : ends[0]].tolist(), self.tokenizer)
        before, after = self._frame
        place = column - starts[row] - before
        inside = (place >= 0) & (column < ends[row] - after)
        place, right = place[inside], right[inside].long()
        width = max(self.digit_counts.shape[1], int(place.max()) + 1 if len(place) else 0)
        self.digit_counts = F.pad(self.digit_counts, (0, width - self.digit_counts.shape[1]))
        self.digit_counts.index_add_(1, place, torch.stack([torch.ones_like(right), right]))

    @torch.inference_mode()
    def decode(self, max_new_tokens: int, asked: int | None = None) -> Iterator[tuple[int, Decoded]]:
        """`draw` and answer of every example put by, the longest first.

        Args:
            max_new_tokens: what any answer may take (`Bounds.whole`).
            asked: what a right answer may take (`Bounds.asked`); None: as much.
        """
        asked = max_new_tokens if asked is None else asked
        drafts = sorted(self.drafts, key=lambda draft: -draft.batch.tokens.shape[1])
        self.drafts = []
        for start in range(0, len(drafts), self.batch_size):
            some = drafts[start : start + self.batch_size]
            batch = CoTBatch.stack([draft.batch for draft in some])
            accepted = torch.tensor([draft.accepted for draft in some], device=self.model.device)
            eos = self.tokenizer.eos_token_id
            tokens = generate(self.model, batch.to(self.model.device), eos, max_new_tokens, accepted)
            targets = [one.target for one in some]
            found = zip(
                answers(tokens, self.tokenizer), answers(targets, self.tokenizer),
                [row.count(eos) == 2 and len(row) <= asked for row in tokens],
                cot_tokens(tokens, eos), cot_tokens(targets, eos), strict=True,
            )  # fmt: skip
            for draw, decoded in zip(batch.draw.tolist(), (Decoded(*one) for one in found), strict=True):
                if decoded.right:
                    self.right.append(draw)
                else:
                    self.wrong[draw] = decoded.predicted
                    if decoded.right_any_length:
                        self.too_long.add(draw)
                yield draw, decoded


def cot_tokens(new: Sequence[Sequence[int]], eos: int) -> list[int]:
    """How many tokens stand before the first end token of each row, which ends the CoT; all where there is none."""
    return [list(row).index(eos) if eos in row else len(row) for row in new]


def first_samples(
    verifier: Verifier, examples: EncodedExamples, count: int, everywhere: Callable[[list[Any]], list[Any]]
) -> list[Sample]:
    """The first `count` right and the first `count` wrong examples, in the order of the data.

    Args:
        verifier: after `decode`; its `draw`s are places in `examples`.
        everywhere: what is found by this process to what is found by all of them.
    """
    outcomes: list[tuple[int, bool, str | None, bool]] = [
        *((draw, True, None, False) for draw in sorted(verifier.right)[:count]),
        *((draw, False, verifier.wrong[draw], draw in verifier.too_long) for draw in sorted(verifier.wrong)[:count]),
    ]
    outcomes = sorted(everywhere(outcomes))
    out: list[Sample] = []
    for wanted in (True, False):
        for draw, right, prediction, too_long in [one for one in outcomes if one[1] is wanted][:count]:
            batch = examples.collate(np.array([draw]))
            (target,) = answers(continuation(batch), verifier.tokenizer)
            prompt = str(verifier.tokenizer.decode(batch.tokens[0, : int(batch.length_of(Part.PROMPT)) - 1])).strip()
            sample: Sample = {
                "prompt": prompt,
                "target": target or "",
                "prediction": target if right else prediction,
                "right": right,
            }
            if too_long:
                sample["too_long"] = True
            out.append(sample)
    return out


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
    def bounds(self) -> Bounds:
        """Those of the run's data, or of these examples where they take more."""
        own = (self.examples.cot_left(gone, self.side) + self.examples.answer_length for gone in (self.count, 0))
        of_run = Bounds.of(self.limits, self.removed)
        return Bounds(*(max(most, int(length.max())) for most, length in zip(of_run, own, strict=True)))

    @property
    def bound(self) -> int:
        """Most tokens of an answer that counts."""
        return self.bounds.asked

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[CoTBatch]:
        """The first `limit` examples (None: all), `removed` units of CoT gone from each."""
        for batch in EvalBatches(self.examples, batch_size, limit=limit):
            yield remove(batch, self.count, self.side, self.keep_position)

    def evaluate(self, batch_size: int) -> tuple[dict[str, float], Answers]:
        """loss, perplexity, answer_accuracy (and at any length), token_accuracy, number of examples; the answers, in order."""
        metrics = EvaluationMetrics().to(self.model.device)
        found: dict[int, Decoded] = {}
        verifier = Verifier(self.model, self.tokenizer, batch_size)
        for batch in self.batches(batch_size):
            sums, proved = verifier.verify(batch)
            metrics.update(sums)
            all_targets = continuation(batch)
            targets = [all_targets[row] for row in proved]
            written = cot_tokens(targets, self.tokenizer.eos_token_id)
            for row, target, count in zip(proved, answers(targets, self.tokenizer), written, strict=True):
                found[int(batch.draw[row])] = Decoded(target, target, True, count, count)
        bounds = self.bounds
        found.update(verifier.decode(bounds.whole, bounds.asked))
        out = Answers(found[index] for index in range(len(self.examples)))
        metrics.update_answers([one.right for one in out], [one.right_any_length for one in out])
        return {name: float(value) for name, value in metrics.compute().items()}, out

    @torch.inference_mode()
    def speed(self, batch_size: int, problems: int) -> float:
        """Problems answered per second, `batch_size` at a time, after one batch to warm up that is not counted."""
        prepared = [batch.to(self.model.device) for batch in self.batches(batch_size, problems)]
        # Looked up here: the bound is found by going through all examples, which takes time of its own.
        eos, bound = self.tokenizer.eos_token_id, self.bound
        generate(self.model, prepared[0], eos, bound)
        started = time.perf_counter()
        for batch in prepared:
            generate(self.model, batch, eos, bound)
        return sum(map(len, prepared)) / (time.perf_counter() - started)
