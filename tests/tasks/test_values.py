"""The quantities behind answers, against arithmetic on whole numbers, and their places beside the tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.cache import encoded_splits
from stepwise_pl.data.tokenizers import tokenizer_for
from stepwise_pl.tasks import Addition, ModularSum, Multiplication, Parity, Task, WordProblems
from stepwise_pl.tasks.long_multiplication import place_sums

TASKS: list[Task] = [
    Multiplication(digits=3, second_digits=2, min_digits=1, train_size=300, validation_size=20, test_size=20),
    Addition(operands=4, digits=2, train_size=300, validation_size=20, test_size=20),
    Parity(bits=9, min_bits=2, train_size=300, validation_size=20, test_size=20),
    ModularSum(modulus=5, terms=6, min_terms=3, train_size=300, validation_size=20, test_size=20),
]
DIGITS = st.text("0123456789", min_size=1, max_size=8)


@given(DIGITS, DIGITS)
def test_the_sums_of_a_product_are_those_of_whole_numbers(first: str, second: str) -> None:
    def below(place: int) -> int:
        """The part of the product made of the digits whose places add up to less than `place`."""
        pairs = ((i, j) for i in range(len(first)) for j in range(len(second)) if i + j < place)
        return sum(int(first[i]) * int(second[j]) * 10 ** (i + j) for i, j in pairs)

    places = range(len(first) + len(second))
    found = place_sums(first, second)
    assert found["running_sum"].tolist() == [below(k + 1) // 10**k for k in places]
    assert found["carry"].tolist() == [below(k) // 10**k for k in places]
    assert (found["running_sum"] == found["carry"] + found["products"]).all()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_the_last_digit_of_a_running_sum_is_the_digit_of_the_answer(task: Task) -> None:
    base = {"parity": 2, "modular_sum": 5}.get(task.kind, 10)
    examples = task.load()["train"].slice(0, 300)
    for example, numbers in zip(examples, task.values("running_sum", examples), strict=True):
        assert [int(number) % base for number in numbers] == [int(digit) for digit in example.answer.split()]


def test_the_running_sums_of_an_addition_are_those_of_whole_numbers() -> None:
    task = TASKS[1]
    examples = task.load()["train"].slice(0, 300)
    found = {name: task.values(name, examples) for name in task.quantities()}
    for row, example in enumerate(examples):
        operands = [int(operand.replace(" ", "")[::-1]) for operand in example.prompt.split(" + ")]
        for place in range(len(example.answer.split())):
            below = sum(operand % 10 ** (place + 1) for operand in operands)
            assert found["running_sum"][row][place] == below // 10**place
            assert found["carry"][row][place] == sum(operand % 10**place for operand in operands) // 10**place


def batch_of(task: Task) -> CoTBatch:
    encoded = encoded_splits(task, tokenizer_for(task, "symbols"), values=("running_sum",))
    return encoded["train"].take(np.arange(0, 300, 2)).collate(np.array([3, 0, 140, 7]))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("gone", [0, 2, 1000])
def test_each_number_stands_beside_its_digit(task: Task, side: str, gone: int) -> None:
    tokenizer = tokenizer_for(task, "symbols")
    base = {"parity": 2, "modular_sum": 5}.get(task.kind, 10)
    batch = batch_of(task)
    view = batch.remove(gone, side)
    for moved in (view, view.row(2), CoTBatch.stack([view.row(1), view]), view.to("cpu")):
        numbers = moved.values["running_sum"]
        there = ~numbers.isnan()
        assert (moved.part[there] == Part.ANSWER).all()
        digits = [int(str(tokenizer.decode([token]))) for token in moved.tokens[there].tolist()]
        assert digits == (numbers[there] % base).long().tolist()
        assert torch.equal(there.sum(1), moved.length_of(Part.ANSWER) - 3)  # separator, mark and end token


def test_values_come_from_the_cache_as_they_went_in(tmp_path, monkeypatch) -> None:
    task = TASKS[0]
    tokenizer = tokenizer_for(task, "symbols")
    folder = str(tmp_path)
    first = encoded_splits(task, tokenizer, cache_dir=folder, values=("carry", "running_sum"))
    plain = encoded_splits(task, tokenizer, cache_dir=folder)
    monkeypatch.setattr(Multiplication, "values", None)  # nothing is computed again
    again = encoded_splits(task, tokenizer, cache_dir=folder, values=("carry", "running_sum"))
    for split, examples in first.items():
        assert not plain[split].values
        for name in ("carry", "running_sum"):
            np.testing.assert_array_equal(again[split].values[name], examples.values[name])


def test_a_quantity_that_a_task_lacks_is_named() -> None:
    with pytest.raises(UserError, match="method.value=carry: task=parity has no such quantity; it has running_sum"):
        encoded_splits(TASKS[2], tokenizer_for(TASKS[2], "symbols"), values=("carry",))
    words = WordProblems(train_size=20, validation_size=5, test_size=5)
    with pytest.raises(UserError, match="method.value=carry: task=word_problems has no such quantity; it has none"):
        encoded_splits(words, tokenizer_for(words, "symbols"), values=("carry",))


def test_a_tokenizer_that_joins_digits_is_refused(byte_folder) -> None:
    from stepwise_pl.data.tokenizers import load_tokenizer

    task = TASKS[0]
    tokenizer = load_tokenizer("model.tokenizer", str(byte_folder))
    with pytest.raises(
        UserError, match="running_sum has 3 numbers, and the answer '4 8 0' has 5 tokens; a loss on running_sum needs"
    ):
        encoded_splits(task, tokenizer, values=("running_sum",))
