"""Greedy answers: one teacher-forced pass proves right answers; the others are decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stepwise_pl.data.batch import CoTBatch, Part, continuation
from stepwise_pl.data.encoding import answer_frame
from stepwise_pl.data.layout import unfinished_answer
from stepwise_pl.data.limits import Limits
from stepwise_pl.evaluation.answers import Decoded, answers
from stepwise_pl.models.learner import Learner, Scored
from stepwise_pl.models.memory import in_portions
from stepwise_pl.models.static_rows import release

# The keys of `Learner.fitting`.
SCORED, DECODED = "scored", "decoded"


class Bounds(NamedTuple):
    """The most tokens that a model may write after a prompt.

    Decoding goes on up to `whole`, so that a model that still writes removed CoT gets to its
    answer. An accuracy at k removed tokens counts answers within `asked`.

    Attributes:
        asked: the most tokens of a target at the number of removed units.
        whole: the most tokens of CoT and answer with nothing removed.
    """

    asked: int
    whole: int

    @classmethod
    def of(cls, limits: Limits, removed: int) -> "Bounds":
        """Return the bounds of the run's data with `removed` units gone."""
        return cls(limits.max_new_tokens(removed), limits.max_new_tokens(0))


@dataclass
class Draft:
    """An example for which the model departs from the target.

    Attributes:
        target: the tokens of CoT and answer.
        batch: the example alone, after removal. The model's first departing token replaces the target's.
        accepted: count of tokens after the prompt that the model is known to generate.
    """

    target: list[int]
    batch: CoTBatch
    accepted: int


class Verifier:
    """Finds greedy answers. One teacher-forced pass is enough for right answers.

    The target serves as the draft of speculative decoding (arXiv 2211.17192, with greedy
    acceptance). If the arg-max at every target is the target, greedy decoding would write
    exactly the target. Otherwise it would write the target up to the first departure, and
    decoding goes on from there, for the examples of all batches together. The pass also gives
    loss and token accuracy.

    The answers are those of plain greedy decoding (tested) up to rounding. A full pass and a
    step with a cache sum in another order, so two logits may change places if they differ by
    less than their rounding error. Two batch sizes differ in the same way.

    Attributes:
        right: `draw` of every example found right so far.
        wrong: by `draw`, the answer of every example found wrong so far.
        too_long: `draw` of wrong examples whose answer is right but took more tokens than asked for.
        digit_counts: the number of examples that have each token of the answer, and the number
            in which it is the arg-max, teacher-forced; [2, tokens of the longest answer so far] int64.
    """

    def __init__(self, learner: Learner, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.learner, self.tokenizer, self.batch_size = learner, tokenizer, batch_size
        self.drafts: list[Draft] = []
        self.right: list[int] = []
        self.wrong: dict[int, str | None] = {}
        self.too_long: set[int] = set()
        self.digit_counts = torch.zeros(2, 0, dtype=torch.long)
        self._frame: tuple[int, int] | None = None

    def verify_parts(self, batch: CoTBatch) -> Iterator[tuple[CoTBatch, Scored, list[int]]]:
        """Yield the batch with what `verify` returns; in several parts if the device's memory does not hold the whole."""

        def part(rows: range) -> CoTBatch:
            return batch if len(rows) == len(batch) else batch.take(torch.tensor(rows))

        def work(rows: range) -> tuple[Scored, list[int]]:
            return self.verify(part(rows))

        for rows, done in in_portions(self.learner.fitting, SCORED, len(batch), work):
            yield part(rows), *done
            del done

    @torch.inference_mode()
    def verify(self, batch: CoTBatch) -> tuple[Scored, list[int]]:
        """Score the targets of a view; return the scores and the rows proved right. The other rows are queued for decoding.

        Args:
            batch: the view, on the host.
        """
        scored = self.learner.score(batch)
        predicted, row, column = scored.predicted.cpu(), scored.row, scored.column
        wrong = ~scored.right.cpu()
        # Targets stand row after row, so the first index of a row is its first wrong target.
        rows, first = np.unique(row[wrong].numpy(), return_index=True)
        given = batch.num_given
        where = wrong.nonzero().squeeze(1)[torch.from_numpy(first)]
        for number, place in zip(rows.tolist(), where.tolist(), strict=True):
            alone = batch.row(number)
            (target,) = continuation(alone)
            at = int(column[place])
            alone.tokens[0, at] = predicted[place]
            self.drafts.append(Draft(target, alone, at + 1 - int(given[number])))
        self._count_digits(batch, row, column, ~wrong)
        departed = set(rows.tolist())
        proved = [number for number in range(len(batch)) if number not in departed]
        self.right += batch.draw[proved].tolist()
        return scored, proved

    def _count_digits(self, batch: CoTBatch, row: Tensor, column: Tensor, right: Tensor) -> None:
        """Add the targets of a batch to `digit_counts`; `row`, `column` and `right` are those of each target, [targets]."""
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
        """Decode the queued examples, the longest first. Yield the `draw` and the answer of each.

        Args:
            max_new_tokens: the most tokens to write (`Bounds.whole`).
            asked: the most tokens of a right answer (`Bounds.asked`); None: `max_new_tokens`.
        """
        asked = max_new_tokens if asked is None else asked
        drafts = sorted(self.drafts, key=lambda draft: -draft.batch.tokens.shape[1])
        self.drafts = []
        eos = self.learner.eos

        def work(rows: range) -> tuple[list[Draft], list[list[int]]]:
            portion = drafts[rows.start : rows.stop]
            batch = CoTBatch.stack([draft.batch for draft in portion])
            accepted = torch.tensor([draft.accepted for draft in portion])
            return portion, self.learner.generate(batch, max_new_tokens, accepted)

        done = in_portions(self.learner.fitting, DECODED, len(drafts), work, self.batch_size)
        for _, (portion, tokens) in done:
            targets = [draft.target for draft in portion]
            found = zip(
                answers(tokens, self.tokenizer), answers(targets, self.tokenizer),
                [row.count(eos) == 2 and len(row) <= asked for row in tokens],
                cot_tokens(tokens, eos), cot_tokens(targets, eos),
                [unfinished_answer(row, self.tokenizer) for row in tokens], strict=True,
            )  # fmt: skip
            draws = [int(draft.batch.draw) for draft in portion]
            for draw, decoded in zip(draws, (Decoded(*parts) for parts in found), strict=True):
                if decoded.right:
                    self.right.append(draw)
                else:
                    self.wrong[draw] = decoded.predicted
                    if decoded.right_any_length:
                        self.too_long.add(draw)
                yield draw, decoded
        # Training may need the memory of a compiled step.
        release(self.learner.model)


def cot_tokens(new: Sequence[Sequence[int]], eos: int) -> list[int]:
    """Return the count of CoT tokens in each row: the tokens before its first end token, or all without one."""
    return [list(row).index(eos) if eos in row else len(row) for row in new]
