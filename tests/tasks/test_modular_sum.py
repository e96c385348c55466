"""Modular sums against Python integers."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks import ModularSum
from stepwise_pl.tasks.base import Example


def oracle(terms: list[int], modulus: int) -> Example:
    """Return the line, made from the sum of every beginning of the digits."""
    sums = [str(sum(terms[: count + 1]) % modulus) for count in range(len(terms))]
    return Example.of_steps(" ".join(map(str, terms)), sums, sums[-1])


@given(st.data(), st.integers(2, 10))
def test_render_is_the_running_sum(data: st.DataObject, modulus: int) -> None:
    lists = st.lists(st.integers(0, modulus - 1), min_size=1, max_size=60)
    problems = data.draw(st.lists(lists, min_size=1, max_size=5))
    width = max(map(len, problems))
    padded = np.array([terms + [modulus] * (width - len(terms)) for terms in problems], np.uint8)
    task = ModularSum(modulus=modulus, terms=width)
    assert task.render(padded) == [oracle(terms, modulus) for terms in problems]


def test_the_example_of_the_docstring() -> None:
    line = "3 4 1 2||3 2 3 0 #### 0"
    assert ModularSum(terms=4).render(np.array([[3, 4, 1, 2]], np.uint8))[0].line() == line
    assert f"`{line}`" in (ModularSum.__doc__ or "")


@pytest.mark.parametrize("modulus,terms,shortest", [(5, 8, None), (10, 30, 10), (2, 16, None)])
def test_drawn_problems_follow_their_settings(modulus: int, terms: int, shortest: int | None) -> None:
    task = ModularSum(modulus=modulus, terms=terms, min_terms=shortest, train_size=4_000)
    examples = task.load()["train"].slice(0, 4_000)
    assert examples == [oracle([int(digit) for digit in e.prompt.split()], modulus) for e in examples]
    lengths = {len(e.prompt.split()) for e in examples}
    assert lengths == set(range(shortest or terms, terms + 1))
    counts = np.bincount([int(e.answer) for e in examples], minlength=modulus)
    assert abs(counts - 4_000 / modulus).max() < 5 * np.sqrt(4_000 / modulus)  # five standard deviations


def test_all_problems_but_one_digit_say_nothing_about_the_answer() -> None:
    """The claim of the docstring, by counting: for each value of the other digits, all answers are equally frequent."""
    answers: dict[tuple[int, ...], list[str]] = {}
    for terms in product(range(3), repeat=4):
        answers.setdefault(terms[1:], []).append(oracle(list(terms), 3).answer)
    assert all(sorted(found) == ["0", "1", "2"] for found in answers.values())


@pytest.mark.parametrize(
    "bad",
    [{"modulus": 1}, {"modulus": 11}, {"terms": 0}, {"terms": 257}, {"min_terms": 0}, {"terms": 3, "min_terms": 4}],
    ids=str,
)
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(UserError, match=f"task.{list(bad)[-1]}="):
        ModularSum(**bad)


def test_cot_length_and_symbols() -> None:
    assert ModularSum().cot_length_known()
    assert ModularSum(modulus=3).symbols() == ("0", "1", "2")
