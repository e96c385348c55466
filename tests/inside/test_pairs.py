"""Pairs of problems that differ in one word: valid, held out, even, and the same twice."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise_pl.data.encoding import encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import build_tokenizer, load_tokenizer
from stepwise_pl.inside.pairs import Pairs, find_pairs, is_written, tokens_of
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.subject import Subject
from stepwise_pl.tasks import Addition, Example, ExampleList, ModularSum, Multiplication, Parity, Task, WordProblems
from tests.conftest import learner, small_model

TASKS: list[Task] = [
    Multiplication(digits=2, train_size=5_000, validation_size=300, test_size=300),
    Multiplication(digits=3, min_digits=2, train_size=3_000, validation_size=100, test_size=200, zeros=0.5),
    Addition(operands=3, digits=2, train_size=3_000, validation_size=100, test_size=200),
    Parity(bits=12, train_size=1_000, validation_size=100, test_size=200),
    ModularSum(modulus=5, terms=6, min_terms=4, train_size=2_000, validation_size=100, test_size=200),
]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_pairs_differ_in_one_word_are_problems_of_the_task_and_none_was_trained_on(task: Task) -> None:
    splits = task.load()
    test = splits["test"].slice(0, 300)
    trained = {
        example.prompt
        for name in splits.keys() - {"validation", "test"}
        for example in splits[name].slice(0, len(splits[name]))
    }
    pairs = find_pairs(task, splits, 10, seed=0)
    assert pairs.is_solvable and pairs == find_pairs(task, splits, 10, seed=0) != find_pairs(task, splits, 10, seed=1)
    for a, b, word in zip(pairs.first, pairs.second, pairs.word, strict=True):
        assert a in test and [b] == task.solved([b.prompt]) and b.prompt not in trained
        one, other = a.prompt.split(), b.prompt.split()
        assert len(one) == len(other)
        assert [number - len(one) for number in range(len(one)) if one[number] != other[number]] == [word]
    assert len(set(zip((example.prompt for example in pairs.first), pairs.word, strict=True))) == len(pairs)
    longest = max(len(example.prompt.split()) for example in test)
    fixed = {"multiplication": {"*"}, "addition": {"+"}}.get(task.kind, set())
    always = [all(example.prompt.split()[-1 - place] in fixed for example in test) for place in range(longest) if
              all(len(example.prompt.split()) > place for example in test)]  # fmt: skip
    # As many as asked for at every place at which every problem has a digit.
    counts = Counter(pairs.word)
    assert all(counts[-1 - place] == (0 if is_sign else 10) for place, is_sign in enumerate(always))


def test_a_task_that_knows_no_other_prompt_has_no_pairs() -> None:
    task = WordProblems(train_size=20, validation_size=5, test_size=5)
    pairs = find_pairs(task, task.load(), 10, 0)
    assert len(pairs) == 0 and not pairs.is_solvable


def test_a_space_that_is_all_trained_on_has_no_pairs() -> None:
    task = Parity(bits=2, train_size=3, validation_size=1, test_size=1)
    splits = task.load()
    splits["train"] = ExampleList(example for split in list(splits.values()) for example in split.slice(0, 9))
    pairs = find_pairs(task, splits, 10, 0)
    assert len(pairs) == 0 and pairs.is_solvable


def subject_of(texts: list[Example], stage: int = 0, tokenizer: Any = None) -> Subject:
    tokenizer = tokenizer or build_tokenizer("symbols", Multiplication().symbols())
    encoded = encode(ExampleList(texts), tokenizer, "problems")
    limits = Limits(train_left=list(range(8, -1, -1)), left=list(range(8, -1, -1)), longest_answer=7)
    return Subject(learner(small_model(tokenizer), tokenizer), tokenizer, limits, stage, texts, encoded)


@pytest.mark.parametrize("stage", [0, 2, 8])
@pytest.mark.parametrize("written", [False, True])
def test_the_target_is_the_first_token_that_differs(stage: int, written: bool) -> None:
    task = TASKS[0]
    found = find_pairs(task, task.load(), 30, 0)
    pairs = tokens_of(found, lambda texts: subject_of(texts, stage), written)
    assert len(pairs) == len(found) and pairs.changed.tolist() == [word - 1 for word in found.word]
    labels = [pairs.labels(side) for side in (pairs.first, pairs.second)]
    for row, (a, b) in enumerate(zip(found.first, found.second, strict=True)):
        places = [*(Place("cot", k) for k in range(stage, 8))] if written else []
        # The answer's part begins with separator and mark.
        places += [Place("answer", 2 + k) for k in range(4)]
        words = [[*(each.cot.split()[stage:] if written else []), *each.answer.split()] for each in (a, b)]
        first = next((n for n, (x, y) in enumerate(zip(*words, strict=True)) if x != y), None)
        if first is None:
            assert pairs.target[row] == -1
            continue
        assert pairs.targets[pairs.target[row]] == places[first]
        decoded = [pairs.first.tokenizer.decode([int(label[row])]).strip() for label in labels]
        assert decoded == [words[0][first], words[1][first]]
        whole, view = pairs.first.batch(np.array([row]))
        assert view.tokens[0, pairs.column(pairs.first, whole, view)[0]] == labels[0][row]
    # The problems that are forced are those of B with the answers of A.
    assert [(x.prompt, x.cot, x.answer) for x in pairs.forced.texts] == [
        (b.prompt, b.cot, a.answer) for a, b in zip(found.first, found.second, strict=True)
    ]
    assert is_written(pairs.first, Place("cot", 1)).all() == (stage < 2)


def test_words_of_several_tokens_make_pairs_that_differ_in_one(byte_folder: Path) -> None:
    """With a token for each character `7 1` and `12 1` have not as many tokens, and `34 1` and `43 1` differ in two."""
    tokenizer = load_tokenizer("model.tokenizer", str(byte_folder))

    def example(prompt: str) -> Example:
        return Example(prompt, "9", str(sum(map(int, prompt.split()))))

    prompts = [("7 1", "12 1"), ("34 1", "43 1"), ("34 1", "35 1"), ("34 61", "34 66"), ("34 61", "64 61")]
    found = Pairs(*([example(pair[side]) for pair in prompts] for side in (0, 1)), word=[-2, -2, -2, -1, -2])  # type: ignore[arg-type]
    pairs = tokens_of(found, lambda texts: subject_of(texts, tokenizer=tokenizer))
    assert [one.prompt for one in pairs.first.texts] == ["34 1", "34 61", "34 61"]
    # Behind each prompt stand a space and the separator.
    assert pairs.changed.tolist() == [-5, -3, -7]
    labels = [[tokenizer.decode([int(token)]) for token in pairs.labels(side)] for side in (pairs.first, pairs.second)]
    # 35 and 36, 95 and 100, 95 and 125.
    assert labels == [["5", "9", "9"], ["6", "1", "1"]]


def test_pairs_that_no_tokenizer_keeps_leave_nothing_to_patch(byte_folder: Path) -> None:
    tokenizer = load_tokenizer("model.tokenizer", str(byte_folder))
    found = Pairs([Example("7 1", "9", "8")], [Example("12 1", "9", "13")], [-2])
    assert len(tokens_of(found, lambda texts: subject_of(texts, tokenizer=tokenizer))) == 0
