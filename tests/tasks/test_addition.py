"""Addition against Python integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks.addition import Addition
from stepwise_pl.tasks.base import Example


def oracle(numbers: list[int], digits: int) -> Example:
    width = len(str(len(numbers) * (10**digits - 1)))

    def spaced(number: int, width: int = 0) -> str:
        return " ".join(str(number).zfill(width)[::-1])

    sums = [spaced(sum(numbers[:count]), width) for count in range(2, len(numbers))]
    steps = [sums[0], *(f"; {later}" for later in sums[1:])]
    return Example.of_steps(" + ".join(map(spaced, numbers)), steps, spaced(sum(numbers), width))


def operands(numbers: list[int]) -> list[list[int]]:
    return [[int(digit) for digit in reversed(str(number))] for number in numbers]


@given(st.data())
def test_render_is_addition(data: st.DataObject) -> None:
    count, digits = data.draw(st.integers(3, 20)), data.draw(st.integers(1, 20))
    number = st.integers(10 ** (digits - 1), 10**digits - 1)
    problems = data.draw(st.lists(st.lists(number, min_size=count, max_size=count), min_size=1, max_size=4))
    rendered = Addition(operands=count, digits=digits).render(np.array(list(map(operands, problems)), np.uint8))
    assert rendered == [oracle(numbers, digits) for numbers in problems]


def test_the_example_of_the_docstring() -> None:
    line = "3 2 1 + 6 5 4 + 9 8 7 + 1 1 1||9 7 5 0 ; 8 6 3 1 #### 9 7 4 1"
    assert oracle([123, 456, 789, 111], 3).line() == line
    assert Addition().render(np.array([operands([123, 456, 789, 111])], np.uint8))[0].line() == line
    assert f"`{line}`" in (Addition.__doc__ or "")


@pytest.mark.parametrize("count,digits", [(3, 1), (4, 3), (20, 20)])
def test_drawn_problems_follow_their_settings(count: int, digits: int) -> None:
    train = Addition(operands=count, digits=digits, train_size=300).load()["train"]
    examples = train.slice(0, 300)
    for e in examples:
        numbers = [int(part.replace(" ", "")[::-1]) for part in e.prompt.split("+")]
        assert (len(numbers), {len(str(number)) for number in numbers}) == (count, {digits})
        assert e == oracle(numbers, digits)
        assert len(e.steps) == count - 2
    assert len({len(e.cot) for e in examples}) == 1
    assert {word for e in examples for text in e[:3] for word in text.split()} <= set(Addition().symbols())


@pytest.mark.parametrize("bad", [{"operands": 2}, {"operands": 21}, {"digits": 0}, {"digits": 21}], ids=str)
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(UserError, match=f"task.{next(iter(bad))}="):
        Addition(**bad)


def test_cot_length_is_known() -> None:
    assert Addition().cot_length_known()
