"""ProsQA: every problem against a search of its own through the facts; the distribution against the 300 published problems."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from scipy.stats import chi2_contingency, ks_2samp

from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.tasks import Files, prosqa_graphs
from stepwise_pl.tasks.base import Example, chunks
from stepwise_pl.tasks.prosqa import ProsQA
from tests.conftest import DATA, command

COUNT = 2_000  # generated problems that are compared with the 300
LEVEL = 0.001  # of each test
FACT = re.compile(r"(?:Every ([a-z]+)|([A-Z][a-z]+)) is a ([a-z]+)\.")
QUESTION = re.compile(r"Is ([A-Z][a-z]+) a ([a-z]+) or ([a-z]+)\?")


class Question(NamedTuple):
    """A problem as its text says it.

    Attributes:
        facts: pairs (parent, child) in the order of the text.
        path: the names on the chain of the CoT, from the person to the answer.
    """

    facts: tuple[tuple[str, str], ...]
    person: str
    choices: tuple[str, str]
    path: tuple[str, ...]
    answer: str


def facts_of(text: str) -> tuple[tuple[str, str], ...]:
    found = tuple((match[1] or match[2], match[3]) for match in FACT.finditer(text))
    assert " ".join(fact(*pair) for pair in found) == text
    return found


def fact(parent: str, child: str) -> str:
    return f"{'Every ' if parent.islower() else ''}{parent} is a {child}."


def parsed(example: Example) -> Question:
    """Read a problem off its text. Fail if the text has another form than the published problems."""
    text, question = re.fullmatch(r"(.*\.) (Is .*\?)", example.prompt).groups()  # type: ignore[union-attr]
    asked = QUESTION.fullmatch(question)
    steps = [example.cot[i:j].strip() for i, j in pairwise((*example.steps, None))]
    chain = facts_of(" ".join(steps))
    assert asked and example.cot == " ".join(steps) and len(chain) == len(steps)
    assert all(one[1] == other[0] for one, other in pairwise(chain))
    assert example.answer == f"{asked[1]} is a {chain[-1][1]}."
    path = (chain[0][0], *(child for _, child in chain))
    return Question(facts_of(text), asked[1], (asked[2], asked[3]), path, path[-1])


class Graph:
    """The facts of a question as a graph, searched name by name."""

    def __init__(self, facts: Iterable[tuple[str, str]]) -> None:
        self.children: dict[str, list[str]] = defaultdict(list)
        self.parents: dict[str, list[str]] = defaultdict(list)
        for parent, child in facts:
            self.children[parent].append(child)
            self.parents[child].append(parent)
        self.nodes = sorted({*self.children, *self.parents})

    def paths(self, start: str) -> dict[str, list[tuple[str, ...]]]:
        """All shortest paths from a node, by the node in which they end."""
        found = {start: [(start,)]}
        last = [start]
        while last:
            new: dict[str, list[tuple[str, ...]]] = defaultdict(list)
            for node in last:
                for child in self.children.get(node, ()):
                    if child not in found:
                        new[child] += [(*path, child) for path in found[node]]
            found |= new
            last = list(new)
        return found

    def above(self, node: str) -> set[str]:
        """The ancestors of a node."""
        found: set[str] = set()
        waiting = [node]
        while waiting:
            new = set(self.parents.get(waiting.pop(), ())) - found
            found |= new
            waiting += new
        return found


def check(question: Question) -> None:
    """Check everything that is promised of one problem."""
    graph = Graph(question.facts)
    assert len(set(question.facts)) == len(question.facts)
    assert all((node in graph.parents) == node.islower() for node in graph.nodes)
    (wrong,) = {*question.choices} - {question.answer}
    assert not {question.answer, wrong} & {*graph.children}
    reached = graph.paths(question.person)
    assert wrong not in reached
    assert question.path in reached[question.answer]
    assert len(question.path) > 3
    # The answer is as far as any leaf that the same one of the two roots reaches. The other root reaches the wrong choice.
    others = {node for node in graph.above(wrong) if node[0].isupper()} - graph.above(question.answer)
    fits = []
    for other in others:
        found = graph.paths(other)
        own = [node for node in reached if node not in found and node not in graph.children]
        fits.append(wrong in found and len(question.path) == max(len(reached[node][0]) for node in own))
    assert any(fits)


def sign(number: int) -> int:
    return (number > 0) - (number < 0)


@cache
def generated(count: int, **constants: object) -> tuple[Question, ...]:
    """The first questions of training, by a generator that differs in these constants."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(prosqa_graphs, name, value)
        return tuple(parsed(example) for example in ProsQA(train_size=count).load()["train"].slice(0, count))


@cache
def splits() -> dict[str, list[Example]]:
    """All problems of the default sizes."""
    return {name: [e for chunk in chunks(split) for e in chunk] for name, split in ProsQA().load().items()}


def originals(folder: Path) -> list[Example]:
    return Files().read_other(str(folder / "prosqa" / "prosqa_valid.json"), "file")


@cache
def published(folder: Path) -> tuple[Question, ...]:
    return tuple(parsed(example) for example in originals(folder))


def properties(question: Question) -> dict[str, int | str]:
    """Properties of graph, question and text whose distribution should be that of the published problems."""
    graph = Graph(question.facts)
    (wrong,) = {*question.choices} - {question.answer}
    reached, above_answer, above_wrong = graph.paths(question.person), graph.above(question.answer), graph.above(wrong)
    others = [graph.paths(node) for node in above_wrong if node[0].isupper()]
    paths = reached[question.answer]
    facts = {pair: index for index, pair in enumerate(question.facts)}
    steps = [facts[pair] for pair in pairwise(question.path)]
    mention = {child: index for (_, child), index in facts.items()}
    busy = [sum(len(graph.children[node]) for node in path[:-1]) for path in paths]
    return {
        "nodes": len(graph.nodes),
        "facts": len(facts),
        "persons": sum(node[0].isupper() for node in graph.nodes),
        "nodes with one parent": sum(len(of) == 1 for of in graph.parents.values()),
        "most parents": max(map(len, graph.parents.values())),
        "leaves": sum(node not in graph.children for node in graph.nodes),
        "nodes with one child": sum(len(of) == 1 for of in graph.children.values()),
        "most children": max(map(len, graph.children.values())),
        "steps": len(steps),
        "shortest paths": len(paths),
        "path taken": "only" if len(paths) == 1 else "busiest" if busy[paths.index(question.path)] == max(busy) else "other",
        "facts about the person": len(graph.children[question.person]),
        "nodes below the person": len(reached),
        "nodes above the answer": len(above_answer),
        "nodes above the wrong choice": len(above_wrong),
        "parents of the answer": len(graph.parents[question.answer]),
        "parents of the wrong choice": len(graph.parents[wrong]),
        "distance of the wrong choice": min(len(found[wrong][0]) for found in others),
        "nodes below the person and another": sum(any(node in found for found in others) for node in reached),
        "the answer has more parents": sign(len(graph.parents[question.answer]) - len(graph.parents[wrong])),
        "the answer has more ancestors": sign(len(above_answer) - len(above_wrong)),
        "place of the answer": question.choices.index(question.answer),
        "the answer is mentioned last": int(mention[question.answer] > mention[wrong]),
        "place of the first step": 5 * steps[0] // len(facts),
        "place of the last step": 5 * steps[-1] // len(facts),
        "steps in order": sum(one < other for one, other in pairwise(steps)),
        "person": question.person,
        "answer": question.answer,
        "wrong choice": wrong,
    }  # fmt: skip


@cache
def table(questions: tuple[Question, ...]) -> dict[str, list[int | str]]:
    rows = [properties(question) for question in questions]
    return {name: [row[name] for row in rows] for name in rows[0]}


def p_value(one: list[int | str], other: list[int | str]) -> float:
    """Whether two samples have one distribution: Kolmogorov-Smirnov test of numbers, chi-squared test of words."""
    if isinstance(one[0], int):
        return float(ks_2samp(one, other).pvalue)
    counts = [[Counter(sample)[word] for word in sorted({*one, *other})] for sample in (one, other)]
    return float(chi2_contingency(counts).pvalue)


def in_order_of_growth(question: Question) -> Question:
    graph = Graph(question.facts)
    return question._replace(facts=tuple(sorted(question.facts, key=lambda pair: len(graph.above(pair[1])))))


def with_answer_first(question: Question) -> Question:
    one, other = sorted(question.choices, key=lambda name: name != question.answer)
    return question._replace(choices=(one, other))


def with_busiest_path(question: Question) -> Question:
    graph = Graph(question.facts)
    paths = graph.paths(question.person)[question.answer]
    return question._replace(path=max(paths, key=lambda path: sum(len(graph.children[node]) for node in path[:-1])))


def with_shortcut(question: Question) -> Question:
    """The wrong choice has one parent only."""
    (wrong,) = {*question.choices} - {question.answer}
    first = next(pair for pair in question.facts if pair[1] == wrong)
    return question._replace(facts=tuple(pair for pair in question.facts if pair[1] != wrong or pair == first))


# Generators that are wrong on purpose, by other constants or by a change of each question, with the properties that must tell.
WRONG: list[tuple[dict[str, object] | Callable[[Question], Question], str]] = [
    ({"NODES": 26}, "nodes, facts, leaves"),
    ({"MEAN_PARENTS": 1.0}, "nodes with one parent, most parents, most children, shortest paths, facts about the person, "
     "nodes below the person, nodes above the answer, nodes above the wrong choice, parents of the answer, "
     "parents of the wrong choice"),
    # The algorithm in the paper has these shares.
    ({"SHARES": (0.35, 0.35, 0.3)}, "persons, nodes below the person and another"),
    ({"SHARES": (0.2, 0.2, 0.6)}, "nodes with one child"),
    ({"PULL": 0}, "steps, distance of the wrong choice"),
    ({"PERSONS": prosqa_graphs.PERSONS[:14], "CONCEPTS": prosqa_graphs.CONCEPTS[:32]}, "person, answer, wrong choice"),
    (in_order_of_growth, "the answer is mentioned last, place of the first step, place of the last step, steps in order"),
    (with_answer_first, "place of the answer"),
    (with_busiest_path, "path taken"),
    (with_shortcut, "the answer has more parents, the answer has more ancestors"),
]  # fmt: skip
NAMES = list(properties(parsed(Example.of_steps(
    "Tom is a impus. Every impus is a lempus. Bob is a yumpus. Is Tom a lempus or yumpus?",
    ["Tom is a impus.", "Every impus is a lempus."], "Tom is a lempus.",
))))  # fmt: skip


def test_every_problem_keeps_what_is_promised() -> None:
    for question in generated(COUNT):
        check(question)


def test_the_published_problems_keep_the_same_promises(shared_data: Path) -> None:
    for question in published(shared_data):
        check(question)


def test_the_splits_have_the_published_sizes_and_share_no_problem() -> None:
    assert {name: len(split) for name, split in splits().items()} == {"train": 17_886, "validation": 300, "test": 500}
    prompts = [example.prompt for split in splits().values() for example in split]
    assert len(set(prompts)) == 18_686


def test_no_problem_is_a_published_one(shared_data: Path) -> None:
    """Neither the order of the facts nor that of the choices makes a difference."""

    def content(example: Example) -> tuple[frozenset[str], frozenset[str]]:
        *facts, question = example.prompt.split(". ")
        return frozenset(facts), frozenset(question.rstrip("?").split())

    theirs = {content(example) for example in originals(shared_data)}
    ours = {content(example) for split in splits().values() for example in split}
    assert len(theirs) == 300 and not theirs & ours


@pytest.mark.parametrize("name", NAMES)
def test_a_property_is_distributed_as_in_the_published_problems(shared_data: Path, name: str) -> None:
    assert p_value(table(published(shared_data))[name], table(generated(COUNT))[name]) > LEVEL


@pytest.mark.long
@pytest.mark.parametrize(
    "wrong,rejected", WRONG, ids=lambda value: "-".join(value) if isinstance(value, dict) else None
)
def test_a_wrong_generator_is_told_from_the_published_problems(
    shared_data: Path, wrong: dict[str, object] | Callable[[Question], Question], rejected: str
) -> None:
    theirs = table(published(shared_data))
    questions = generated(COUNT, **wrong) if isinstance(wrong, dict) else tuple(map(wrong, generated(COUNT)))
    ours = table(questions)
    passed = [name for name in rejected.split(", ") if p_value(theirs[name], ours[name]) > LEVEL]
    assert not passed


def test_every_property_has_a_wrong_generator_that_it_rejects() -> None:
    assert {name for _, rejected in WRONG for name in rejected.split(", ")} == {*NAMES}


def test_symbols_are_all_words_of_the_problems() -> None:
    assert {word for example in splits()["train"] for text in example[:3] for word in text.split()} == {
        *ProsQA().symbols()
    }


def test_every_word_of_the_published_problems_is_a_symbol(shared_data: Path) -> None:
    assert {word for e in originals(shared_data) for text in e[:3] for word in text.split()} == {*ProsQA().symbols()}


def test_the_example_of_the_docstring_is_the_first_problem() -> None:
    """So the same seed gives the same problems on every machine that runs this test."""
    (line,) = re.findall(r"`(.*\|\|.*)`", ProsQA.__doc__ or "")
    parts = line.split(" [...] ")
    first = ProsQA(train_size=1).load()["train"].slice(0, 1)[0].line()
    assert len(parts) == 3 and re.fullmatch(" .*".join(map(re.escape, parts)), first)


def test_strata_are_the_number_of_steps() -> None:
    stepped = Example.of_steps("?", ["Tom is a impus.", "Every impus is a lempus."], "!")
    assert ProsQA().strata(stepped) == {"steps": "2"}
    assert ProsQA().strata(stepped._replace(steps=())) == {}


# A file as the authors publish it, with short problems.
TYPED = """[{"question": "Every impus is a lempus. Tom is a impus. Bob is a yumpus. Every lempus is a zumpus. Is Tom a zumpus or yumpus?",
 "answer": "Tom is a zumpus.", "steps": ["Tom is a impus.", "Every impus is a lempus.", "Every lempus is a zumpus."],
 "idx_to_symbol": ["Bob", "Tom", "impus", "lempus", "yumpus", "zumpus"], "edges": [[1, 2], [2, 3], [0, 4], [3, 5]],
 "root": 1, "target": 5, "neg_target": 4},
 {"question": "Eva is a gorpus. Max is a jelpus. Every gorpus is a kerpus. Is Eva a jelpus or kerpus?",
 "answer": "Eva is a kerpus.", "steps": ["Eva is a gorpus.", "Every gorpus is a kerpus."],
 "idx_to_symbol": ["Eva", "Max", "gorpus", "jelpus", "kerpus"], "edges": [[0, 2], [1, 3], [2, 4]],
 "root": 0, "target": 4, "neg_target": 3}]"""


@pytest.mark.long
def test_a_run_answers_original_files_without_a_further_setting(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "typed.json"
    file.write_text(TYPED)
    command("train", "task=prosqa", "method.unit=step", "task.train_size=64", "task.validation_size=4", "task.test_size=4",
            "model.layers=1", "model.heads=2", "model.width=32", "data.batch_size=32", "trainer.duration=2steps",
            f"run_dir={run}")  # fmt: skip
    files = [file, *filter(Path.is_file, [DATA / "prosqa" / "prosqa_valid.json"])]
    for given in files:
        command("evaluate", f"run={run}", f"file={given}", "limit=12")
        (written,) = (run / "evaluations").glob(f"*-{given.stem}-*.jsonl")
        rows = [json.loads(line) for line in written.read_text().splitlines()]
        problems = json.loads(given.read_text())[:12]
        assert [(row["prompt"], row["target"], row["strata"]) for row in rows] == [
            (one["question"], one["answer"], {"steps": str(len(one["steps"]))}) for one in problems
        ]
        tokenizer = build_tokenizer("symbols", ProsQA().symbols())
        texts = [text for one in problems for text in (one["question"], *one["steps"], one["answer"])]
        assert all(tokenizer.decode(tokenizer(text)["input_ids"]) == text for text in texts)
