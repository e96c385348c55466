"""`evaluate` on a small run: its predictions are scored again here, independently."""

import contextlib
import io
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from transformers import PreTrainedTokenizerBase

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.text import table
from stepwise_pl.config.plain import read_yaml, save_yaml
from stepwise_pl.data.batch import Part
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.evaluate import EvaluateConfig, evaluate, evaluate_all
from stepwise_pl.evaluation.answers import answers
from stepwise_pl.evaluation.scorer import Scorer
from stepwise_pl.models.decoding import generate
from stepwise_pl.models.trained_run import load_run
from stepwise_pl.runs.predictions import Prediction, by_position, by_stratum, read_predictions, write_predictions
from stepwise_pl.tasks import Files, Multiplication
from tests.conftest import SMALL, command, learner, small_model

# Operands have one or two digits, so that lengths differ. The run trains until it knows its 60 problems
# by heart, so that problems trained on are answered right and others wrong.
MIXED = (
    "task=mult2x2", "task.min_digits=1", "task.train_size=60", "task.validation_size=10", "task.test_size=40",
    *SMALL[3:9], "schedule=no_cot", "trainer.duration=10epochs", "trainer.validate_every_epochs=10",
)  # fmt: skip

Evaluated = tuple[str, dict[str, Any], list[dict[str, Any]]]


def evaluated(run: Path, **settings: Any) -> Evaluated:
    """Run `evaluate`; return its output, and its summary and predictions from the run folder."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        evaluate(EvaluateConfig(run=str(run), **{"speed_problems": 0, **settings}))
    path = Path(out.getvalue().split("written to")[1].split(";")[0].strip())
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return out.getvalue(), json.loads(path.read_text()), rows


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    command("train", *MIXED, f"run_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def mixture(run: Path) -> Path:
    """Write a file of problems that were trained on, and as many that were not."""
    splits = load_run(str(run), "best").config.task.load()
    path = run.parent / "mixture.txt"
    path.write_text("".join(f"{e.line()}\n" for name in ("train", "test") for e in splits[name].slice(0, 40)))
    return path


def wilson(right: int, n: int) -> list[float]:
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return [interval.low, interval.high]


def product(prompt: str) -> str:
    first, second = prompt.replace(" ", "").split("*")
    return " ".join(str(int(first[::-1]) * int(second[::-1])).zfill(len(first) + len(second))[::-1])


@pytest.mark.long
def test_predictions_are_in_the_order_of_the_split(run: Path) -> None:
    for split, settings in (("test", {}), ("train", {"split": "train"})):
        _, summary, rows = evaluated(run, **settings)
        examples = load_run(str(run), "best").config.task.load()[split]
        examples = examples.slice(0, len(examples))
        assert [row["prompt"] for row in rows] == [example.prompt for example in examples]
        assert [row["target"] for row in rows] == [example.answer for example in examples]
        assert [row["index"] for row in rows] == list(range(len(examples)))
        lengths = [len(row["prompt"]) for row in rows]
        assert lengths != sorted(lengths, reverse=True)  # the longest are answered first
        assert (summary["split"], summary["examples"], summary["as_trained"]) == (split, len(examples), True)


def test_predictions_scored_again_are_the_accuracy(run: Path, mixture: Path) -> None:
    for settings in ({"file": str(mixture)}, {"split": "train", "checkpoint": "last", "removed_tokens": 0}):
        _, summary, rows = evaluated(run, **settings)
        right = [row["prediction"] == product(row["prompt"]) for row in rows]
        assert [row["right"] for row in rows] == right
        assert summary["answer_accuracy"] == pytest.approx(sum(right) / len(right))
        assert summary["answer_interval"] == pytest.approx(wilson(sum(right), len(right)), abs=1e-6)
        assert summary["unfinished_answers"] == sum(not row["within_length"] for row in rows)
        if "file" in settings:
            assert 20 < sum(right) < 60  # of 80
        else:
            assert (summary["removed_tokens"], summary["as_trained"], summary["checkpoint"]) == (0, False, "last.ckpt")


def test_each_prediction_is_the_answer_to_the_problem_alone(run: Path, mixture: Path) -> None:
    _, _, rows = evaluated(run, file=str(mixture))
    trained = load_run(str(run), "best")
    encoded = encode(Files().read_other(str(mixture), "file"), trained.tokenizer, "file")
    for index in range(0, 80, 7):
        batch = encoded.collate(torch.tensor([index]).numpy()).remove(trained.removed)
        alone = answers(generate(trained.model, batch, trained.tokenizer.eos_token_id, 30), trained.tokenizer)
        assert alone == [rows[index]["prediction"]]


def test_accuracy_by_position_and_stratum_follow_from_the_predictions(run: Path, mixture: Path) -> None:
    out, summary, rows = evaluated(run, file=str(mixture))
    assert len(summary["answer_positions"]) == 4
    for place, share in enumerate(summary["answer_positions"]):
        there = [row for row in rows if len(row["target"].split()) > place]
        hits = sum(
            (row["prediction"] or "").split()[place : place + 1] == [row["target"].split()[place]] for row in there
        )
        assert 0 < hits < len(there)
        assert (share["n"], share["accuracy"]) == (len(there), pytest.approx(hits / len(there)))
        assert share["interval"] == pytest.approx(wilson(hits, len(there)), abs=1e-6)
    last = summary["answer_positions"][3]
    assert f"4: {last['accuracy']:.1%} (n={last['n']})" in out
    strata: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        first, second = (part.split() for part in row["prompt"].split("*"))
        assert row["strata"]["operand lengths"] == f"{len(first)}x{len(second)}"
        assert row["strata"]["zeros in operands"] == str((first + second).count("0"))
        for name, value in row["strata"].items():
            strata[name][value].append(row["right"])
    assert list(summary["strata"]["operand lengths"]) == ["1x1", "1x2", "2x1", "2x2"]
    assert list(summary["strata"]) == list(strata) == ["operand lengths", "zeros in operands", "carries"]
    for name, values in strata.items():
        assert summary["strata"][name].keys() == values.keys()
        for value, right in values.items():
            share = summary["strata"][name][value]
            assert (share["n"], share["accuracy"]) == (len(right), pytest.approx(sum(right) / len(right)))
            line = next(line for line in out.split(f"\n{name} ")[1].splitlines() if line.split()[:1] == [value])
            assert line.split()[1:3] == [str(len(right)), f"{sum(right) / len(right):.1%}"]
            assert line.endswith("few") == (len(right) < 30)


def test_a_file_is_answered_like_the_split_it_holds(run: Path, tmp_path) -> None:
    _, of_split, rows = evaluated(run)
    test = load_run(str(run), "best").config.task.load()["test"].slice(0, 40)
    (tmp_path / "my data.txt").write_text("\n\n".join(example.line() for example in test) + "\n")
    objects = [{"question": e.prompt, "steps": e.cot, "answer": e.answer} for e in test]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(one) + "\n" for one in objects))
    for name in ("my data.txt", "mine.jsonl"):
        out, of_file, again = evaluated(run, file=str(tmp_path / name))
        assert again == rows
        assert out.startswith(f"{tmp_path / name} of {run}")
        differ = {key for key in of_split.keys() | of_file.keys() if of_split.get(key) != of_file.get(key)}
        assert differ == {"split", "file"}  # the digest is that of the content
    written = {path.name for path in (run / "evaluations").iterdir()}
    digest = of_split["data_digest"][:8]
    for name in ("test", f"file-mine-{digest}", f"file-my-data-{digest}"):
        assert {f"best-{name}-removed8.json", f"best-{name}-removed8.jsonl"} <= written
    assert not any(name.endswith(".tmp") for name in written)


def test_files_of_the_same_name_do_not_overwrite_each_other(run: Path, tmp_path) -> None:
    digests = []
    for folder, line in (("a", "2 * 3||6 0 #### 6 0"), ("b", "2 * 4||8 0 #### 8 0")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.txt").write_text(line + "\n")
        _, summary, rows = evaluated(run, file=str(tmp_path / folder / "one.txt"))
        assert [row["prompt"] for row in rows] == [line.split("||")[0]]
        digests.append(summary["data_digest"])
    assert len(set(digests)) == 2
    assert len(list((run / "evaluations").glob("best-file-one-*.jsonl"))) == 2


def test_a_limit_is_the_beginning(run: Path, mixture: Path) -> None:
    assert evaluated(run, limit=10)[2] == evaluated(run)[2][:10]
    assert evaluated(run, file=str(mixture), limit=10)[2] == evaluated(run, file=str(mixture))[2][:10]
    assert (run / "evaluations" / "best-test-first10-removed8.jsonl").is_file()


def test_the_suite_is_one_table_that_follows_from_its_predictions(run: Path) -> None:
    out, summary, rows = evaluated(run, suite="ood", suite_size=60)
    trained = load_run(str(run), "best")
    assert summary["removed_tokens"] == trained.limits.max_cot
    assert "answer_accuracy" not in summary  # a mixture
    prompts = {example.prompt for example in trained.config.task.load()["train"].slice(0, 60)}
    of_part: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        of_part[row["strata"]["part"]].append(row)
        assert row["right"] == (row["prediction"] == product(row["prompt"]))
        assert row["prompt"] not in prompts
    assert of_part["test"] == [{**row, "strata": {"part": "test", **row["strata"]}} for row in evaluated(run)[2]]
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("part "))
    rows_shown = [(line, *line.split(maxsplit=1)) for line in lines[head + 1 : head + 8]]
    assert [part for _, part, _ in rows_shown] == [
        "test", "fewer_digits", "leading_zeros", "swapped", "repeated_digits", "carry_heavy", "zero_heavy",
    ]  # fmt: skip
    for line, part, rest in rows_shown:
        shown = rest.strip() if rest.strip().startswith("n=") else rest.split()[0]
        right = [row["right"] for row in of_part[part]]
        percent, few = f"{sum(right) / max(1, len(right)):.1%}", len(right) < 50
        assert shown == (f"n={len(right)}{', too few' * bool(right)}" if few else percent)
        assert few or f"n={len(right)}" in line
        assert [row["index"] for row in of_part[part]] == list(range(len(right)))
        assert summary["suite_sizes"][part] == len(right)
    assert summary["suite_sizes"]["fewer_digits"] == 0  # one digit is trained on
    assert summary["suite_sizes"]["zero_heavy"] == 60
    assert "Where n is below 60 there are no more such problems" in out
    assert (run / "evaluations" / "best-ood-removed8.jsonl").is_file()


def test_errors_are_one_line(run: Path, tmp_path) -> None:
    (tmp_path / "bad.txt").write_text("2 * 3||6 0 #### 6 0\n2 * 3 #### 6 0\n")
    for arguments, message in {
        "split=test suite=ood": "error: split=test and suite=ood: give one of split, file and suite",
        "suite=hard": "error: suite=hard: must be one of ood, format",
        f"file={tmp_path / 'bad.txt'}": "1 malformed lines, the first is line 2: no '||' between prompt and CoT; mend them",
    }.items():
        out = command("evaluate", f"run={run}", *arguments.split(), check=False)
        line = out.stderr.strip().splitlines()[-1]
        assert (out.returncode, line.startswith("error: "), message in line) == (2, True, True), out.stderr
        assert "Traceback" not in out.stderr
        assert not out.stdout


def test_a_file_or_setting_that_cannot_be_used_is_named(run: Path, tmp_path) -> None:
    for name, text, message in (
        ("eos.txt", "2 <eos> 3||6 0 #### 6 0\n", "the end token '<eos>' occurs in the text"),
        ("empty.txt", "\n", "no example in it"),
        ("words.txt", "two times three||6 #### 6\n", "the tokenizer does not know 'three times two'"),
        ("mine", "", "cannot tell the format by the ending"),
        ("fields.jsonl", '{"question": "2 * 3"}\n', "the first is line 1: no field 'answer'"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            evaluated(run, file=str(tmp_path / name))
    with pytest.raises(UserError, match=f"file={tmp_path / 'none.txt'}: No such file or directory"):
        evaluated(run, file=str(tmp_path / "none.txt"))
    for settings, message in (
        ({"suite": "ood", "limit": 3}, "limit=3: is not for a suite"),
        ({"suite_size": 0}, "suite_size=0: must be at least 1"),
        ({"file": "a.txt", "split": "test", "suite": "ood"}, "split=test and file=a.txt and suite=ood: give one of"),
        ({"removed_steps": 1}, "removed_steps=1: the run has method.unit=token; give removed_tokens"),
    ):
        with pytest.raises(UserError, match=message):
            evaluated(run, **settings)


def test_a_run_on_files_reads_other_files_by_its_own_columns(tmp_path) -> None:
    products = {f"{a} * {b}": f"{a * b:02d}"[::-1] for a in range(1, 10) for b in range(1, 10)}
    rows = [{"q": prompt, "z": list(digits), "a": " ".join(digits)} for prompt, digits in products.items()]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:70]))
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[70:]))
    run = tmp_path / "run"
    command(
        "train", *SMALL[3:], "task=file", f"task.train={tmp_path / 'train.jsonl'}", "task.prompt_field=q",
        "task.cot_field=z", "task.answer_field=a", "task.validation_size=5", "task.test_size=5",
        "method.unit=step", f"run_dir={run}", "trainer.duration=3epochs",
    )  # fmt: skip
    _, summary, predictions = evaluated(run, file=str(tmp_path / "more.jsonl"))
    assert [row["prompt"] for row in predictions] == [row["q"] for row in rows[70:]]
    assert (summary["removed_steps"], summary["removed_tokens"], summary["strata"]) == (2, 2, {})
    with contextlib.redirect_stdout(io.StringIO()) as out:
        levels = evaluate_all(EvaluateConfig(run=str(run), removed_steps="all", speed_problems=0))
    assert [(level["removed_steps"], level["removed_tokens"]) for level in levels] == [(0, 0), (1, 1), (2, 2)]
    assert "levels-best-test.csv" in out.getvalue()
    with pytest.raises(UserError, match="suite=ood: task file has none; suite=format is for every task"):
        evaluated(run, suite="ood")
    # Lines of text have no steps. That matters only if some steps are left.
    (tmp_path / "lines.txt").write_text("2 * 3||6 0 #### 6 0\n")
    assert len(evaluated(run, file=str(tmp_path / "lines.txt"))[2]) == 1
    with pytest.raises(UserError, match="its CoT has no reasoning steps"):
        evaluated(run, file=str(tmp_path / "lines.txt"), removed_steps=1)


def test_the_bound_on_new_tokens_follows_the_data(tokenizer: PreTrainedTokenizerBase) -> None:
    """Problems longer than those of the run are answered to the end."""
    short, long = (
        encode(Multiplication(digits=d, train_size=20, validation_size=1, test_size=1).load()["train"], tokenizer, "train")
        for d in (1, 4)
    )  # fmt: skip
    limits = Limits.of({"train": short}, "left")
    model = small_model(tokenizer)
    for removed in range(limits.max_removed + 1):
        scorer = Scorer(learner(model, tokenizer), tokenizer, long, limits, removed)
        left = 0 if removed == limits.max_removed else int(long.cot_length.max()) - removed
        assert scorer.bound == left + int(long.answer_length.max())
        assert all(batch.length_of(Part.COT).max() == left for batch in scorer.views(7))  # type: ignore[arg-type]
        assert len(scorer.evaluate(7)[1].target) == 20


def test_an_answer_of_another_length_is_counted_by_its_words() -> None:
    def one(target: str, prediction: str | None) -> Prediction:
        return Prediction(0, "", target, prediction, prediction == target, {"kind": "10"})

    predictions = [one("1 2", "1 2 3"), one("1 2 3", "1"), one("4", None), one("1 2 3", "2 2 3")]
    assert by_position(predictions) == [(2, 4), (2, 3), (1, 2)]
    assert by_stratum(predictions) == {"kind": {"10": (0, 4)}}
    predictions[0].strata = {"kind": "9"}
    assert list(by_stratum(predictions)["kind"]) == ["9", "10"]


def test_predictions_survive_the_file(tmp_path) -> None:
    written = [
        Prediction(0, "1 \u2028 2", "ä\n", None, False, {"a": "b"}),
        Prediction(1, "p", "t", "t", True),
    ]
    write_predictions(written, tmp_path / "p.jsonl")
    assert read_predictions(tmp_path / "p.jsonl") == written
    (tmp_path / "p.jsonl").write_text('{"index": 1}\n')
    with pytest.raises(UserError, match="line 1 is no prediction"):
        read_predictions(tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="No such file"):
        read_predictions(tmp_path / "q.jsonl")


def test_a_table_is_aligned() -> None:
    assert table(("a", "b", ""), [("long", "1", ""), ("x", "100", "few")]) == [
        "a       b",
        "long    1",
        "x     100  few",
    ]


def test_the_test_split_of_a_finished_run_is_judged_by_the_band_of_its_recipe(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    config = read_yaml(folder / "config.yaml")
    save_yaml(
        {
            **config,
            "expected": {**config["expected"], "accuracy": [0.0, 1.0], "source": "a table"},
            "derived": {**config["derived"], "changed": []},
        },
        folder / "config.yaml",
    )
    out, summary, _ = evaluated(folder)
    judged = summary["expected"]
    assert judged["accuracy_measured"] == summary["answer_accuracy"] and judged["accuracy_inside"] is True
    assert "test accuracy 0.0% to 100.0%: inside" in out and "says a table" in out
    assert "expected" not in evaluated(folder, split="validation")[1] and "expected" not in evaluated(run)[1]


def test_an_evaluation_offline_is_about_wandb(run: Path) -> None:
    with pytest.raises(UserError, match="offline=true: is about W&B; add wandb=true"):
        EvaluateConfig(run=str(run), offline=True)
