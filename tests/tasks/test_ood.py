"""The suites out of distribution of sums, stories and graphs: right by other arithmetic, new, and true to their names."""

import re
from collections import defaultdict
from itertools import accumulate, pairwise
from typing import Any

import pytest

from stepwise_pl.tasks import Addition, Example, ModularSum, Parity, ProsQA, WordProblems
from stepwise_pl.tasks.base import Examples, Task, chunks
from stepwise_pl.tasks.prosqa_graphs import CONCEPTS
from stepwise_pl.tasks.stories import vocabulary
from stepwise_pl.tasks.story_phrases import BOYS, GIRLS
from stepwise_pl.tasks.word_problems_ood import OTHER_BOYS, OTHER_GIRLS, OTHER_SHOPS

SIZES = {"train_size": 300, "validation_size": 20, "test_size": 20}
TASKS: list[Task] = [
    Parity(**SIZES, bits=9),
    Parity(**SIZES, bits=9, min_bits=4),
    ModularSum(**SIZES),
    ModularSum(**SIZES, modulus=10, terms=1),
    Addition(**SIZES),
    Addition(**SIZES, operands=3, digits=1),
    Addition(**SIZES, operands=20, digits=20),
    WordProblems(**SIZES),
    WordProblems(**SIZES, min_steps=1, max_steps=8),
    ProsQA(**SIZES),
]
IDS = [f"{task.kind}-{place}" for place, task in enumerate(TASKS)]
Parts = dict[str, list[Example]]


def listed(examples: Examples) -> list[Example]:
    return [example for chunk in chunks(examples) for example in chunk]


@pytest.fixture(params=TASKS, ids=IDS, scope="module")
def built(request) -> tuple[Any, list[Example], Parts]:
    splits = request.param.load()
    parts = {name: listed(part) for name, part in request.param.ood(splits, 60).items()}
    return request.param, listed(splits["train"]), parts


def digits(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def number(text: str) -> int:
    return int(text.replace(" ", ""))


def check_running_sums(task: Any, example: Example) -> None:
    modulus = 2 if isinstance(task, Parity) else task.modulus
    assert digits(example.cot) == [total % modulus for total in accumulate(digits(example.prompt))]
    assert example.answer == example.cot.split()[-1]
    assert example.steps == tuple(range(0, len(example.cot), 2))


def check_addition(task: Any, example: Example) -> None:
    operands = [int(operand.replace(" ", "")[::-1]) for operand in example.prompt.split("+")]
    *sums, total = list(accumulate(operands))[1:]
    assert [int(text.replace(" ", "")[::-1]) for text in example.cot.split(";")] == sums
    assert int(example.answer.replace(" ", "")[::-1]) == total
    assert [example.cot[at] for at in example.steps[1:]] == [";"] * (len(sums) - 1)


def check_story(task: Any, example: Example) -> None:
    """Every equation holds; operands come from the text, from words or from earlier results; the last result is the answer."""
    known = {number(text) for text in re.findall(r"\d(?: \d)*", example.prompt)} | {2, 3, 4}
    assert len(example.steps) == example.cot.count("<<")
    for step in example.cot.split(" >>")[:-1]:
        left, right = step.removeprefix(" ").removeprefix("<< ").split(" = ")
        sign = re.search(r"[-+*/]", left)[0]
        a, b = map(number, left.split(sign))
        assert {a, b} <= known
        exact = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
        assert exact == number(right)
        known.add(number(right))
    assert number(example.answer) == number(right)


def check_graph(task: Any, example: Example) -> None:
    """The CoT is a shortest chain of facts from the person to the answer, and no chain leads to the other choice."""
    *facts, question = re.findall(r"[^.?]+[.?]", example.prompt)
    below = defaultdict(set)
    for fact in facts:
        above, under = re.fullmatch(r" ?(?:Every )?(\w+) is an? (\w+)\.", fact).groups()
        below[above].add(under)
    person, one, other = re.fullmatch(r" Is (\w+) a (\w+) or (\w+)\?", question).groups()
    distance, layer, steps = {person: 0}, {person}, 0
    while layer:
        steps += 1
        layer = {under for above in layer for under in below[above]} - distance.keys()
        distance |= dict.fromkeys(layer, steps)
    (right,) = {one, other} & distance.keys()
    assert example.answer == f"{person} is a {right}."
    chain = [sentence.strip() for sentence in re.findall(r"[^.]+\.", example.cot)]
    assert len(chain) == len(example.steps) == distance[right]
    ends = [re.fullmatch(r"(?:Every )?(\w+) is a (\w+)\.", sentence).groups() for sentence in chain]
    assert [ends[0][0], ends[-1][1]] == [person, right]
    assert all(a[1] == b[0] for a, b in pairwise(ends))
    assert {sentence in example.prompt for sentence in chain} == {True}


CHECKS = {
    "parity": check_running_sums, "modular_sum": check_running_sums, "addition": check_addition,
    "word_problems": check_story, "prosqa": check_graph,
}  # fmt: skip


def test_every_problem_is_right(built) -> None:
    task, _, parts = built
    for examples in parts.values():
        for example in examples:
            CHECKS[task.kind](task, example)


def test_no_problem_was_trained_on_and_none_occurs_twice(built) -> None:
    _, train, parts = built
    trained = {example.prompt for example in train}
    assert len(parts) >= 3
    for name, examples in parts.items():
        prompts = {example.prompt for example in examples}
        assert len(prompts) == len(examples) <= 60, name
        assert not prompts & trained, name
    assert any(len(examples) == 60 for examples in parts.values())


@pytest.mark.parametrize("kind", [ModularSum, Addition, WordProblems, ProsQA])
def test_the_same_task_gives_the_same_suite_and_another_seed_another(kind: type) -> None:
    def suite(seed: int) -> Parts:
        task = kind(**SIZES, seed=seed)
        return {name: listed(part) for name, part in task.ood(task.load(), 10).items()}

    first = suite(0)
    assert suite(0) == first
    assert all(part != first[name] for name, part in suite(1).items())


def test_stories_do_not_begin_as_those_trained_on() -> None:
    """A few do by chance. All would, if a part drew its stories from the seeds of the training split."""
    task = WordProblems(**SIZES)
    splits = task.load()
    trained = {example.prompt.split(" . ")[0] for example in listed(splits["train"])}
    for name, part in task.ood(splits, 60).items():
        assert sum(example.prompt.split(" . ")[0] in trained for example in listed(part)) < 12, name


def test_the_parts_of_digit_strings_match_their_names() -> None:
    for task in TASKS[:4]:
        modulus, fewest, most = task.shape()
        parts = {name: listed(part) for name, part in task.ood(task.load(), 60).items()}
        lengths = {
            name: {len(example.prompt.split()) for example in examples} for name, examples in parts.items() if examples
        }
        wanted = {
            "shorter": {fewest - 1},
            "longer": {most + 1},
            "half_longer": {most + most // 2},
            "twice_as_long": {2 * most},
        }
        for name in wanted.keys() & lengths.keys():
            assert lengths[name] == wanted[name]
        assert ("shorter" in parts) == (fewest > 1)
        for name, value in (("zero_heavy", 0), ("high_heavy", modulus - 1)):
            for example in parts[name]:
                found = digits(example.prompt)
                assert fewest <= len(found) <= most and 4 * found.count(value) >= 3 * len(found)


def test_the_parts_of_sums_match_their_names() -> None:
    def shapes(task: Addition) -> dict[str, set[tuple[int, int]]]:
        return {
            name: {
                (example.prompt.count("+") + 1, len(example.prompt.split(" + ")[0].split())) for example in listed(part)
            }
            for name, part in task.ood(task.load(), 60).items()
        }

    assert shapes(Addition(**SIZES)) == {
        "fewer_digits": {(4, 2)}, "more_digits": {(4, 4)}, "twice_digits": {(4, 6)}, "fewer_operands": {(3, 3)},
        "more_operands": {(5, 3)}, "twice_operands": {(8, 3)}, "leading_zeros": {(4, 3)}, "carry_heavy": {(4, 3)},
    }  # fmt: skip
    assert shapes(TASKS[5]).keys() == {"more_digits", "more_operands", "twice_operands", "leading_zeros", "carry_heavy"}
    assert shapes(TASKS[6]).keys() == {"fewer_digits", "fewer_operands", "leading_zeros", "carry_heavy"}
    task = Addition(**SIZES)
    for example in listed(task.ood(task.load(), 60)["leading_zeros"]):
        assert any(operand.endswith(" 0") for operand in example.prompt.split(" + "))
        assert all(set(operand) - set("0 ") for operand in example.prompt.split(" + "))


def test_the_parts_of_stories_match_their_names() -> None:
    task = WordProblems(**SIZES)
    parts = {name: listed(part) for name, part in task.ood(task.load(), 60).items()}
    steps = {name: {len(example.steps) for example in examples} for name, examples in parts.items()}
    assert (steps["fewer_steps"], steps["more_steps"], steps["twice_the_steps"]) == ({1}, {5, 6}, {8})
    assert all(steps[name] == {2, 3, 4} for name in ("other_names", "other_things", "other_templates", "distractor"))
    strangers = {word for names in (OTHER_GIRLS, OTHER_BOYS, *OTHER_SHOPS) for name in names for word in name.split()}
    known = set(vocabulary())
    for name, examples in parts.items():
        for example in examples:
            words = {word for text in example[:3] for word in text.split()}
            assert words - known <= (strangers if name == "other_names" else set()), name
            assert name != "other_names" or words & (strangers - {"the"})
    for example in parts["more_digits"]:
        assert max(map(number, re.findall(r"\d(?: \d)*", example.prompt))) > 999
    for example in parts["distractor"]:
        said = [number(text) for text in re.findall(r"\d(?: \d)*", example.prompt)]
        used = {number(text) for step in re.findall(r"<< (.+?) =", example.cot) for text in re.split(r" [-+*/] ", step)}
        assert len([value for value in said if value not in used]) == 1
    for example in parts["other_things"]:
        things = set(example.prompt.split())
        children = bool(things & {*GIRLS, *BOYS})
        assert children == bool(things & {"rolls", "eggs", "lemons", "cups", "candles", "muffins"})


def test_the_parts_of_graphs_match_their_names() -> None:
    task = ProsQA(**SIZES)
    splits = task.load()
    train = listed(splits["train"])
    parts = {name: listed(part) for name, part in task.ood(splits, 40).items()}
    assert {name: len(examples) for name, examples in parts.items()} == dict.fromkeys(parts, 40)
    steps = {name: [len(example.steps) for example in examples] for name, examples in parts.items()}
    assert max(steps["fewer_hops"]) < 3 and min(steps["more_hops"]) > max(len(example.steps) for example in train)
    facts = max(example.prompt.count(".") for example in train)
    assert min(example.prompt.count(".") for example in parts["more_facts"]) > facts
    for example in parts["other_names"]:
        assert not {word.strip(".?") for word in example.prompt.split()} & set(CONCEPTS)
    for name, sign in (("cot_in_order", 1), ("cot_reversed", -1)):
        for example in parts[name]:
            at = [example.prompt.index(step.strip()) for step in re.findall(r"[^.]+\.", example.cot)]
            assert at == sorted(at)[::sign]


@pytest.mark.parametrize("task", [task for task in TASKS if task.kind != "prosqa"], ids=IDS[:-1])
def test_the_small_tokenizer_knows_all_words_but_those_of_other_names(task: Task) -> None:
    known = set(task.symbols())
    for name, part in task.ood(task.load(), 20).items():
        words = {word for example in listed(part) for text in example[:3] for word in text.split()}
        assert name == "other_names" or words <= known
