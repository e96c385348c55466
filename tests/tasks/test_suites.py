"""Strata and the out-of-distribution suite of multiplication, against Python's integers and plain loops."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.tasks import Example, Examples, Multiplication, Parity
from stepwise_pl.tasks.base import chunks
from stepwise_pl.tasks.long_multiplication import carries
from stepwise_pl.tasks.multiplication_ood import PARTS

Pair = tuple[str, str]  # operands as written, least significant digit first

TASKS = [
    Multiplication(digits=2, train_size=5_000),
    Multiplication(digits=2, train_size=3_000, split="unordered", seed=4),
    Multiplication(digits=3, second_digits=2, train_size=40_000),
    Multiplication(digits=4, train_size=20_000),
    Multiplication(digits=4, min_digits=2, train_size=20_000, split="unordered"),
    Multiplication(digits=12, train_size=2_000),
]
IDS = ["2x2", "2x2-unordered", "3x2", "4x4", "mixed", "12x12"]


def listed(examples: Examples) -> list[Example]:
    return [example for chunk in chunks(examples) for example in chunk]


def pair(example: Example) -> Pair:
    first, second = example.prompt.replace(" ", "").split("*")
    return first, second


@pytest.fixture(params=TASKS, ids=IDS, scope="module")
def built(request) -> tuple[Multiplication, list[Example], dict[str, list[Example]]]:
    task = request.param
    splits = task.load()
    return task, listed(splits["train"]), {name: listed(part) for name, part in task.ood(splits, 200).items()}


def schoolbook(first: str, second: str) -> int:
    """Count the carries digit by digit, as with pencil and paper."""
    a, b = list(map(int, first)), list(map(int, second))
    count, total = 0, [0] * (len(a) + len(b) + 1)
    for place, digit in enumerate(b):
        row, carry = [0] * len(total), 0
        for i, x in enumerate(a):
            value = x * digit + carry
            row[place + i], carry = value % 10, value // 10
            count += carry > 0
        row[place + len(a)] = carry
        carry = 0
        for i in range(len(total)):
            value = total[i] + row[i] + carry
            total[i], carry = value % 10, value // 10
            count += carry > 0
    assert int("".join(map(str, total))[::-1]) == int(first[::-1]) * int(second[::-1])
    return count


operand = st.text("0123456789", min_size=1, max_size=8)


@given(operand, operand)
def test_carries_are_those_of_pencil_and_paper(first: str, second: str) -> None:
    assert carries(first, second) == schoolbook(first, second)


def test_carries_by_hand() -> None:
    assert carries("1", "9") == 0
    assert carries("4", "3") == 1  # 12
    assert carries("99", "9") == 2  # 81, and 8 + 81
    assert carries("52", "52") == 2 + 1 + 0  # 25 * 25: in the rows 125 and 500, and in their sum
    assert carries("99", "11") == 0 + 2  # 99 + 990: 9 + 9 is 18, and 9 + 1 is 10


@given(st.integers(1, 10**4 - 1), st.integers(1, 10**4 - 1), st.integers(4, 6))
def test_strata_follow_from_the_prompt(a: int, b: int, width: int) -> None:
    first, second = str(a).zfill(width)[::-1], str(b)[::-1]
    example = Example(f"{' '.join(first)} * {' '.join(second)}", "", "")
    strata = Multiplication(digits=4).strata(example)
    assert list(strata) == ["operand lengths", "zeros in operands", "carries"]
    assert strata["operand lengths"] == f"{width}x{len(second)}"
    assert strata["zeros in operands"] == str(sum(c == "0" for c in first + second))
    low, high = map(int, strata["carries"].split("-"))
    assert low <= schoolbook(first, second) <= high
    assert (low % 4, high - low) == (0, 3)


def test_strata_of_other_texts_and_tasks() -> None:
    assert Multiplication().strata(Example("12 * 34", "", "408")) == {}
    assert Multiplication().strata(Example("how many ?", "", "4")) == {}
    assert Parity().strata(Example("1 2 * 3 4", "", "")) == {}


def test_the_parts_hold_right_long_multiplications(built) -> None:
    """Leading zeros are written: rows and answer are as wide as the written operands ask for."""
    _, _, parts = built
    assert tuple(parts) == PARTS
    for name, examples in parts.items():
        for example in examples:
            first, second = pair(example)
            a, b = int(first[::-1]), int(second[::-1])
            assert example.answer.replace(" ", "") == str(a * b).zfill(len(first) + len(second))[::-1], name
            rows = example.cot.split("+")
            total = 0
            for i, (row, digit) in enumerate(zip(rows, second, strict=True)):
                total += a * int(digit) * 10**i
                width = len(first) + 1 + i
                wanted = str(a * int(digit) * 10**i).zfill(width)[::-1]
                if 0 < i < len(second) - 1:
                    wanted += f"({str(total).zfill(width)[::-1]})"
                assert row.replace(" ", "") == wanted


def test_no_problem_was_trained_on(built) -> None:
    task, train, parts = built
    prompts = {example.prompt for example in train}
    trained = {pair(example) for example in train}
    for name, examples in parts.items():
        assert not prompts & {example.prompt for example in examples}, name
        assert len({example.prompt for example in examples}) == len(examples)
        if task.split == "unordered" and name != "swapped":
            assert not trained & {pair(example)[::-1] for example in examples}, name


def test_the_parts_match_their_names(built) -> None:
    _, train, parts = built
    trained = {pair(example) for example in train}
    lengths = [{len(one[place]) for one in trained} for place in (0, 1)]
    shortest = [min(some) for some in lengths]
    pairs = {name: [pair(example) for example in examples] for name, examples in parts.items()}
    assert all(one[::-1] in trained for one in pairs["swapped"])
    for first, second in pairs["fewer_digits"]:
        assert len(first) < shortest[0] or len(second) < shortest[1]
        assert first[-1] != "0" != second[-1]
    for first, second in pairs["leading_zeros"]:
        assert first[-1] == "0" or second[-1] == "0"
        assert int(first) and int(second)
    for first, second in pairs["repeated_digits"]:
        assert len(set(first)) == len(set(second)) == 1
    for first, second in pairs["carry_heavy"]:
        assert set(first + second) <= set("789")
    for one in pairs["zero_heavy"]:
        assert "0" in "".join(one)
        assert all(2 * text[:-1].count("0") >= len(text) - 1 and text[-1] != "0" for text in one)
    for name in set(pairs) - {"fewer_digits"}:
        assert all(len(one[place]) in lengths[place] for one in pairs[name] for place in (0, 1)), name


def candidates(task: Multiplication, digits: str) -> Iterator[Pair]:
    """Return all pairs of two-digit operands made of these digits."""
    numbers = [low + high for low in digits for high in digits]
    return ((first, second) for first in numbers for second in numbers)


@pytest.mark.parametrize("task", TASKS[:2], ids=IDS[:2])
def test_small_parts_are_complete(task: Multiplication) -> None:
    """If a part has few problems, every problem that was not trained on is found."""
    splits = task.load()
    trained = {pair(example) for example in listed(splits["train"])}
    seen = trained | {one[::-1] for one in trained} if task.split == "unordered" else trained
    parts = {name: {pair(example) for example in listed(part)} for name, part in task.ood(splits, 10_000).items()}
    assert parts["repeated_digits"] == {(2 * a, 2 * b) for a in "123456789" for b in "123456789"} - seen
    assert parts["carry_heavy"] == set(candidates(task, "789")) - seen
    assert parts["zero_heavy"] == {(f"0{a}", f"0{b}") for a in "123456789" for b in "123456789"} - seen
    assert parts["swapped"] == {one[::-1] for one in trained} - trained
    assert all(parts[name] for name in ("carry_heavy", "zero_heavy", "swapped"))
    assert len(parts["fewer_digits"]) == 9 * 9 + 2 * 9 * 90


def test_swapped_needs_the_same_shape() -> None:
    task = TASKS[2]
    assert len(task.ood(task.load(), 10)["swapped"]) == 0


def test_the_same_config_gives_the_same_suite_and_another_seed_another() -> None:
    def suite(seed: int) -> dict[str, list[Example]]:
        task = Multiplication(digits=4, train_size=1_000, seed=seed)
        return {name: listed(part) for name, part in task.ood(task.load(), 50).items()}

    assert suite(0) == suite(0)
    assert all(part != suite(0)[name] for name, part in suite(1).items())
    assert all(len(part) == 50 for part in suite(0).values())
