"""Greedy answers: proved in one teacher-forced pass where the model agrees with the target, decoded elsewhere."""

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
from stepwise_pl.data.limits import Limits
from stepwise_pl.evaluation.answers import Decoded, answers
from stepwise_pl.models.learner import Learner, Scored


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

    def __init__(self, learner: Learner, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.learner, self.tokenizer, self.batch_size = learner, tokenizer, batch_size
        self.drafts: list[Draft] = []
        self.right: list[int] = []
        self.wrong: dict[int, str | None] = {}
        self.too_long: set[int] = set()
        self.digit_counts = torch.zeros(2, 0, dtype=torch.long)
        self._frame: tuple[int, int] | None = None

    @torch.inference_mode()
    def verify(self, batch: CoTBatch) -> tuple[Scored, list[int]]:
        """The targets of a view, and the rows proved right. The other rows are queued for decoding.

        Args:
            batch: the view, on the host.
        """
        scored = self.learner.score(batch)
        predicted, row, column = scored.predicted.cpu(), scored.row, scored.column
        wrong = ~scored.right.cpu()
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
        return scored, proved

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
        """`draw` and answer of every example queued, the longest first.

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
            accepted = torch.tensor([draft.accepted for draft in some])
            eos = self.learner.eos
            tokens = self.learner.generate(batch, max_new_tokens, accepted)
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
