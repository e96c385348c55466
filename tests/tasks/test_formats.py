"""Other forms of a prompt: each asks for the same, as the reader of typed problems finds."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.evaluation.problems import WholeSplit, problems_of
from stepwise_pl.tasks import Addition, Files, ModularSum, Multiplication, Parity, ProsQA, WordProblems
from stepwise_pl.tasks.base import Task
from stepwise_pl.tasks.formats import FORMS, in_words, numbers_in_words, sentences, with_sign, without_stops
from stepwise_pl.tasks.variants import Variants, reformatted

SIZES = {"train_size": 60, "validation_size": 5, "test_size": 30}
UNITS = dict(zip(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"], range(20), strict=True,
)) | dict(zip(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], range(20, 100, 10), strict=True))  # fmt: skip


def read(words: str) -> int:
    """Read a number in words, from left to right."""
    total = part = 0
    for word in words.replace("-", " ").split():
        if word == "hundred":
            part *= 100
        elif word == "thousand":
            total, part = total + 1000 * part, 0
        else:
            part += UNITS[word]
    return total + part


@given(st.integers(0, 999_999))
def test_words_are_read_back(number: int) -> None:
    assert read(in_words(number)) == number


def test_some_numbers_in_words() -> None:
    assert (in_words(40), in_words(105), in_words(21_042)) == (
        "forty",
        "one hundred five",
        "twenty-one thousand forty-two",
    )
    with pytest.raises(ValueError, match="must be between 0 and 999,999"):
        in_words(1_000_000)
    text = "He has 16 eggs, $20, 1/2 pie, 50%, 3.5 kg, 1,200 pens and a 12-ounce cup at 8:30. Then 7."
    wanted = "He has sixteen eggs, $20, 1/2 pie, 50%, 3.5 kg, 1,200 pens and a 12-ounce cup at 8:30. Then seven."
    assert numbers_in_words(text) == wanted
    assert numbers_in_words("4 0 * 3") == "four zero * three"


def test_signs_and_stops() -> None:
    assert with_sign("*", "x")("2 * 3") == "2 x 3" and with_sign("*", "times")("2*3") == "2 times 3"
    assert with_sign("+", "plus")("C++ has 1 + 2") == "C++ has 1 plus 2"
    assert without_stops("A b. C 1.5 d .") == "A b C 1.5 d"


def test_a_title_ends_no_sentence_wherever_it_stands() -> None:
    wanted = ["Mr. Lee has 3 cats.", "Mrs. Hu (vs. Dr. Ott) has 4!", "In St. Ives Ms. Day has 5.", "How many?"]
    assert sentences("  ".join(wanted)) == wanted
    assert sentences("(Mrs. Hu has 4.) How many?") == ["(Mrs. Hu has 4.) How many?"]
    assert sentences("It is 3.5 km. Go.") == ["It is 3.5 km.", "Go."]


@pytest.mark.parametrize(
    ("task", "forms"),
    [
        (Multiplication(digits=2, train_size=60, validation_size=5, test_size=30), "two_spaces no_spaces_at_signs sign_x sign_cross sign_times"),
        (Addition(**SIZES), "two_spaces no_spaces_at_signs sign_plus"),
        (Parity(**SIZES), "two_spaces digits_joined"),
        (ModularSum(**SIZES), "two_spaces digits_joined"),
        (WordProblems(**SIZES), "two_spaces digits_joined usual_text"),
    ],
    ids=lambda value: value.kind if isinstance(value, Task) else "",
)  # fmt: skip
def test_a_person_who_types_the_form_asks_for_the_same_problem(task: Task, forms: str) -> None:
    splits = task.load()
    suite = reformatted(task, splits, 20)
    test = splits["test"].slice(0, 30)
    assert set(forms.split()) <= set(suite)
    for name, part in suite.items():
        assert isinstance(part, Variants) and 0 < len(part) <= 20
        for origin, variant in zip(part.origins, part, strict=True):
            assert origin < 20 and variant[1:] == test[origin][1:]
            assert variant.prompt != test[origin].prompt
            if name in forms.split() and task.kind not in ("multiplication", "addition"):
                assert task.prompt_of(variant.prompt) == test[origin].prompt
            elif name in forms.split():  # people type the highest digit first
                plain = re.sub(r"(?<=\d) +(?=\d)", "", variant.prompt)
                turned = re.sub(r"\d+", lambda found: found[0][::-1], plain)
                assert task.prompt_of(turned) == test[origin].prompt


def test_own_forms_of_tasks() -> None:
    assert Multiplication().forms()["brackets"]("8 3 * 7 5") == "( 8 3 ) * ( 7 5 )"
    assert Addition().forms()["sign_semicolon"]("1 + 2 + 3") == "1 ; 2 ; 3"
    assert Addition().forms()["sign_before"]("1 + 2") == "+ 1 + 2"
    text = "Omar has 9 6 dollars . He pays 4 dollars . How many dollars belong to Omar now ?"
    forms = WordProblems().forms()
    assert forms["usual_text"](text) == "Omar has 96 dollars. He pays 4 dollars. How many dollars belong to Omar now?"
    assert forms["commas"](text).count(",") == 2
    assert forms["question_first"](text).startswith("How many dollars belong to Omar now ? Omar has")
    facts = "Max is a wumpus. Every wumpus is a gorpus. Is Max a gorpus or impus?"
    forms = ProsQA().forms()
    assert forms["no_stops"](facts) == "Max is a wumpus Every wumpus is a gorpus Is Max a gorpus or impus?"
    assert forms["question_first"](facts) == "Is Max a gorpus or impus? Max is a wumpus. Every wumpus is a gorpus."


def test_prompts_that_were_trained_on_in_the_form_are_left_out(tmp_path) -> None:
    lines = {"train": ["2 x 3", "4 x 5", "6 * 7", "1 * 1"], "validation": ["9 * 9"], "test": ["2 * 3", "3 * 3", "none"]}
    for split, prompts in lines.items():
        (tmp_path / f"{split}.txt").write_text("".join(f"{prompt}||z #### y\n" for prompt in prompts))
    task = Files(**{split: str(tmp_path / f"{split}.txt") for split in lines})
    part = reformatted(task, task.load(), 10)["sign_x"]
    assert ([each.prompt for each in part], part.origins) == (["3 x 3"], [1])
    assert part.left_out == "1 left out, because they were trained on in this form"
    assert set(reformatted(task, task.load(), 10)) < set(FORMS)


def test_prompts_that_no_form_changes_are_refused_with_the_true_reason(tmp_path: Path) -> None:
    """The line must not send the user back to the suite that was asked for."""
    for split, words in (("train", "abcd"), ("validation", "ef"), ("test", "gh")):
        (tmp_path / f"{split}.txt").write_text("".join(f"{word}||{word} #### {word}\n" for word in words))
    task = Files(**{split: str(tmp_path / f"{split}.txt") for split in ("train", "validation", "test")})
    with pytest.raises(UserError) as refused:
        problems_of(WholeSplit(None, suite="format", suite_size=500), task, ())
    assert str(refused.value).startswith("suite=format: no form changes a prompt of the first 2 test problems")
