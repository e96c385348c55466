"""Parity against Python integers."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.parity import Parity

END = 2  # stands behind the last bit of a shorter string


def oracle(bits: list[int]) -> Example:
    """Return the line, made from the number of ones so far, bit by bit."""
    running = [str(ones % 2) for ones in accumulate(bits)]
    return Example.of_steps(" ".join(map(str, bits)), running, running[-1])


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=80), min_size=1, max_size=6))
def test_render_is_the_running_parity(strings: list[list[int]]) -> None:
    width = max(map(len, strings))
    problems = np.array([bits + [END] * (width - len(bits)) for bits in strings], np.uint8)
    assert Parity(bits=width).render(problems) == [oracle(bits) for bits in strings]


def test_the_example_of_the_docstring() -> None:
    line = "1 0 1 1||1 1 0 1 #### 1"
    assert Parity(bits=4).render(np.array([[1, 0, 1, 1]], np.uint8))[0].line() == line
    assert f"`{line}`" in (Parity.__doc__ or "")


@pytest.mark.parametrize("bits,shortest", [(16, None), (64, None), (256, 200), (30, 10)])
def test_drawn_problems_follow_their_settings(bits: int, shortest: int | None) -> None:
    task = Parity(bits=bits, min_bits=shortest, train_size=4_000)
    examples = task.load()["train"].slice(0, 4_000)
    assert examples == [oracle([int(bit) for bit in e.prompt.split()]) for e in examples]
    lengths = np.array([len(e.prompt.split()) for e in examples])
    counts = np.bincount(lengths, minlength=bits + 1)[shortest or bits :]
    assert counts.sum() == 4_000
    assert abs(counts - 4_000 / len(counts)).max() < 5 * np.sqrt(4_000 / len(counts))  # five standard deviations
    assert abs(sum(e.answer == "1" for e in examples) - 2_000) < 5 * np.sqrt(1_000)


def test_short_strings_run_out_first() -> None:
    examples = Parity(bits=20, min_bits=1, train_size=20_000).load()["train"].slice(0, 20_000)
    lengths = np.bincount([len(e.prompt.split()) for e in examples])
    assert (lengths[1:5] <= [2, 4, 8, 16]).all()
    assert lengths[5:12].min() > 0.5 * min(2**5, 1_000)


@pytest.mark.parametrize("bad", [{"bits": 0}, {"bits": 257}, {"min_bits": 0}, {"bits": 3, "min_bits": 4}], ids=str)
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(UserError, match=f"task.{list(bad)[-1]}="):
        Parity(**bad)


def test_cot_length_and_symbols() -> None:
    assert Parity().cot_length_known()
    assert Parity().symbols() == ("0", "1")
