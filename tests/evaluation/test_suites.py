"""Suites of problems in other forms and out of distribution: what a run cannot read, and several runs side by side."""

import contextlib
import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.statistics import newcombe, paired_difference
from stepwise_pl.evaluate import EvaluateConfig, evaluate, evaluate_runs
from stepwise_pl.evaluation.problems import WholeSplit, problems_of
from stepwise_pl.evaluation.writable import Reader
from stepwise_pl.models.trained_run import load_run
from stepwise_pl.reporting.suite_text import notes
from stepwise_pl.runs.predictions import Prediction, Share, read_predictions
from stepwise_pl.runs.suites import TEST, PartResult, part_results, suite_results
from stepwise_pl.tasks import Example, Multiplication, Parity
from tests.conftest import SMALL, command

SUMS = (
    "task=addition", "task.operands=3", "task.digits=1", "task.train_size=100", "task.validation_size=10",
    "task.test_size=60", *SMALL[3:9], "trainer.duration=8epochs", "trainer.validate_every_epochs=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Two small runs on the same sums: one writes the CoT, one has never seen it."""
    folder = tmp_path_factory.mktemp("runs")
    for schedule in ("explicit_cot", "no_cot"):
        command("train", *SUMS, f"schedule={schedule}", f"run_dir={folder / schedule}")
    return {schedule: folder / schedule for schedule in ("explicit_cot", "no_cot")}


def evaluated(run: Path, **settings: Any) -> tuple[str, dict[str, Any], dict[str, list[Prediction]]]:
    """Return the output of `evaluate`, its summary, and its predictions by part."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        summary = evaluate(EvaluateConfig(run=str(run), speed_problems=0, **settings))
    path = Path(out.getvalue().split("written to")[1].split(";")[0].strip())
    of_part: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in read_predictions(path.with_suffix(".jsonl")):
        of_part[prediction.strata["part"]].append(prediction)
    return out.getvalue(), summary, of_part


def test_a_form_is_asked_beside_the_same_test_problems(runs: dict[str, Path]) -> None:
    out, summary, of_part = evaluated(runs["explicit_cot"], suite="format", suite_size=55)
    assert list(of_part) == ["test", "sign_semicolon", "sign_before"]
    test = of_part["test"]
    assert [len(part) for part in of_part.values()] == [60, 55, 55]
    for name, form in (
        ("sign_semicolon", lambda text: text.replace("+", ";")),
        ("sign_before", lambda text: f"+ {text}"),
    ):
        for one in of_part[name]:
            assert (form(test[one.index].prompt), test[one.index].target) == (one.prompt, one.target)
        pairs = [(test[one.index].right, one.right) for one in of_part[name]]
        lost, won = pairs.count((True, False)), pairs.count((False, True))
        (result,) = [each for each in suite_results(summary) if each.part == name]
        assert result.loss == pytest.approx((lost - won) / 55)
        assert result.interval == pytest.approx(paired_difference(lost, won, 55))
    lines = out.splitlines()
    assert "two_spaces: left out: the same tokens as the test problem" in lines
    assert "sign_plus: left out: the tokenizer does not know 'plus'" in lines
    assert not any(line.startswith("sign_plus ") for line in lines)
    assert sum("points lost: against" in line and "paired" in line for line in lines) == 1


def test_problems_out_of_distribution_are_asked_by_both_runs_side_by_side(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "table.csv"
    config = EvaluateConfig(
        runs=[str(run) for run in runs.values()], suite="ood", suite_size=70, speed_problems=0, out=str(out)
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = evaluate_runs(config)
    rows = list(csv.DictReader(out.open()))
    assert {row["run"] for row in rows} == {str(run) for run in runs.values()} == set(found)
    text = printed.getvalue()
    table = text[text.rindex("\npart ") :]
    for folder, summary in found.items():
        predictions = read_predictions(
            Path(folder) / "evaluations" / f"best-ood-removed{summary['removed_tokens']}.jsonl"
        )
        test = [one.right for one in predictions if one.strata["part"] == "test"]
        for row in (row for row in rows if row["run"] == folder):
            right = [one.right for one in predictions if one.strata["part"] == row["part"]]
            assert (int(row["n"]), int(row["right"])) == (len(right), sum(right))
            if len(right) < 50:
                assert (row["accuracy"], row["loss"]) == ("", "")
                assert f"n={len(right)}{', too few' * bool(right)}" in table
                continue
            accuracy = sum(right) / len(right)
            assert float(row["accuracy"]) == pytest.approx(accuracy)
            assert f"{accuracy:.1%} [" in table
            if row["part"] != "test":
                assert float(row["loss"]) == pytest.approx(sum(test) / len(test) - accuracy)
                ends = newcombe((sum(test) / len(test), len(test)), (accuracy, len(right)))
                assert (float(row["loss_low"]), float(row["loss_high"])) == pytest.approx(ends)
    assert {row["part"] for row in rows} == set(summary["suite_sizes"])
    assert any(int(row["n"]) < 50 for row in rows) and any(int(row["n"]) >= 50 for row in rows)
    # Without a name, the table lies beside the predictions of the first run.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate_runs(EvaluateConfig(runs=config.runs, suite="ood", suite_size=70, speed_problems=0))
    assert (runs["explicit_cot"] / "evaluations" / "suite-ood.csv").read_text() == out.read_text()


def test_the_table_is_refused_where_it_cannot_be(runs: dict[str, Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n")
    folders = [str(run) for run in runs.values()]
    for settings, message in (
        ({"runs": folders, "suite": "ood", "out": str(mine)}, "holds something else"),
        ({"runs": folders, "out": str(tmp_path / "x.csv")}, "is the table of several runs on a suite"),
        (
            {"run": folders[0], "suite": "ood", "out": str(tmp_path / "x.csv")},
            "is the table of several runs on a suite",
        ),
    ):
        with pytest.raises(UserError, match=message):
            EvaluateConfig(**settings)
    before = EvaluateConfig(runs=folders, suite="ood", out=str(mine / "table.csv"))
    with pytest.raises(
        UserError, match=f"^out={mine}: cannot be written .*{mine} is a file, no folder.; choose another out$"
    ):
        evaluate_runs(before)


def test_what_is_too_long_or_unknown_is_left_out(runs: dict[str, Path], tokenizer: PreTrainedTokenizerBase) -> None:
    """A problem of n digits takes 5 tokens besides the digits of prompt, CoT and answer."""
    reader = Reader(tokenizer, by_step=False, removed=0, side="left", added=0, positions=20)
    short, long = Example("1 1 1", "1 0 1", "1"), Example("1 " * 9 + "1", "1 0 " * 4 + "1 0", "1")
    unknown = Example("1 x 1", "1 0 1", "1")
    too_long = "longer than the 20 positions of the model"
    assert reader.obstacles("part", []) == []
    assert reader.obstacles("part", [short, long]) == ["", too_long]
    assert reader.obstacles("part", [short, unknown, long]) == ["", "the tokenizer does not know 'x'", too_long]
    internalised = Reader(tokenizer, by_step=False, removed=10, side="left", added=0, positions=20)
    assert internalised.obstacles("part", [short, long]) == ["", ""]
    assert Reader(tokenizer, False, 0, "left", 0, None).obstacles("part", [long]) == [""]
    assert reader.same_as("1  1", "1 1") and not reader.same_as("1 0", "1 1")
    run = load_run(str(runs["explicit_cot"]), "best")
    own = Reader.of(run, run.stage)
    assert (own.removed, own.positions) == (0, run.model.config.max_position_embeddings)


def test_a_whole_part_that_is_too_long_is_said_once_and_single_problems_are_counted(tokenizer) -> None:
    task = Parity(train_size=20, validation_size=5, test_size=5, bits=6, min_bits=3)
    wanted = WholeSplit(None, suite="ood", suite_size=60)
    # Prompt and CoT of n bits, three end tokens, the mark and the answer.
    reader = Reader(tokenizer, by_step=False, removed=0, side="left", added=0, positions=2 * 5 + 5)
    problems = problems_of(wanted, task, (), reader=reader)
    left_out = problems.asked["suite_left_out"]
    why = "longer than the 15 positions of the model"
    assert left_out["longer"] == left_out["twice_as_long"] == f"left out: {why}"
    assert "shorter" not in left_out and left_out["zero_heavy"].endswith(f"left out, the first: {why}")
    everything = problems_of(wanted, task, ()).asked
    assert not everything["suite_left_out"]
    kept = [
        example
        for example, strata in zip(problems.examples, problems.strata, strict=True)
        if strata["part"] == "zero_heavy"
    ]
    assert 0 < len(kept) < everything["suite_sizes"]["zero_heavy"]
    assert all(len(example.prompt.split()) <= 5 for example in kept)
    assert sum(problems.asked["suite_sizes"].values()) == len(problems.examples) == len(problems.places)


def test_results_of_an_old_summary_have_no_pairs() -> None:
    predictions = [
        Prediction(place, "", "", "", right, {"part": part})
        for part, count in (("test", 100), ("swapped", 40))
        for place, right in enumerate([True, False] * (count // 2))
    ]
    test, swapped, none = part_results(predictions, {"suite_sizes": {"test": 100, "swapped": 40, "none": 0}})
    assert (test.loss, test.share.n, none.share) == (None, 100, None)
    assert swapped.is_too_small and swapped.loss == 0 and not swapped.is_paired
    record = json.loads(json.dumps({"suite_results": [each.record() for each in (test, swapped, none)]}))
    assert [(each.part, each.share, each.loss) for each in suite_results(record)] == [
        (each.part, each.share, each.loss) for each in (test, swapped, none)
    ]


def test_a_multiplication_suite_names_every_part() -> None:
    task = Multiplication(digits=2, train_size=60, validation_size=5, test_size=5)
    problems = problems_of(WholeSplit(None, suite="format", suite_size=5), task, ())
    assert problems.asked["suite_pairs"] == [part for part in problems.asked["suite_sizes"] if part != "test"]
    assert problems.places == [*range(5)] * len(problems.asked["suite_sizes"])


@pytest.mark.parametrize("is_paired,reason", [(True, "no more test problems that have"), (False, "not trained on")])
def test_a_short_part_is_told_with_the_true_reason(is_paired: bool, reason: str) -> None:
    """Another form is made of test problems, and none of these was trained on."""
    whole = PartResult(TEST, Share(50, 60))
    short = PartResult("brackets", Share(50, 60), 0.0, (-0.1, 0.1), is_paired)
    (line,) = [line for line in notes([[whole, short]], 100) if line.startswith("Where n is below 100")]
    assert reason in line
    assert not any("Where n is" in line for line in notes([[whole, short]], 60))
