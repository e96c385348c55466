"""Places: the same token in every example, whatever the lengths."""

import torch

from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.inside.places import Place, columns, places_of
from stepwise_pl.methods.base import LATENT


def batch() -> CoTBatch:
    """Two examples with prompts of 2 and 3 tokens, CoTs of 3 and 2, answers of 3; the tokens are tens of the part and a number."""
    rows = [
        ([1, 2], [21, 22, 23], [31, 32, 33]),
        ([1, 2, 3], [21, 22], [31, 32, 33]),
    ]
    parts = (Part.PROMPT, Part.COT, Part.ANSWER)
    width = max(sum(map(len, row)) for row in rows)
    tokens = torch.zeros(2, width, dtype=torch.long)
    part = torch.full((2, width), int(Part.PAD), dtype=torch.int8)
    for number, row in enumerate(rows):
        flat = [token for of_part in row for token in of_part]
        tokens[number, : len(flat)] = torch.tensor(flat)
        part[number, : len(flat)] = torch.tensor([int(kind) for kind, of in zip(parts, row, strict=True) for _ in of])
    position = torch.arange(width).expand(2, -1).masked_fill(part == Part.PAD, 0)
    return CoTBatch(tokens, part, position, part == Part.COT, torch.arange(2))


def token_at(place: Place, view: CoTBatch, whole: CoTBatch, side: str = "left") -> list[int | None]:
    found = columns(place, view, whole, side).tolist()
    return [None if column < 0 else int(view.tokens[row, column]) for row, column in enumerate(found)]


def test_a_cot_token_keeps_its_number_when_those_before_it_leave() -> None:
    whole = batch()
    view = whole.remove(1)
    assert token_at(Place("cot", 1), view, whole) == [22, 22]
    assert token_at(Place("cot", 0), view, whole) == [None, None]
    assert token_at(Place("cot", 2), view, whole) == [23, None]


def test_from_the_right_the_first_tokens_stay() -> None:
    whole = batch()
    view = whole.remove(1, "right")
    assert token_at(Place("cot", 0), view, whole, "right") == [21, 21]
    assert token_at(Place("cot", 1), view, whole, "right") == [22, None]


def test_prompts_count_from_their_end_and_thoughts_from_their_beginning() -> None:
    whole = batch()
    view = whole.remove(1).insert([(LATENT, -2), (LATENT,)])
    assert token_at(Place("prompt", -1), view, whole) == [2, 3]
    assert token_at(Place("prompt", -3), view, whole) == [None, 1]
    assert token_at(Place("thought", 0), view, whole) == [LATENT, LATENT]
    assert token_at(Place("thought", 1), view, whole) == [-2, None]


def test_places_of_are_those_of_every_example_in_their_order() -> None:
    whole = batch()
    pairs = [(whole, whole.remove(0)), (whole, whole.remove(0))]
    assert list(map(str, places_of(pairs))) == ["prompt -1", "cot 0", "cot 1", "answer 0", "answer 1"]
    assert list(map(str, places_of(pairs, prompt=None)))[:2] == ["prompt -2", "prompt -1"]


def test_a_place_is_read_back_from_its_text() -> None:
    for place in (Place("prompt", -1), Place("cot", 0)):
        assert Place.parse(str(place)) == place
