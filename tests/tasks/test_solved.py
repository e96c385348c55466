"""`Task.solved`: the problem of a prompt, as the task itself writes it; None for every other text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common import registry
from stepwise_pl.tasks import Addition, ModularSum, Multiplication, Parity, ProsQA, Task, WordProblems

SIZES = {"train_size": 300, "validation_size": 20, "test_size": 20}
TASKS: list[Task] = [
    Multiplication(digits=3, second_digits=2, min_digits=1, **SIZES),
    Multiplication(digits=4, **SIZES),
    Addition(operands=4, digits=2, **SIZES),
    Parity(bits=9, min_bits=2, **SIZES),
    ModularSum(modulus=5, terms=6, min_terms=3, **SIZES),
]
WRONG = {
    "multiplication": ["", "1 2 3", "1 2 * 0", "1 2 * 3 0", "1 2 3 4 5 * 1 2", "1 2 * 3 *", "12 * 3", "1 2  * 3", " 1 * 2", "1 * 2 "],
    "addition": ["", "1 2 + 3 4 + 5 6", "1 2 + 3 4 + 5 6 + 7", "1 2 + 3 4 + 5 6 + 7 0", "1 2 + 3 4 + 5 6 + 7 x", "1 2 + 3 4 + 5 6+ 7 1"],
    "parity": ["", "0", "0 2", "0 1 x", "0  1", "01", "0 1 " * 5],
    "modular_sum": ["", "1 2", "1 2 5", "1 2 -1", "1 2 3 4 1 2 3", "1 2 ³", "1 2 3 "],
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_prompt_of_a_task_has_its_own_problem_and_no_other_text_has_one(task: Task) -> None:
    examples = [example for split in task.load().values() for example in split.slice(0, 100)]
    wrong = WRONG[task.kind]
    if task == TASKS[1]:  # all operands have four digits
        wrong = [*wrong, "1 2 3 * 1 2 3 4", "1 2 3 4 * 1 2 3"]
    asked = [text for pair in zip([example.prompt for example in examples], wrong * 99, strict=False) for text in pair]
    assert task.solved(asked) == [found for example in examples for found in (example, None)]
    assert task.solved([]) == [] and task.solved(wrong) == [None] * len(wrong)


@given(st.text("0123456789*+ ", max_size=12))
def test_any_text_has_a_problem_with_this_prompt_or_none(text: str) -> None:
    for task in TASKS:
        (found,) = task.solved([text])
        assert found is None or found.prompt == text


def test_a_task_that_does_not_know_says_none() -> None:
    for task in (WordProblems(**SIZES), ProsQA(**SIZES)):
        examples = task.load()["test"].slice(0, 3)
        assert task.solved([example.prompt for example in examples]) == [None] * 3


def test_every_generated_task_of_digits_knows_its_problems() -> None:
    """A task that is added should say its problems, or be named here."""
    known = {
        kind
        for (group, kind), schema in registry.load_all().items()
        if group == "task"
        if schema.solved is not Task.solved
    }
    rest = {kind for group, kind in registry.load_all() if group == "task"} - known
    assert rest == {"word_problems", "prosqa", "gsm8k", "file"}
