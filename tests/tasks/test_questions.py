"""Problems as people type them: `Task.prompt_of` and `Task.readable`."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise_pl.common import registry
from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks import Addition, Multiplication, Task
from stepwise_pl.tasks.modular_sum import ModularSum
from stepwise_pl.tasks.parity import Parity
from stepwise_pl.tasks.prosqa import ProsQA
from stepwise_pl.tasks.word_problems import WordProblems

GENERATED = [
    Multiplication(digits=3, second_digits=2, min_digits=1, train_size=300, validation_size=20, test_size=60),
    Addition(train_size=300),
    ModularSum(train_size=300),
    Parity(min_bits=4, train_size=300),
    WordProblems(train_size=300),
    ProsQA(train_size=300),
]


@pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.kind)
def test_a_prompt_comes_back_from_its_readable_form(task: Task) -> None:
    examples = task.load()["test"].slice(0, 50)
    assert len(examples) == 50
    for example in examples:
        assert task.prompt_of(task.readable(example.prompt)) == example.prompt


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 10**12),
    st.integers(1, 10**12),
    st.sampled_from(["*", " * ", "x", " × ", " times ", " multiplied by "]),
)
def test_a_product_is_read_with_its_digits_in_their_usual_order(first: int, second: int, sign: str) -> None:
    task = Multiplication(digits=13)
    for typed in (f"{first}{sign}{second}", f"What is {first}{sign}{second}?", f" {first:,}{sign}{second:,} = "):
        left, right = task.prompt_of(typed).split(" * ")
        # An independent reading: the value of each digit is its place from the left.
        value = [sum(int(digit) * 10**place for place, digit in enumerate(side.split())) for side in (left, right)]
        assert value == [first, second]


def test_the_answer_is_right_in_its_usual_order() -> None:
    rng = random.Random(0)
    task = Multiplication(digits=3)
    for _ in range(50):
        first, second = rng.randint(100, 999), rng.randint(100, 999)
        (problem,) = task.solved([task.prompt_of(f"{first} * {second}")])
        assert problem is not None and int(task.readable(problem.answer)) == first * second
    assert task.readable("0 0 0 0") == "0" and task.readable("0 0 1 0") == "100"
    numbers = [rng.randint(100, 999) for _ in range(4)]
    (problem,) = Addition().solved([Addition().prompt_of(" + ".join(map(str, numbers)))])
    assert problem is not None and int(Addition().readable(problem.answer)) == sum(numbers)


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        ("3 4 1 2", "3 4 1 2"), ("3412", "3 4 1 2"), ("3+4+1+2", "3 4 1 2"), ("3, 4, 1 and", None), ("3,4,1,2", "3 4 1 2"),
        ("What is 3 + 4 + 1 + 2 mod 5?", "3 4 1 2"), ("3 4 1 2 (mod 5)", "3 4 1 2"), ("3 4 1 2 mod 7", None),
        ("12 + 3", None), ("", None), ("-3 4", None), ("7", "7"),
    ],
)  # fmt: skip
def test_digits_of_a_sum(typed: str, prompt: str | None) -> None:
    task = ModularSum(modulus=5, terms=4)
    if prompt is None:
        with pytest.raises(UserError) as error:
            task.prompt_of(typed)
        assert "\n" not in str(error.value)
    else:
        assert task.prompt_of(typed) == prompt


@pytest.mark.parametrize(
    "typed",
    ["38", "38 + 57", "38 * 57 * 2", "-38 * 57", "3.8 * 57", "thirty * two", "", "38 **57", "8 3 * 7 5", "38 * 57 + 1"],
)
def test_what_is_no_product_is_refused_with_an_example_that_is_one(typed: str) -> None:
    task = Multiplication(digits=2)
    with pytest.raises(UserError) as error:
        task.prompt_of(typed)
    example = re.search(r"[0-9]+ \* [0-9]+$", str(error.value))
    assert example is not None and task.solved([task.prompt_of(example[0])]) != [None]


def test_the_examples_in_messages_are_problems_of_their_task() -> None:
    for task in (Addition(digits=5), ModularSum(), Parity(bits=5), Multiplication(digits=6, second_digits=2)):
        with pytest.raises(UserError) as error:
            task.prompt_of("?!")
        example = str(error.value).rpartition("such as ")[2]
        assert task.solved([task.prompt_of(example)]) != [None], example


def test_a_story_is_read_as_people_write_it() -> None:
    typed = "Omar has 96 dollars. He pays 4 dollars for each of 7 puzzles. How many dollars belong to Omar now?"
    prompt = "Omar has 9 6 dollars . He pays 4 dollars for each of 7 puzzles . How many dollars belong to Omar now ?"
    task = WordProblems()
    assert task.prompt_of(typed) == prompt and task.readable(prompt) == typed
    assert set(prompt.split()) <= set(task.symbols())
    assert task.readable("6 8") == "68"


def test_a_task_that_says_nothing_takes_the_text_in_one_line() -> None:
    task = Task()
    assert task.prompt_of("  Rex is\n a gorpus. ") == "Rex is a gorpus." and task.readable("a  b") == "a  b"
    with pytest.raises(UserError, match="the question is empty"):
        task.prompt_of(" \n")
    assert {kind for group, kind in registry.load_all() if group == "task"} >= {task.kind for task in GENERATED}


@pytest.mark.parametrize("typed", ["\ud800", "Tom has \udcff apples"])
def test_half_a_character_is_no_text(typed: str) -> None:
    for task in (Task(), ProsQA(), WordProblems()):
        with pytest.raises(UserError, match="is no text in UTF-8"):
            task.prompt_of(typed)
