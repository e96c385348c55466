"""The results of reasoning steps and the operands, against whole numbers."""

import math
import re

import numpy as np
import pytest

from stepwise_pl.tasks import GSM8K, Addition, Example, Files, ModularSum, Multiplication, ProsQA, Task, WordProblems
from stepwise_pl.tasks.equations import step_results


def some(task: Task) -> list[Example]:
    return task.load()["train"].slice(0, 200)


def whole(text: str) -> int:
    """The number that is written digit by digit, the least significant first."""
    return int(text.replace(" ", "")[::-1])


def test_the_rows_and_sums_of_a_product_are_those_of_its_cot() -> None:
    examples = some(
        Multiplication(digits=4, second_digits=3, min_digits=1, train_size=300, validation_size=9, test_size=9)
    )
    task = Multiplication(digits=4, second_digits=3)
    found = task.results(examples)
    sums = 0
    for row, example in enumerate(examples):
        parts = [part.split("(") for part in example.cot.split("+")]
        # A row is written with zeros in the places below its own.
        rows = [whole(part[0]) // 10**place for place, part in enumerate(parts)]
        assert found["row"][row].tolist() == rows
        written = [whole(part[1].strip(" )")) if len(part) > 1 else math.nan for part in parts]
        np.testing.assert_array_equal(found["partial_sum"][row], written)
        sums += sum(len(part) > 1 for part in parts)
        assert task.operands_of(example) == tuple(number.replace(" ", "") for number in example.prompt.split(" * "))
    assert sums > 20


def test_the_sums_of_an_addition_are_those_of_its_cot() -> None:
    task = Addition(operands=5, digits=2, train_size=300, validation_size=9, test_size=9)
    examples = some(task)
    for example, numbers in zip(examples, task.results(examples)["partial_sum"], strict=True):
        assert numbers.tolist() == [whole(part) for part in example.cot.split(";")]
        assert sum(int(operand[::-1]) for operand in task.operands_of(example)) == whole(example.answer)


def test_the_results_of_a_story_are_the_right_sides_of_its_equations() -> None:
    task = WordProblems(train_size=300, validation_size=9, test_size=9)
    examples = some(task)
    for example, numbers in zip(examples, task.results(examples)["result"], strict=True):
        right = re.findall(r"= ([0-9 ]+) >>", example.cot)
        assert numbers.tolist() == [int(digits.replace(" ", "")) for digits in right]
        assert numbers[-1] == int(example.answer.replace(" ", ""))


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("<<48/2=24>>", 24), ("<<0.5*100=50.25>>", 50.25), ("<<1/4=.25>>", 0.25), ("<<9*2=$18>>", 18), ("<<5-9=-4>>", -4),
        ("<<500*2.4=1,200>>", 1200), ("<< 7 * 4 = 2 8 >>", 28), ("2 * 3 = 6", 6), ("so x = 3 and y = 12 apples", 12),
        ("<<1/2=1/2>>", None), ("no equation 7", None), ("7 =", None), ("= one", None),
    ],
)  # fmt: skip
def test_the_number_behind_the_last_equals_sign_is_the_result(step: str, result: float | None) -> None:
    (found,) = step_results(Example("q", step, "a", (0,)))
    assert found == result if result is not None else math.isnan(found)


def test_gsm8k_and_files_take_the_results_from_the_steps() -> None:
    example = Example.of_steps("q", ["<<48/2=24>>", "then he rests", "<<48+24=72>>"], "72")
    for task in (GSM8K(), Files()):
        (numbers,) = task.results([example])["result"]
        np.testing.assert_array_equal(numbers, [24, math.nan, 72])
        assert task.results([example._replace(steps=())])["result"][0].size == 0


def test_other_tasks_have_neither_results_nor_operands() -> None:
    for task in (ModularSum(train_size=9, validation_size=9, test_size=9), ProsQA()):
        assert task.results([Example("1", "1", "1")]) == {} and task.operands_of(Example("1", "1", "1")) == ()
