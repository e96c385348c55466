"""Word problems: equations against Python integers and the text; words against their promised meaning."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.stories import solve
from stepwise_pl.tasks.story_phrases import COMPARISON, SCENES, Phrase
from stepwise_pl.tasks.word_problems import WordProblems

NUMBER = r"\d(?: \d)*"
EQUATION = re.compile(rf"<< ({NUMBER}) ([-+*/]) ({NUMBER}) = ({NUMBER}) >>")
OTHERS = {"friend", "cousin", "neighbor", "classmate", "friends", "aunt", "children"}
# The numbers that words name.
SAID = {2: {"half", "twice", "double"}, 3: {"third", "triple"}, 4: {"quarter"}}


def number(text: str) -> int:
    assert re.fullmatch(NUMBER, text)
    assert text == "0" or not text.startswith("0 ")
    return int(text.replace(" ", ""))


def check(example: Example) -> None:
    """Check that the equations hold, and follow from the numbers of the prompt."""
    said = [number(text) for text in re.findall(NUMBER, example.prompt)]
    words = {word.lower().rstrip("s") for word in example.prompt.split()}
    constants = {value for value, names in SAID.items() if names & words}
    equations = EQUATION.findall(example.cot)
    assert " ".join(f"<< {x} {op} {y} = {z} >>" for x, op, y, z in equations) == example.cot
    assert [example.cot[at:].startswith("<< ") for at in example.steps] == [True] * len(equations)
    results: list[int] = []
    operands: list[int] = []
    for x, operator, y, z in equations:
        a, b, result = number(x), number(y), number(z)
        assert {a, b} <= {*said, *constants, *results}
        if operator == "/":
            assert a % b == 0
        assert result == {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
        assert result not in results
        operands += [a, b]
        results.append(result)
    assert not Counter(said) - Counter(operands)  # every number of the prompt is used, as often as it occurs
    assert set(results[:-1]) <= set(operands)  # every result but the last is used too
    assert example.answer == " ".join(str(results[-1]))
    assert results[-1] not in said
    assert all(2 <= value <= 999 for value in (*said, *results))


@given(st.integers(0, 2**63 - 1), st.integers(1, 8), st.integers(1, 8))
def test_every_story_adds_up(seed: int, one: int, other: int) -> None:
    fewest, most = sorted((one, other))
    (example,) = WordProblems(min_steps=fewest, max_steps=most).render(np.array([seed], np.uint64))
    check(example)
    assert fewest <= len(example.steps) <= most
    sentences = re.findall(r"[^.?]+ [.?]", example.prompt)
    assert " ".join(sentence.strip() for sentence in sentences) == example.prompt
    assert all(re.match(r"\s?[A-Z0-9]", sentence) for sentence in sentences)
    for before, after in pairwise(sentences):  # no pronoun can mean another person
        assert not (OTHERS & set(before.split()) and {"He", "She", "he", "she"} & set(after.split()))
    assert [sentence[-1] for sentence in sentences] == ["."] * (len(sentences) - 1) + ["?"]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return WordProblems(train_size=20_000).load()["train"].slice(0, 20_000)


@pytest.mark.long
def test_many_stories_add_up(examples: list[Example]) -> None:
    for example in examples:
        check(example)
    counts = Counter(len(example.steps) for example in examples)
    assert set(counts) == {2, 3, 4}
    assert min(counts.values()) > 6_000


def test_symbols_are_all_words_of_the_stories(examples: list[Example]) -> None:
    assert {word for e in examples for text in e[:3] for word in text.split()} == set(WordProblems().symbols())


def test_no_answer_is_frequent_and_no_operator_rare(examples: list[Example]) -> None:
    answers = Counter(example.answer for example in examples)
    assert len(answers) > 500
    assert answers.most_common(1)[0][1] < 0.03 * len(examples)
    operators = Counter(operator for example in examples for _, operator, _, _ in EQUATION.findall(example.cot))
    assert min(operators.values()) > 0.1 * operators.total()


def test_the_example_of_the_docstring() -> None:
    train = WordProblems(min_steps=2, max_steps=2, train_size=500).load()["train"]
    (line,) = re.findall(r"`(.*\|\|.*)`", WordProblems.__doc__ or "")
    assert line in {example.line() for example in train.slice(0, 500)}


PHRASES = [phrase for s in SCENES for part in (s.opening, s.middle, COMPARISON, s.ending) for phrase in part]


def test_there_are_many_kinds_of_step() -> None:
    assert len({phrase.program for phrase in PHRASES}) > 25
    for scene in SCENES:
        assert len({phrase.program for phrase in scene.middle}) >= 12


@pytest.mark.parametrize("word", ["gets", "buys", "more", "fewer", "times", "gives", "has"])
def test_the_same_word_stands_with_different_operations(word: str) -> None:
    # The operations on the value that the story goes on with.
    last = {phrase.program[-1][1] for phrase in PHRASES if word in phrase.text.split() and phrase.equations}
    assert last & set("+*")
    assert last & set("-/")


def test_every_phrase_says_its_numbers_and_no_others() -> None:
    for phrase in PHRASES:
        needed = {name for part in phrase.program for name in part if name in ("a", "b")}
        assert needed == set(re.findall(r"\{([ab])\}", phrase.text)) == {name for name, _ in phrase.numbers}
        words = {word.rstrip("s") for word in phrase.text.split()}
        constants = {value for value, names in SAID.items() if names & words}
        assert constants == {int(name) for part in phrase.program for name in part if name.isdigit()}
        assert not any(character.isdigit() for character in phrase.text)


# The number of X as a function of that of Y; a = 6.
READINGS = {
    "{X} has {a} more {T} than {Y} .": lambda y: y + 6,
    "{X} has {a} fewer {T} than {Y} .": lambda y: y - 6,
    "with {a} fewer {T} , {X} would have as many as {Y} .": lambda y: y + 6,
    "with {a} more {T} , {X} would have as many as {Y} .": lambda y: y - 6,
    "{X} would need {a} more {T} to have as many as {Y} .": lambda y: y - 6,
    "{X} has {a} times as many {T} as {Y} .": lambda y: y * 6,
    "{X} has twice as many {T} as {Y} .": lambda y: y * 2,
    "{X} has half as many {T} as {Y} .": lambda y: y / 2,
}


@pytest.mark.parametrize("phrase", COMPARISON, ids=lambda phrase: phrase.text)
def test_comparisons_have_their_english_meaning(phrase: Phrase) -> None:
    """A comparison gives the number of O, whether O stands as X or as Y in the sentence."""
    known = {"v": 24, "a": 6, "2": 2}
    assert solve(phrase.program, known, set())
    one, other = 24, known["r"]
    said = [READINGS[text](y) == x
            for x, y, text in ((other, one, phrase.text.replace("{O}", "{X}").replace("{N}", "{Y}")),
                               (one, other, phrase.text.replace("{N}", "{X}").replace("{O}", "{Y}")))
            if text in READINGS]  # fmt: skip
    assert said == [True]


def test_a_pronoun_means_one_character_only() -> None:
    for scene in SCENES:
        one, other = scene.cast
        apart = not {holder.they for holder in one} & {holder.they for holder in other}
        assert apart or not any("{they}" in phrase.text for phrase in (*scene.middle, *scene.ending))
        assert not {holder.name for holder in one} & {holder.name for holder in other}


@pytest.mark.parametrize(
    "bad", [{"min_steps": 0}, {"max_steps": 9}, {"max_steps": 0}, {"max_steps": 2, "min_steps": 3}], ids=str
)
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(UserError, match=f"task.{list(bad)[-1]}="):
        WordProblems(**bad)


def test_cot_length_is_not_known() -> None:
    assert not WordProblems().cot_length_known()
