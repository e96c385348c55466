"""The tokens at places: those that come next, those that are looked for, and those of the digits."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from stepwise_pl.data.batch import Part
from stepwise_pl.inside.places import Place, columns, places_of
from stepwise_pl.inside.subject import Subject
from stepwise_pl.methods.base import LATENT, own

# Problems whose tokens are looked at together; the model does not read them.
BATCH_SIZE = 1000


def tokens_at(subject: Subject, places: Sequence[Place]) -> Tensor:
    """Return the ids at places of the whole example that all problems have, [places, problems] int64."""
    found = torch.zeros(len(places), len(subject.texts), dtype=torch.long)
    for whole, _ in subject.batches(BATCH_SIZE):
        for number, place in enumerate(places):
            column = columns(place, whole, whole, subject.side)[:, None]
            found[number, whole.draw] = whole.tokens.gather(1, column)[:, 0]
    return found


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
    held = dict(zip(every, tokens_at(subject, every), strict=True))
    found: dict[Place, list[Place]] = {}
    for place in places:
        own_tokens = held[place]
        if len(own_tokens.unique()) > 1:
            found[place] = [other for other in every if other != place and torch.equal(held[other], own_tokens)]
    return {place: others for place, others in found.items() if others}


def digit_tokens(subject: Subject) -> list[int]:
    """Return the ids of the digits 0, 1, .. that the problems hold, up to the first digit that is missing.

    A digit that is written by several tokens (with and without a space) has the most frequent one.
    """
    ids, counts = torch.from_numpy(subject.encoded.tokens.astype("int64")).unique(return_counts=True)
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
