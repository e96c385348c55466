"""The tokens at places: those that come next, those that are looked for, and those of the digits."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepwise_pl.data.batch import Part
from stepwise_pl.inside.places import Place, columns, places_of
from stepwise_pl.inside.subject import Subject
from stepwise_pl.methods.base import LATENT, own

# Problems whose tokens are looked at together; the model does not read them.
BATCH_SIZE = 1000

Ints = npt.NDArray[np.int64]


def tokens_at(subject: Subject, place: Place) -> Ints:
    """Return the token at a place of the whole prompt, CoT or answer of each problem; -1 where there is none; [problems]."""
    encoded = subject.encoded
    if place.part == "prompt":
        begin, length, number = encoded.cot_start * 0, encoded.cot_start, place.number + encoded.cot_start
    elif place.part == "cot":
        begin, length, number = encoded.cot_start, encoded.cot_length, encoded.cot_start * 0 + place.number
    else:
        begin, length, number = encoded.answer_start, encoded.answer_length, encoded.cot_start * 0 + place.number
    is_there = (number >= 0) & (number < length)
    tokens = encoded.tokens[np.where(is_there, encoded.start[:-1] + begin + number, 0)].astype(np.int64)
    return np.where(is_there, tokens, -1)


def targets_at(subject: Subject, places: Sequence[Place]) -> Tensor:
    """Return the ids that the model has to predict at places of the subject's stage; [places, problems] int64, -1: nothing is."""
    found = torch.zeros(len(places), len(subject.texts), dtype=torch.long)
    for whole, view in subject.batches(BATCH_SIZE):
        for number, place in enumerate(places):
            column = columns(place, view, whole, subject.side)[:, None] + 1
            following = torch.where(view.is_target.gather(1, column), view.tokens.gather(1, column), -1)
            found[number, whole.draw] = following[:, 0]
    return found


def looked_for(subject: Subject, most: int) -> list[Place]:
    """Return the tokens of CoT and answer that all problems have, without the end token; at most `most`, evenly spaced."""
    pairs = [(batch, batch) for batch, _ in subject.batches(BATCH_SIZE)]
    places = [place for place in places_of(pairs, subject.side) if place.part in ("cot", "answer")]
    if len(places) <= most:
        return places
    return [places[round(number * (len(places) - 1) / max(1, most - 1))] for number in range(most)]


def gone(subject: Subject, places: Sequence[Place]) -> list[Place]:
    """Return those of some places of the whole CoT that no problem has at the subject's stage."""
    left: set[Place] = set()
    for batch, view in subject.batches(BATCH_SIZE):
        left |= {place for place in places if bool((columns(place, view, batch, subject.side) >= 0).any())}
    return [place for place in places if place not in left]


def copies(subject: Subject, places: Sequence[Place]) -> dict[Place, list[Place]]:
    """Return the places of the whole example that hold the same token as one of `places` in every problem.

    Whoever finds such a token in a model may have found its copy. Tokens that are the same in all problems have no copies.
    """
    pairs = [(batch, batch) for batch, _ in subject.batches(BATCH_SIZE)]
    every = places_of(pairs, subject.side, prompt=None)
    held = {place: tokens_at(subject, place) for place in every}
    found: dict[Place, list[Place]] = {}
    for place in places:
        own_tokens = held[place]
        if len(np.unique(own_tokens)) > 1:
            found[place] = [other for other in every if other != place and np.array_equal(held[other], own_tokens)]
    return {place: others for place, others in found.items() if others}


def digit_tokens(subject: Subject) -> list[int]:
    """Return the ids of the digits 0, 1, .. that the problems hold, up to the first digit that is missing.

    A digit that is written by several tokens (with and without a space) has the most frequent one.
    """
    ids, counts = np.unique(subject.encoded.tokens, return_counts=True)
    by_digit: dict[str, Counter[int]] = {digit: Counter() for digit in "0123456789"}
    for number, count in zip(ids.tolist(), counts.tolist(), strict=True):
        text = str(subject.tokenizer.decode([number])).strip()
        if text in by_digit:
            by_digit[text][number] = count
    found: list[int] = []
    for counter in by_digit.values():
        if not counter:
            break
        found.append(counter.most_common(1)[0][0])
    return found


def written(subject: Subject, token: int) -> str:
    """Return a token as text; an input that is no word in brackets."""
    if token == LATENT:
        return "[thought]"
    if token <= own(0):
        return f"[input {own(0) - token}]"
    return str(subject.tokenizer.decode([token]))


def named_columns(subject: Subject) -> list[list[Place]]:
    """Return the places of each problem at its stage, column by column, without the last token."""
    found: list[list[Place]] = [[] for _ in subject.texts]
    for batch, view in subject.batches(BATCH_SIZE):
        removed = (
            batch.length_of(Part.COT) - view.length_of(Part.COT) if subject.side == "left" else torch.zeros(len(view))
        )
        for row, problem in enumerate(batch.draw.tolist()):
            parts = [Part(part) for part in view.part[row].tolist() if part != Part.PAD]
            number = {Part.PROMPT: -parts.count(Part.PROMPT), Part.COT: int(removed[row])}
            for part in parts[:-1]:
                found[problem].append(Place(part.name.lower(), number.get(part, 0)))
                number[part] = number.get(part, 0) + 1
    return found
