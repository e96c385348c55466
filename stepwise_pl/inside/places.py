"""Places: tokens that all examples have, by part and number, whatever the lengths of their prompts.

The state at a place has read its token, and predicts the next one. So the state that *predicts* token t of the CoT is that of
the place before it; the state at t itself has token t as an input, which gives t away.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.runs.inside import PARTS


class Place(NamedTuple):
    """A token of each example.

    Attributes:
        part: `prompt`, `thought`, `cot` or `answer`.
        number: its number in the part. Prompts count from their end: -1 is the first separator, -2 the last word. The tokens of
            a CoT are numbered as in the whole CoT, so that a token keeps its number when those before it leave. Token 0 of
            the answer is the second separator.
    """

    part: str
    number: int

    def __str__(self) -> str:
        return f"{self.part} {self.number}"

    @property
    def rank(self) -> tuple[int, int]:
        """The place of a place among the places of an example, in the order in which they are read."""
        return PARTS.index(self.part), self.number

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Return the place that is written as `str(place)`. Raise `ValueError` if the text is none."""
        part, _, number = text.partition(" ")
        if part not in PARTS:
            raise ValueError(f"{text!r} is no place")
        return cls(part, int(number))


def columns(place: Place, view: CoTBatch, whole: CoTBatch, side: str = "left") -> Tensor:
    """Return the column of a place in each row of a view, [batch] int64; -1 in rows that lack it.

    Args:
        view: what the model reads.
        whole: the same examples with the whole CoT.
        side: the side from which the CoT leaves (`Method.side`).
    """
    part = Part[place.part.upper()]
    length = view.length_of(part)
    index = torch.full_like(length, place.number)
    if part == Part.PROMPT:
        index = index + length
    if part == Part.COT and side == "left":
        index = index - (whole.length_of(part) - length)
    begin = (view.part < part).sum(1)
    return torch.where((index >= 0) & (index < length), begin + index, -1)


def places_of(views: Iterable[tuple[CoTBatch, CoTBatch]], side: str = "left", prompt: int | None = 1) -> list[Place]:
    """Return the places from the end of the prompts on at which every example has a token, in their order, without the last token.

    Nothing is predicted after the last token of an example, so no state is computed there.

    Args:
        views: pairs of the whole batch and the view (`Subject.batches`).
        prompt: places at the end of the prompts; None: as many as the shortest prompt has.
    """
    found: set[Place] | None = None
    for whole, view in views:
        here = {
            place
            for place in _candidates(view, whole, side, prompt)
            if bool((columns(place, view, whole, side) >= 0).all())
        }
        found = here if found is None else found & here
    return sorted(found or (), key=lambda place: place.rank)


def _candidates(view: CoTBatch, whole: CoTBatch, side: str, prompt: int | None) -> Iterator[Place]:
    shortest = int(view.length_of(Part.PROMPT).min())
    for index in range(min(shortest, shortest if prompt is None else prompt)):
        yield Place("prompt", -1 - index)
    for index in range(int(view.length_of(Part.THOUGHT).min())):
        yield Place("thought", index)
    for index in range(int(whole.length_of(Part.COT).max())):
        yield Place("cot", index)
    for index in range(int(view.length_of(Part.ANSWER).min()) - 1):
        yield Place("answer", index)
