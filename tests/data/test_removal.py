"""`remove` against a naive oracle on lists."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.schedules.spread import ALL, Stage

lengths = st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(1, 5))  # prompt, CoT, answer
rows = st.lists(st.tuples(lengths, st.integers(0, 12)), min_size=1, max_size=6)


def make_batch(sizes: list[tuple[int, int, int]]) -> CoTBatch:
    """Return a batch with tokens 1, 2, ... in each row, so that all tokens of a row differ."""
    width = max(map(sum, sizes))
    tokens, part, position = (torch.zeros(len(sizes), width, dtype=torch.long) for _ in range(3))
    for row, (prompt, cot, answer) in enumerate(sizes):
        total = prompt + cot + answer
        tokens[row, :total] = torch.arange(1, total + 1)
        part[row] = torch.tensor(
            [Part.PROMPT] * prompt + [Part.COT] * cot + [Part.ANSWER] * answer + [Part.PAD] * (width - total)
        )
        position[row, :total] = torch.arange(total)
    return CoTBatch(tokens, part.to(torch.int8), position, part == Part.COT, torch.arange(len(sizes)))


def oracle(sizes: tuple[int, int, int], count: int, side: str) -> list[tuple[int, int, int]]:
    """Return (token, part, original position) of every token that is left."""
    prompt, cot, answer = sizes
    parts = [Part.PROMPT] * prompt + [Part.COT] * cot + [Part.ANSWER] * answer
    everything = [(place + 1, part, place) for place, part in enumerate(parts)]
    gone = min(count, cot)
    start = prompt if side == "left" else prompt + cot - gone
    return everything[:start] + everything[start + gone :]


@given(rows, st.sampled_from(["left", "right"]), st.booleans())
def test_remove_is_what_a_loop_over_lists_does(rows, side: str, keep_position: bool) -> None:
    sizes, counts = zip(*rows, strict=True)
    out = make_batch(list(sizes)).remove(torch.tensor(counts), side, keep_position)
    expected = [oracle(size, count, side) for size, count in rows]
    assert out.tokens.shape[1] == max(map(len, expected))  # no column of padding too many
    for row, left in enumerate(expected):
        n = len(left)
        assert out.tokens[row, :n].tolist() == [token for token, _, _ in left]
        assert out.part[row].tolist() == [part for _, part, _ in left] + [Part.PAD] * (out.tokens.shape[1] - n)
        assert out.position[row, :n].tolist() == [place if keep_position else i for i, (_, _, place) in enumerate(left)]
        assert out.attention_mask[row].sum() == n
        targets = [part in (Part.COT, Part.ANSWER) for _, part, _ in left]
        assert out.is_target[row].tolist() == targets + [False] * (out.tokens.shape[1] - n)
    assert out.draw.tolist() == list(range(len(sizes)))


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 4), max_size=4), st.integers(0, 5)), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
)
def test_reasoning_steps_leave_whole(rows, side: str) -> None:
    """A row gives the tokens of each reasoning step, and the number of steps to remove."""
    batch = make_batch([(2, sum(steps), 3) for steps, _ in rows])
    batch.unit_start.zero_()
    for row, (steps, _) in enumerate(rows):
        batch.unit_start[row, [2 + sum(steps[:i]) for i in range(len(steps))]] = True
    out = batch.remove(torch.tensor([count for _, count in rows]), side)
    for row, (steps, count) in enumerate(rows):
        # Removing the tokens of the steps gives the same.
        gone = sum(steps[:count] if side == "left" else steps[max(0, len(steps) - count) :])
        left = [token for token, _, _ in oracle((2, sum(steps), 3), gone, side)]
        assert out.tokens[row, : len(left)].tolist() == left
        assert out.attention_mask[row].sum() == len(left)
        kept = max(0, len(steps) - count)
        assert out.unit_start[row].sum() == kept
    again = batch.remove(1, side).remove(2, side)
    once = batch.remove(3, side)
    assert torch.equal(again.tokens * again.attention_mask, once.tokens * once.attention_mask)


@given(st.lists(lengths, min_size=1, max_size=4), st.integers(0, 12), st.integers(0, 12))
def test_removing_twice_is_removing_the_sum(sizes, first: int, second: int) -> None:
    batch = make_batch(sizes)
    twice = batch.remove(first).remove(second)
    once = batch.remove(first + second)
    assert torch.equal(twice.tokens * twice.attention_mask, once.tokens * once.attention_mask)


def test_the_last_stage_removes_all_even_of_a_longer_cot_than_was_trained_on() -> None:
    batch = make_batch([(2, 9, 2)])
    assert batch.remove(Stage(5, 6).units).length_of(Part.COT).tolist() == [4]
    assert batch.remove(Stage(3, 6, np.array([5])).units).length_of(Part.COT).tolist() == [4]
    assert batch.remove(Stage(3, 6, np.array([7])).units).length_of(Part.COT).tolist() == [0]
    assert batch.remove(Stage(6, 6).units).length_of(Part.COT).tolist() == [0]


def test_one_number_removes_from_every_row_and_all_is_all() -> None:
    batch = make_batch([(2, 5, 2), (1, 0, 3), (3, 9, 1)])
    assert torch.equal(batch.remove(4).tokens, batch.remove(torch.tensor([4, 4, 4])).tokens)
    for side in ("left", "right"):
        assert not (batch.remove(ALL, side).part == Part.COT).any()
    assert torch.equal(batch.remove(0).tokens, batch.tokens)
