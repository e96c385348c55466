"""Variants of GSM8K problems: every equation against exact fractions, and the problems that must be left alone."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.tasks import GSM8K, Example
from stepwise_pl.tasks.base import chunks
from stepwise_pl.tasks.exact import equation_of, number_text, value_of
from stepwise_pl.tasks.formats import question_first
from stepwise_pl.tasks.gsm8k_ood import sentences_swapped, with_other_number

DUCKS = (
    "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends every "
    "day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg. How much in dollars does "
    "she make every day at the farmers' market?"
)
ROBE = "A robe takes 28 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?"


def problem(prompt: str, *equations: str) -> Example:
    return Example.of_steps(prompt, [f"<<{text}>>" for text in equations], equations[-1].rpartition("=")[2])


def exact(expression: str) -> Fraction:
    """Evaluate an expression by Python itself, with a Fraction for each number."""
    plain = re.sub(r"\d[\d,]*(?:\.\d+)?|\.\d+", lambda found: f"Fraction('{found[0].replace(',', '')}')", expression)
    return eval(plain, {"Fraction": Fraction})


def check(before: Example, after: Example) -> None:
    """One number of the text is another one; equations hold, have the same signs, and results are of the same kind."""
    one, other = (re.split(r"(\d+)", example.prompt) for example in (before, after))
    ((old, new),) = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    assert int(old) / 2 <= int(new) <= 2 * int(old)
    steps = [re.findall(r"<<(.+?)=([^=]+?)>>", example.cot) for example in (before, after)]
    assert len(steps[0]) == len(steps[1]) == len(after.steps)
    changed = 0
    for (left, result), (new_left, new_result) in zip(*steps, strict=True):
        assert exact(new_left) == exact(new_result)
        assert re.sub(r"[\d.,]+", "", left) == re.sub(r"[\d.,]+", "", new_left)
        kinds = [(value > 0, value.denominator == 1) for value in (exact(result), exact(new_result))]
        assert kinds[0] == kinds[1]
        changed += exact(result) != exact(new_result)
    assert changed and after.answer == steps[1][-1][1] != before.answer
    assert all(after.cot[at : at + 2] == "<<" for at in after.steps)


@pytest.mark.parametrize(
    "example",
    [
        problem(DUCKS, "16-3-4=9", "9*2=18"),
        problem(ROBE, "28/2=14", "28+14=42"),
        problem("Ann has $1.5 and finds 46 coins of $.5 each. How much has she?", "46*.5=23", "23+1.5=24.5"),
        problem("A bag of 220 beans grows by 15%. How many beans are there?", "220*15/100=33", "220+33=253"),
    ],
)
def test_a_number_is_replaced_in_text_equations_and_answer(example: Example) -> None:
    variant = with_other_number(example)
    assert variant is not None and variant == with_other_number(example)
    check(example, variant)


@pytest.mark.parametrize(
    ("why", "example"),
    [
        ("an equation does not hold", problem(ROBE, "28/2=15", "28+15=43")),
        ("the answer is another number", problem(ROBE, "28/2=14", "28+14=42")._replace(answer="41")),
        ("no equation", Example(ROBE, "", "42")),
        ("the number occurs twice", problem("Tom has 28 pens and Ann has 28. How many?", "28+28=56")),
        ("the number occurs in words", problem("Twenty-eight men have 28 pens and 12 caps. How many things?", "28+12=40")),
        ("a result has the value of a number", problem("Tom has 28 pens, half are red. 14 break. How many are left?", "28/2=14", "28-14=14")),
        ("a constant that nobody explains", problem("Tom has 28 pens and his sisters too. How many?", "28+19=47")),
        ("computed from the number", problem("Of 40 shares 35% are sold. How many?", ".35*40=14")._replace(prompt="He sells 35 per hundred. How many of it?")),
        ("numbers that add up", problem("Of 43 pupils 19 are boys and 24 are girls. How many girls have twins if 3 do not?", "24-3=21")),
        ("a whole number could be a constant", problem("A clock strikes 12 times and 7 times. How often?", "12+7=19")),
    ],
)  # fmt: skip
def test_a_problem_in_doubt_is_left_alone(why: str, example: Example) -> None:
    assert with_other_number(example) is None, why


def test_a_result_stays_on_its_side_of_a_threshold() -> None:
    found = set()
    for saved in range(41, 70):
        total = saved + 38
        text = f"Ann saves ${saved} and $38. As she saved more than $78, she gets $190 more. How much has she?"
        variant = with_other_number(problem(text, f"{saved}+38={total}", f"{total}+190={total + 190}"))
        if variant is not None:
            found.add(int(re.findall(r"=(\d+)>>", variant.cot)[0]))
    assert len(found) > 5 and min(found) > 78


def test_sentences_change_places_only_if_none_leans_on_another() -> None:
    facts = ["The farm sells fruit.", "Tom buys 3 pears.", "Ann buys 5 plums.", "How many fruits are bought?"]
    text = " ".join(facts)
    assert sentences_swapped(text) == " ".join([facts[0], facts[2], facts[1], facts[3]])
    assert sentences_swapped(text.replace("Ann", "She")) == text.replace("Ann", "She")
    assert sentences_swapped(" ".join(facts[1:])) == " ".join(facts[1:])
    # A title at the beginning is no sentence. Without it, the sentences behind it would change places.
    titled = "Mr. Lee has 3 cats. Ms. Hu has 4 cats. How many cats?"
    assert sentences_swapped(titled) == titled
    assert question_first(text) == " ".join([facts[3], *facts[:3]])
    assert question_first(facts[3]) == facts[3]
    assert question_first(f"Is it? {text}") == f"Is it? {text}"
    assert question_first("It costs $3. How much did Mr. Benson pay?") == "How much did Mr. Benson pay? It costs $3."


def test_the_suite_counts_what_it_leaves_out(tmp_path: Path) -> None:
    texts = [DUCKS.replace("16", str(number)) for number in range(20, 60)]
    lines = [
        f"{text}||<<{n}-3-4={n - 7}>> <<{n - 7}*2={2 * (n - 7)}>> #### {2 * (n - 7)}"
        for n, text in enumerate(texts, 20)
    ]
    lines[5] = "Tom has 28 pens and 28 caps. How many things?||<<28+28=56>> #### 56"
    (tmp_path / "train.txt").write_text("\n".join(lines[20:]) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(lines[:20]) + "\n")
    task = GSM8K(train=str(tmp_path / "train.txt"), test=str(tmp_path / "test.txt"), validation_size=2)
    splits = task.load()
    suite = task.ood(splits, 10)
    trained = {example.prompt for chunk in chunks(splits["train"]) for example in chunk}
    test = splits["test"].slice(0, 20)
    part = suite["other_number"]
    assert 5 <= len(part) <= 10 and "left out: no number" in part.left_out
    for origin, variant in zip(part.origins, part, strict=True):
        check(test[origin], variant)
        assert variant.prompt not in trained
    assert suite["question_first"].origins == list(range(10)) and not suite["question_first"].left_out
    assert [each.cot for each in suite["question_first"]] == [each.cot for each in test[:10]]
    assert suite["sentences_swapped"].left_out.startswith("20 of 20 test problems left out")
    sentences = GSM8K(
        train=str(tmp_path / "train.txt"), test=str(tmp_path / "test.txt"), validation_size=2, cot="natural_language"
    )
    assert list(sentences.ood(sentences.load(), 10)) == ["question_first", "sentences_swapped"]


def test_the_original_problems(shared_data: Path) -> None:
    task = GSM8K(
        train=str(shared_data / "gsm8k" / "openai_train.jsonl"), test=None, test_size=300, allow_overlap=True
    )  # fmt: skip
    splits = task.load()
    part = task.ood(splits, 300)["other_number"]
    assert len(part) > 40
    for origin, variant in zip(part.origins, part, strict=True):
        check(splits["test"].slice(origin, origin + 1)[0], variant)


numbers = st.decimals(0, 9999, places=2).map(str) | st.integers(0, 10**6).map(str)
expressions = st.recursive(
    numbers, lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda each: f"({''.join(each)})")
)


@given(expressions)
def test_values_are_those_of_fractions(expression: str) -> None:
    try:
        wanted = exact(expression)
    except ZeroDivisionError:
        wanted = None
    assert value_of(expression) == wanted
    if wanted is not None and (text := number_text(wanted)) is not None:
        assert Fraction(text) == wanted


@pytest.mark.parametrize("text", ["", "2+", "(2", "2)", "two", "2**3", "1/0", "2 3"])
def test_other_texts_have_no_value(text: str) -> None:
    assert value_of(text) is None
    assert equation_of(f"<<{text}=2>>") is None


def test_equations() -> None:
    assert equation_of("<<48/2=24>>") == ("48/2", 24)
    assert equation_of("<<$1,200*50%=600>>") == ("$1,200*50%", 600)
    assert equation_of("<<8*18=144.00>>") == ("8*18", 144)
    assert equation_of("<<48/2=25>>") is None and equation_of("<<1=1=1>>") is None
