"""The problems of a probe: from which splits they come, and that the sides share nothing."""

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.inside.problems import OPERANDS, PROBLEMS, Problems, draw_problems
from stepwise_pl.tasks import Addition, Example, ExampleList, ModularSum, Multiplication, Task


def everything(task: Task, *names: str) -> set[str]:
    splits = task.load()
    return {example.prompt for name in names for example in splits[name].slice(0, len(splits[name]))}


def sides(found: Problems) -> tuple[list[Example], list[Example]]:
    return found.texts[: found.num_fit], found.texts[found.num_fit :]


TASKS = [
    Multiplication(digits=2, train_size=4000, validation_size=300, test_size=300),
    Addition(operands=3, digits=2, train_size=4000, validation_size=300, test_size=300),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_no_operand_is_on_both_sides(task: Task) -> None:
    found = draw_problems(task, task.load(), 500, 500)
    assert found.split == OPERANDS and "no operand is on both sides" in found.line(task)
    fit, scored = ({operand for each in side for operand in task.operands_of(each)} for side in sides(found))
    assert len(fit) > 20 and len(scored) > 20 and not fit & scored
    # Without the split almost every operand would be on both sides.
    plain = draw_problems(task, task.load(), 500, 500, PROBLEMS)
    fit, scored = ({operand for each in side for operand in task.operands_of(each)} for side in sides(plain))
    assert len(fit & scored) > len(scored) / 2 and "split by problem" in plain.line(task)


@pytest.mark.parametrize("split", [OPERANDS, PROBLEMS])
def test_problems_to_fit_are_of_the_training_split_and_the_others_held_out(split: str) -> None:
    task = TASKS[0]
    found = draw_problems(task, task.load(), 400, 100, split)
    fit, scored = sides(found)
    assert (len(fit), len(scored)) == (400, 100)
    assert {each.prompt for each in fit} <= everything(task, "train")
    for name in ("validation", "test"):  # both take part
        assert 30 < len({each.prompt for each in scored} & everything(task, name)) < 70
    assert len({each.prompt for each in found.texts}) == 500
    again = draw_problems(task, task.load(), 400, 100, split)
    assert again == found


def test_a_task_without_operands_is_split_by_problem() -> None:
    task = ModularSum(modulus=3, terms=6, train_size=400, validation_size=50, test_size=50)
    found = draw_problems(task, task.load(), 4000, 2000)
    assert (found.num_fit, found.num_scored, found.split) == (400, 100, PROBLEMS)
    assert "400 problems to fit, 100 to score; split by problem (task=modular_sum names no operands)" in found.line(
        task
    )


def test_a_prompt_that_is_in_two_splits_is_not_scored() -> None:
    train = ExampleList(Example(str(number), "", "1") for number in range(100))
    other = ExampleList(Example(str(number), "", "1") for number in range(90, 120))
    found = draw_problems(Task(), {"train": train, "validation": other, "test": ExampleList()}, 100, 100)
    fit, scored = sides(found)
    assert len(fit) == 100 and sorted(int(each.prompt) for each in scored) == list(range(100, 120))


def test_large_splits_are_drawn_from_all_over() -> None:
    train = ExampleList(Example(str(number), "", "1") for number in range(50_000))
    other = ExampleList(Example(f"other {number}", "", "1") for number in range(50))
    found = draw_problems(Task(), {"train": train, "validation": other, "test": other}, 1000, 50)
    numbers = sorted(int(each.prompt) for each in sides(found)[0])
    assert numbers[0] < 1000 and numbers[-1] > 49_000 and len(set(numbers)) == 1000


def test_too_few_problems_are_one_line() -> None:
    task = Multiplication(digits=1, train_size=40, validation_size=8, test_size=8)
    with pytest.raises(
        UserError, match=r"too few different problems for a probe: \d+ to fit and \d+ to score, .*split=problems"
    ):
        draw_problems(task, task.load(), 100, 100)
    empty = {"train": ExampleList(), "validation": ExampleList(), "test": ExampleList()}
    with pytest.raises(UserError, match="0 to fit and 0 to score, at least 20 and 10 are needed$"):
        draw_problems(task, empty, 100, 100)


def test_a_problem_that_comes_twice_is_fitted_or_scored_once() -> None:
    train = ExampleList(Example(str(number % 60), "", "1") for number in range(200))
    other = ExampleList(Example(f"other {number % 30}", "", "1") for number in range(50))
    found = draw_problems(Task(), {"train": train, "validation": other, "test": other}, 100, 100)
    fit, scored = sides(found)
    assert len(fit) == len({each.prompt for each in fit}) == 60
    assert len(scored) == len({each.prompt for each in scored}) == 30


def test_more_problems_than_a_machine_counts_are_all_problems() -> None:
    train = ExampleList(Example(str(number), "", "1") for number in range(30))
    other = ExampleList(Example(f"other {number}", "", "1") for number in range(10))
    found = draw_problems(Task(), {"train": train, "validation": other, "test": ExampleList()}, 10**30, 10**30)
    assert (found.num_fit, found.num_scored) == (30, 10)
