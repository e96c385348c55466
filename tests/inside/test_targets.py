"""The targets of a task: which there are, what they are, and from where on they are given away."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import build_tokenizer, load_tokenizer, tokenizer_for
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.problems import Sides
from stepwise_pl.inside.subject import Subject
from stepwise_pl.inside.targets import CLASS, NUMBER, Target, is_given, targets_of
from stepwise_pl.tasks import Example, ExampleList, Files, ModularSum, Multiplication, Task, WordProblems
from tests.conftest import learner, small_model

FIT = 60


def subject_of(texts: list[Example], tokenizer: PreTrainedTokenizerBase) -> Subject:
    encoded = encode(ExampleList(texts), tokenizer, "problems")
    one = learner(small_model(tokenizer), tokenizer)
    return Subject(one, tokenizer, Limits.of({"train": encoded}, "left"), 0, texts, encoded)


def found(
    task: Task, *wanted: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[dict[str, Target], Place]:
    texts = task.load()["train"].slice(0, 100)
    targets, answer = targets_of(task, subject_of(texts, tokenizer or tokenizer_for(task, "symbols")), FIT, wanted)
    return {target.name: target for target in targets}, answer


def test_tokens_are_classes_and_a_constant_one_is_left_out() -> None:
    task = Multiplication(digits=2, train_size=200, validation_size=5, test_size=5)
    targets, answer = found(task)
    texts = task.load()["train"].slice(0, 100)
    assert answer == Place("answer", 2)  # after the separator and ####
    for number in range(len(texts[0].cot.split())):
        written = [text.cot.split()[number] for text in texts]
        if len(set(written[:FIT])) == 1:  # the plus sign, and the zero of the second row
            assert f"cot {number}" not in targets
            continue
        target = targets[f"cot {number}"]
        assert (target.kind, target.place, target.num_classes) == (CLASS, Place("cot", number), len(set(written)))
        assert len(set(zip(target.values, written, strict=True))) == len(set(written))
    assert "cot 3" not in targets
    for number in range(4):
        written = [text.answer.split()[number] for text in texts]
        values = targets[f"answer {2 + number}"].values
        assert len(set(zip(values, written, strict=True))) == len(set(written))


def test_quantities_are_numbers_behind_the_words_of_the_answer() -> None:
    task = Multiplication(digits=2, train_size=200, validation_size=5, test_size=5)
    targets, _ = found(task)
    texts = task.load()["train"].slice(0, 100)
    for name in task.quantities():
        numbers = np.array(task.values(name, texts))
        for number in range(4):
            if len(set(numbers[:FIT, number])) == 1:
                assert f"{name} {number}" not in targets
            else:
                target = targets[f"{name} {number}"]
                assert (target.kind, target.place) == (NUMBER, Place("answer", 2 + number))
                np.testing.assert_array_equal(target.values, numbers[:, number])
    assert "carry 0" not in targets  # nothing is carried into the first place
    np.testing.assert_array_equal(targets["row 1"].values, [each[1] for each in task.results(texts)["row"]])
    assert targets["row 1"].is_result


def test_problems_that_lack_a_step_have_no_result_of_it() -> None:
    task = WordProblems(train_size=200, validation_size=5, test_size=5)
    targets, _ = found(task)
    texts = task.load()["train"].slice(0, 100)
    steps = np.array([len(text.steps) for text in texts])
    assert targets["result 1"].has.all() and (targets["result 2"].has == (steps > 2)).all()


def test_a_tokenizer_that_joins_digits_counts_no_word_as_unread(byte_folder) -> None:
    """Every character and every space is a token: `0 3` is three of them. No word is told apart, so all stand behind the first."""
    task = Multiplication(digits=2, train_size=200, validation_size=5, test_size=5)
    tokenizer = load_tokenizer("model.tokenizer", str(byte_folder))
    targets, answer = found(task, tokenizer=tokenizer)
    assert targets["running_sum 3"].place == targets["running_sum 1"].place == answer


def test_a_token_of_too_many_values_is_left_out() -> None:
    words = [f"w{number}" for number in range(70)]
    texts = [Example(f"{number % 7}", f"{words[number % 70]} {words[number % 60]}", ["ja", "nein"][number % 2])
             for number in range(140)]  # fmt: skip
    tokenizer = build_tokenizer("symbols", tuple({*words, *"0123456", "ja", "nein"}))
    targets, _ = targets_of(Task(), subject_of(texts, tokenizer), 100)
    assert [target.name for target in targets] == ["cot 1", "answer 2"]
    assert targets[0].num_classes == 60


def test_a_task_without_anything_is_one_line() -> None:
    texts = [Example(f"{number % 7}", "", "ja") for number in range(140)]
    tokenizer = build_tokenizer("symbols", (*"0123456", "ja"))
    with pytest.raises(
        UserError, match="nothing to probe: task=file names no quantities or results, and every token of CoT"
    ):
        targets_of(Files(), subject_of(texts, tokenizer), 100)


def test_targets_are_chosen_by_name_or_first_word() -> None:
    task = ModularSum(modulus=3, terms=5, train_size=140, validation_size=5, test_size=5)
    every, _ = found(task)
    assert list(every) == [*(f"cot {number}" for number in range(5)), "answer 2", "running_sum 0"]
    assert list(found(task, "running_sum", "cot 3")[0]) == ["cot 3", "running_sum 0"]
    assert list(found(task, "cot")[0]) == [f"cot {number}" for number in range(5)]
    with pytest.raises(UserError, match="targets=carry: must be one of cot, answer, running_sum, cot 0"):
        found(task, "carry")


ANSWER = Place("answer", 2)
WORD = Target("carry 1", NUMBER, np.zeros(1), Place("answer", 3))
TOKEN = Target("cot 4", CLASS, np.zeros(1), Place("cot", 4), 2)
RESULT = Target("result 1", NUMBER, np.zeros(1), Place("cot", 0), is_result=True)


@pytest.mark.parametrize(
    ("target", "in_view", "expected"),
    [
        (TOKEN, range(0, 8), "cot 4"),  # all of the CoT is there
        (TOKEN, range(6, 8), "cot 6"),  # it is gone: the next token that is left may give it away
        (TOKEN, range(0, 3), "answer 2"),  # it is gone from the right: the tokens before it do not
        (TOKEN, (), "answer 2"),
        (RESULT, range(2, 8), "cot 2"), (RESULT, (), "answer 2"),
        (WORD, range(0, 8), "answer 3"), (WORD, (), "answer 3"),
    ],
)  # fmt: skip
def test_where_a_target_is_given_away(target: Target, in_view: range, expected: str) -> None:
    first = target.given_from(in_view, ANSWER)
    assert str(first) == expected
    order = [
        Place("prompt", -1),
        Place("thought", 1),
        *(Place("cot", i) for i in range(8)),
        *(Place("answer", i) for i in range(5)),
    ]
    for place in order:
        assert is_given(place, first) == (order.index(place) >= order.index(first))


class Numbered(Task):
    """A task whose problems have a result each, named by their CoT; `-` is none."""

    def results(self, examples: Sequence[Example]) -> dict[str, list[npt.NDArray[np.float64]]]:
        return {"result": [np.array([np.nan if text.cot == "-" else float(text.cot)]) for text in examples]}


@pytest.mark.parametrize(("is_held", "count", "is_there"), [(True, 40, True), (False, 40, False), (True, 1, False)])
def test_a_target_that_no_problems_held_back_have_is_left_out(is_held: bool, count: int, is_there: bool) -> None:
    """Nothing could choose its probe. Many of those to fit have it in all cases."""
    fit, scored = 200, 40
    there = Sides.of(fit, scored)
    has = {*there.fit[:100].tolist(), *there.scored.tolist(), *(there.held[:count].tolist() if is_held else ())}
    texts = [
        Example("1", str(number % 7) if number in has else "-", "ab"[number % 2]) for number in range(fit + scored)
    ]
    tokenizer = build_tokenizer("symbols", (*"0123456", "-", "a", "b"))
    targets, _ = targets_of(Numbered(), subject_of(texts, tokenizer), fit)
    assert ("result 0" in [target.name for target in targets]) == is_there


def test_a_number_that_is_too_large_to_square_is_none() -> None:
    words = ("9" * 400, "1" + "0" * 200, "3", "4")
    texts = [Example("1", words[number % 4], "ab"[number % 2]) for number in range(200)]
    targets, _ = targets_of(Numbered(), subject_of(texts, build_tokenizer("symbols", (*words, "1", "a", "b"))), 150)
    (target,) = [target for target in targets if target.name == "result 0"]
    assert np.isfinite(np.square(target.values[target.has])).all() and target.has.sum() == 100
