"""Scoring by the last number of the output, read as a float: by hand, on outputs of a model, and in `evaluate`."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stepwise_pl.data.encoding import encode
from stepwise_pl.data.layout import unfinished_answer, written_answer
from stepwise_pl.data.limits import Limits
from stepwise_pl.evaluate import EvaluateConfig, evaluate
from stepwise_pl.evaluation.scorer import Scorer
from stepwise_pl.models.decoding import generate
from stepwise_pl.runs.predictions import Prediction, by_last_number, last_number
from stepwise_pl.tasks import Multiplication
from tests.conftest import SMALL, command, learner, small_model


@pytest.fixture(scope="module")
def letters(byte_folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer that knows any text."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(byte_folder)
    return found


def predicted(letters: PreTrainedTokenizerBase, target: str, output: str, right: bool = False) -> Prediction:
    """The prediction of a model that wrote `output` behind the prompt."""
    tokens = letters(output)["input_ids"]
    answer, unfinished = written_answer(tokens, letters), unfinished_answer(tokens, letters)
    return Prediction(0, "", target, answer, right, unfinished=unfinished)


@pytest.mark.parametrize(
    ("target", "output", "is_right"),
    [
        ("1234.5", "<eos> #### 1,234.50 <eos>", True),
        ("-3", "4-7 <eos> #### -3 <eos>", True),
        ("3", "<eos> #### -3 <eos>", False),
        ("18", "9*2=18 <eos> #### $18. <eos>", True),
        ("72", "<eos> #### 72.0 <eos>", True),
        ("72", "<eos> #### 72.5 <eos>", False),
        ("72", "<eos> #### 72 of 80 <eos>", False),
        ("72", "<eos> #### of 80 are 72 <eos>", True),
        ("72", "<eos> #### ７２ <eos>", True),
        ("1234567", "<eos> #### 1,234,567 apples <eos>", True),
        # The model wrote nothing, or no number behind the mark.
        ("0", "", False),
        ("0", "<eos><eos>", False),
        ("18", "9*2=18 <eos> #### none <eos>", False),
        # An answer without its end token is read up to where it was cut off.
        ("18", "9*2=17 <eos> #### 18", True),
        ("18", "9*2=18 <eos> #### 1", False),
        # Without the mark the whole output is read, finished or not.
        ("18", "9*2=18 <eos>", True),
        ("18", "9*2=18 <eos> it is 17 <eos>", False),
        ("18", "so 9 and 18", True),
        ("12", "1<eos>2", False),
    ],
)
def test_the_last_number_behind_the_mark_or_of_all_is_compared_as_a_float(
    letters: PreTrainedTokenizerBase, target: str, output: str, is_right: bool
) -> None:
    assert by_last_number([predicted(letters, target, output)]) == (int(is_right), 1)


@given(st.lists(st.decimals(-(10**9), 10**9, places=2), min_size=1), st.sampled_from([" ", " is ", "; $", " = "]))
def test_a_number_is_found_at_the_end_of_any_text_with_or_without_thousands_separators(
    numbers: list[Any], between: str
) -> None:
    for written in ("{}", "{:,}"):
        text = between.join(["so", *(written.format(number) for number in numbers)])
        assert last_number(f"{text} euros.") == float(numbers[-1])


def test_there_is_no_such_figure_unless_every_target_is_a_number_written_as_usual() -> None:
    def one(target: str) -> Prediction:
        return Prediction(0, "", target, target, True)

    for target in ("6 6 1 2", "0612", "Tom is a lempus", "x1", "1,2", "$18", ""):
        assert by_last_number([one("18"), one(target), one("3")]) is None
    for target in ("0", "-3", "72.", "0.25", "100000"):
        assert by_last_number([one("18"), one(target)]) == (2, 2)


def test_what_an_unfinished_answer_leaves_is_the_text_of_plain_decoding(tokenizer: PreTrainedTokenizerBase) -> None:
    """The weights are random, so that most answers are not finished, and some hold the mark."""
    examples = encode(
        Multiplication(digits=2, train_size=60, validation_size=1, test_size=1).load()["train"], tokenizer, "train"
    )
    model, limits, eos = small_model(tokenizer), Limits.of({"train": examples}, "left"), int(tokenizer.eos_token_id)
    scorer = Scorer(learner(model, tokenizer), tokenizer, examples, limits, 3)
    _, found = scorer.evaluate(7)
    (batch,) = scorer.views(60)
    with_mark = without = 0
    for answer, row in zip(found, generate(model, batch, eos, scorer.bounds.whole), strict=True):
        words = [str(tokenizer.convert_ids_to_tokens(token)) for token in row]
        marks = [place for place, word in enumerate(words) if word == "####"]
        expected = [word for word in words[marks[-1] + 1 if marks else 0 :] if word != "<eos>"]
        if answer.predicted is None:
            assert answer.unfinished.split() == expected
            with_mark, without = with_mark + bool(marks), without + (not marks)
        else:
            assert answer.unfinished == ""
    assert with_mark and without


def evaluated(run: Path, **settings: Any) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The output of `evaluate`, its summary, and the predictions in the run folder."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        summary = evaluate(EvaluateConfig(run=str(run), speed_problems=0, **settings))
    path = Path(out.getvalue().split("written to")[1].split(";")[0].strip())
    return out.getvalue(), summary, [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


def test_evaluate_says_both_figures(tmp_path: Path) -> None:
    """The model learns to write `12.0`. Asked for `12`, no answer is right as a string."""
    sums = {f"{a} + {b}": a + b for a in range(1, 10) for b in range(1, 10)}
    for name, form in (("train", "{}.0"), ("whole", "{}")):
        rows = [
            {"question": prompt, "steps": [str(total)], "answer": form.format(total)} for prompt, total in sums.items()
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    command(
        "train", *SMALL[3:], "task=file", f"task.train={tmp_path / 'train.jsonl'}", "task.validation_size=5",
        "task.test_size=5", "schedule=no_cot", "trainer.duration=10epochs", "trainer.validate_every_epochs=10", f"run_dir={run}",
        "expected.accuracy=[0.2,1]", "expected.source=a paper", "expected.counts=last_number",
    )  # fmt: skip
    out, summary, rows = evaluated(run, file=str(tmp_path / "whole.jsonl"))
    assert summary["answer_accuracy"] == 0
    right = [row["prediction"] is not None and float(row["prediction"]) == float(row["target"]) for row in rows]
    assert sum(right) > 0.2 * 81  # how many the model learns depends on the machine's rounding
    assert summary["last_number_accuracy"] == pytest.approx(sum(right) / 81)
    interval = binomtest(sum(right), 81).proportion_ci(method="wilson")
    assert summary["last_number_interval"] == pytest.approx((interval.low, interval.high), abs=1e-6)
    (line,) = re.findall(r"by last number .*", out)
    assert line.split()[3] == f"{sum(right) / 81:.1%}"
    out, summary, _ = evaluated(run)
    assert "by last number" in out  # the test split, with targets such as 12.0
    # The band is about the last number, which the end of training does not count.
    assert json.loads((run / "summary.json").read_text())["expected"] is None
    assert summary["expected"]["accuracy_measured"] == summary["last_number_accuracy"]


def test_evaluate_gives_no_such_figure_for_numbers_written_digit_by_digit(run_dir: Path) -> None:
    out, summary, rows = evaluated(run_dir)
    assert len(rows[0]["target"].split()) == 2
    assert "last number" not in out and not any("last_number" in key for key in summary)
