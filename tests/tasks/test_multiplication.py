"""Multiplication: the format against plain integer arithmetic and real files; the split against its promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks import EASY, SPLITS, Example, Files, Multiplication, multiplication
from stepwise_pl.tasks.base import chunks, write_lines
from stepwise_pl.tasks.multiplication import render


def spaced(number: int, width: int) -> str:
    """Return the digits, least significant first, padded with zeros."""
    return " ".join(str(number).zfill(width)[::-1])


def oracle(a: int, b: int) -> Example:
    """Return the line of the format, made from Python integers."""
    width, count = len(str(a)), len(str(b))
    pieces, total = [], 0
    for i, digit in enumerate(reversed(str(b))):
        row = a * int(digit) * 10**i
        total += row
        pieces.append(("+ " if i else "") + spaced(row, width + 1 + i))
        if 0 < i < count - 1:
            pieces.append(f"( {spaced(total, width + 1 + i)} )")
    return Example(f"{spaced(a, 0)} * {spaced(b, 0)}", " ".join(pieces), spaced(a * b, width + count))


def operands(pairs: list[tuple[int, int]]) -> np.ndarray:
    width = max(len(str(n)) for pair in pairs for n in pair)
    return np.array([[[int(c) for c in str(n).zfill(width)[::-1]] for n in pair] for pair in pairs], np.uint8)


def numbers(example: Example) -> tuple[int, int]:
    a, b = (int(part.replace(" ", "")[::-1]) for part in example.prompt.split("*"))
    return a, b


@given(st.lists(st.tuples(st.integers(1, 10**22), st.integers(1, 10**22)), min_size=1, max_size=6))
def test_render_is_long_multiplication(pairs: list[tuple[int, int]]) -> None:
    assert [e._replace(steps=()) for e in render(operands(pairs))] == [oracle(a, b) for a, b in pairs]


def test_the_worked_example_of_the_method() -> None:
    line = (
        "9 1 7 3 * 9 4 3 3||1 7 4 3 3 + 0 6 7 8 4 1 ( 1 3 2 2 8 1 ) + 0 0 7 5 1 1 1 ( 1 3 9 7 9 2 1 ) "
        "+ 0 0 0 7 5 1 1 1 #### 1 3 9 4 5 4 2 1"
    )
    assert render(operands([(3719, 3349)]))[0].line() == line


@pytest.mark.parametrize("size", ["4x4", "5x5"])
def test_real_files_come_out_byte_for_byte(shared_data, size: str) -> None:
    lines = (shared_data / "multiplication" / f"{size}_valid.txt").read_text().splitlines()
    pairs = [numbers(Example(line.split("||")[0], "", "")) for line in lines]
    assert len(lines) == 1000
    assert [example.line() for example in render(operands(pairs))] == lines


def all_examples(task: Multiplication) -> dict[str, list[Example]]:
    return {name: [e for chunk in chunks(split, 999) for e in chunk] for name, split in task.load().items()}


@pytest.mark.parametrize("split", ["ordered", "unordered"])
@pytest.mark.parametrize(
    "digits,second,shortest",
    [(1, 1, 1), (2, 2, 2), (3, 3, 3), (3, 2, 2), (3, 3, 1), (3, 2, 1), (6, 6, 6), (6, 6, 2), (7, 4, 3), (20, 20, 20)],
)
def test_splits_never_share_a_pair(digits: int, second: int, shortest: int, split: str) -> None:
    min_digits = shortest if shortest < second else None
    task = Multiplication(
        digits=digits, second_digits=second, min_digits=min_digits, split=split, train_size=20_000, seed=3
    )
    pairs = {name: [numbers(e) for e in part] for name, part in all_examples(task).items()}
    for name, part in pairs.items():
        assert len(set(part)) == len(part) > 0, name
        for place, longest in enumerate((digits, second)):
            lengths = {len(str(pair[place])) for pair in part}
            assert lengths <= set(range(min_digits or longest, longest + 1))
    key = (lambda pair: tuple(sorted(pair))) if split == "unordered" else (lambda pair: pair)
    classes = {name: {key(pair) for pair in part} for name, part in pairs.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not classes[one] & classes[other]
    if split == "unordered":
        assert all(len(classes[name]) == len(pairs[name]) for name in ("validation", "test"))


@pytest.mark.long
@pytest.mark.parametrize("split", ["ordered", "unordered"])
def test_easy_problems_are_training_problems_with_more_zeros(split: str) -> None:
    settings = {"digits": 3, "split": split, "train_size": 100_000, "validation_size": 5_000, "test_size": 5_000}
    plain, zeroed = Multiplication(**settings).load(), Multiplication(**settings, zeros=0.3).load()
    assert set(plain) == set(SPLITS) and set(zeroed) == {*SPLITS, EASY}
    for name in SPLITS:
        assert list(plain[name].slice(0, 100_000)) == list(zeroed[name].slice(0, 100_000))
    easy = [numbers(e) for e in zeroed[EASY].slice(0, 100_000)]
    held_out = {tuple(numbers(e)) for name in ("validation", "test") for e in zeroed[name].slice(0, 5_000)}
    held_out |= {(b, a) for a, b in held_out} if split == "unordered" else set()
    assert not held_out & set(easy)
    assert 90_000 < len(easy) < 100_000  # the others became held-out problems, and were dropped
    digits = np.array([[*f"{a}", *f"{b}"] for a, b in easy], int)
    # One digit in ten is 0 before zeros are added, except the leading digit.
    assert np.allclose((digits == 0).mean(0), [0, 0.37, 0.37] * 2, atol=0.02)


def test_3x3_has_exactly_the_papers_810_000_pairs() -> None:
    splits = Multiplication(digits=3).load()
    assert [len(splits[name]) for name in SPLITS] == [808_000, 1_000, 1_000]


def test_a_shortage_is_reported() -> None:
    splits = Multiplication(digits=1).load()
    assert sum(len(splits[name]) for name in SPLITS) == 81
    assert [note.split(";")[0] for note in splits.notes] == [
        f"{name}: {len(splits[name])} of the {asked} problems asked for"
        for name, asked in (("train", 808_000), ("validation", 1_000), ("test", 1_000))
    ]
    assert not Multiplication(digits=3).load().notes


@pytest.mark.long
@pytest.mark.parametrize("digits", [3, 5])
def test_held_out_sets_do_not_depend_on_the_training_size(digits: int) -> None:
    small, large = (all_examples(Multiplication(digits=digits, train_size=n)) for n in (1_000, 150_000))
    assert small["test"] == large["test"]
    assert small["validation"] == large["validation"]
    assert small["train"] == large["train"][:1_000]
    assert small == all_examples(Multiplication(digits=digits, train_size=1_000))
    assert small["test"] != all_examples(Multiplication(digits=digits, train_size=1_000, seed=1))["test"]


def test_mixed_lengths_come_equally_often() -> None:
    lengths = [
        tuple(len(part.split()) for part in e.prompt.split("*"))
        for e in all_examples(Multiplication(digits=9, min_digits=6, train_size=16_000))["train"]
    ]
    counts = np.array([lengths.count((i, j)) for i in range(6, 10) for j in range(6, 10)])
    assert counts.sum() == 16_000
    assert abs(counts - 1_000).max() < 5 * np.sqrt(1_000)  # five standard deviations


def test_written_lines_read_back(tmp_path) -> None:
    splits = Multiplication(digits=3, train_size=500).load()
    for name in SPLITS:
        write_lines(splits[name], tmp_path / f"{name}.txt")
    again = Files(**{name: str(tmp_path / f"{name}.txt") for name in SPLITS}).load()
    for name in SPLITS:
        written = [
            e._replace(steps=()) for chunk in chunks(splits[name]) for e in chunk
        ]  # a line has no place for them
        assert list(again[name].slice(0, len(again[name]))) == written


def test_a_step_is_a_row_and_its_running_sum() -> None:
    example = render(operands([(3719, 3349)]))[0]
    ends = [*example.steps[1:], len(example.cot)]
    assert [example.cot[a:b].strip() for a, b in zip(example.steps, ends, strict=True)] == [
        "1 7 4 3 3", "+ 0 6 7 8 4 1 ( 1 3 2 2 8 1 )", "+ 0 0 7 5 1 1 1 ( 1 3 9 7 9 2 1 )", "+ 0 0 0 7 5 1 1 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "bad", [{"digits": 0}, {"digits": 2, "min_digits": 3}, {"split": "half"}, {"train_size": 0}, {"seed": -1}]
)
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(UserError, match=f"task.{list(bad)[-1]}="):
        Multiplication(**bad)


@pytest.mark.parametrize("split", ["ordered", "unordered"])
def test_problems_that_were_drawn_stay_when_more_chunks_are_drawn(split: str, monkeypatch) -> None:
    monkeypatch.setattr(multiplication, "CHUNK", 64)
    sizes = {"digits": 4, "split": split, "validation_size": 15, "test_size": 15}
    small, large = (all_examples(Multiplication(train_size=size, **sizes)) for size in (20, 500))
    assert [len(large[name]) for name in SPLITS] == [500, 15, 15]
    assert (small["test"], small["validation"]) == (large["test"], large["validation"])
    assert small["train"] == large["train"][:20]
    classes = [
        tuple(sorted(numbers(e))) if split == "unordered" else numbers(e)
        for name in ("test", "train")
        for e in large[name]
    ]
    assert not set(classes[:15]) & set(classes[15:])
