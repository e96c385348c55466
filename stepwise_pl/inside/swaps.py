"""Swaps: a word of the prompt becomes another, and the answer should follow. The table says which token sees which word."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stepwise_pl.inside.interchange import logits_at
from stepwise_pl.inside.pairs import Ints, TokenPairs
from stepwise_pl.inside.places import Place, columns
from stepwise_pl.inside.subject import Source
from stepwise_pl.inside.tokens import tokens_at
from stepwise_pl.runs.inside import Swap


class Answered(NamedTuple):
    """The predictions of one token of the answer, for A and for B; all [pairs].

    Attributes:
        pair: the numbers of the pairs.
        distance: total variation distance of the two distributions.
        should_move, moved: whether the right token differs, and whether the predicted one does.
        right: whether both predictions are right.
    """

    pair: Ints
    distance: npt.NDArray[np.float64]
    should_move: npt.NDArray[np.bool_]
    moved: npt.NDArray[np.bool_]
    right: npt.NDArray[np.bool_]


@torch.inference_mode()
def swaps(
    pairs: TokenPairs, batch_size: int, progress: Callable[[float], None] = lambda share: None
) -> dict[int, Answered]:
    """Return the predictions of each token of the answer, by its number in the answer's part.

    A and B are read teacher-forced, each with its own CoT as far as it is left, and both with the answer of A. So what differs
    before a token is the prompt and the CoT alone.
    """
    before, after = pairs.first.frame
    length = np.minimum(pairs.first.encoded.answer_length, pairs.second.encoded.answer_length) - after  # [pairs]
    found: dict[int, list[Answered]] = {}
    for rows in pairs.portions(np.arange(len(pairs)), batch_size):
        batches = [side.batch(rows) for side in (pairs.first, pairs.forced)]
        scored = [pairs.first.learner.score(view) for _, view in batches]
        for number in range(before, int(length[rows].max())):
            place, there = Place("answer", number), np.flatnonzero(length[rows] > number)
            kept, pair = torch.from_numpy(there), rows[there]
            logits = [
                logits_at(each, columns(place, view, whole)[kept], kept)
                for each, (whole, view) in zip(scored, batches, strict=True)
            ]
            first, second = (each.softmax(-1) for each in logits)
            predicted = [each.argmax(-1).cpu().numpy() for each in logits]
            label = [tokens_at(side, place)[pair] for side in (pairs.first, pairs.second)]
            found.setdefault(number, []).append(
                Answered(
                    pair, ((first - second).abs().sum(-1) / 2).cpu().numpy(), label[0] != label[1],
                    predicted[0] != predicted[1], (predicted[0] == label[0]) & (predicted[1] == label[1]),
                )
            )  # fmt: skip
        progress(len(rows) / len(pairs))
    return {number: Answered(*map(np.concatenate, zip(*parts, strict=True))) for number, parts in found.items()}


def swap_rows(answered: dict[int, Answered], pairs: TokenPairs, source: Source) -> list[Swap]:
    """Return the table: a row for each changed word and each token of the answer."""
    out = []
    for changed in sorted(set(pairs.changed.tolist())):
        for number, found in answered.items():
            of_word = pairs.changed[found.pair] == changed
            if of_word.any():
                distance, should_move, moved, right = (float(each[of_word].mean()) for each in found[1:])
                place, target = str(Place("prompt", changed)), str(Place("answer", number))
                out.append(Swap(*source, place, target, distance, should_move, moved, right, int(of_word.sum())))
    return out
