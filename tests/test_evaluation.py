"""`evaluate` through the real command: what it writes is scored again here, independently."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from transformers import PreTrainedTokenizerBase

from stepwise_pl.decoding import answers, generate
from stepwise_pl.errors import UserError
from stepwise_pl.evaluation import Scorer
from stepwise_pl.predictions import Prediction, by_position, by_stratum, read_predictions, table, write_predictions
from stepwise_pl.removal import remove
from stepwise_pl.runs import load_run
from stepwise_pl.tasks import Multiplication
from stepwise_pl.tokenizing import encode
from tests.conftest import SMALL, command, small_model

# Two digits, lengths mixed, so that answers and CoTs differ in length and some answers are wrong.
MIXED = (
    *SMALL, "task.digits=2", "task.min_digits=1", "task.train_size=3000", "task.validation_size=100",
    "task.test_size=200", "schedule.delta=2", "trainer.max_epochs=10",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    command("train", *MIXED, f"run_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def evaluate(run: Path) -> Callable[..., tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """What the command prints, its summary and its predictions."""
    kept: dict[tuple[str, ...], tuple[str, dict[str, Any], list[dict[str, Any]]]] = {}

    def call(*arguments: str) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
        if arguments not in kept:
            out = command("evaluate", f"run={run}", "speed_problems=0", *arguments).stdout
            path = Path(out.split("written to")[1].split(";")[0].strip())
            rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
            kept[arguments] = out, json.loads(path.read_text()), rows
        return kept[arguments]

    return call


def wilson(right: int, n: int) -> list[float]:
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return [interval.low, interval.high]


def product(prompt: str) -> str:
    first, second = prompt.replace(" ", "").split("*")
    return " ".join(str(int(first[::-1]) * int(second[::-1])).zfill(len(first) + len(second))[::-1])


def test_predictions_are_in_the_order_of_the_split(run: Path, evaluate) -> None:
    _, summary, rows = evaluate()
    test = load_run(str(run), "best").config.task.load()["test"].slice(0, 200)
    assert [row["prompt"] for row in rows] == [example.prompt for example in test]
    assert [row["target"] for row in rows] == [example.answer for example in test]
    assert [row["index"] for row in rows] == list(range(200))
    lengths = [len(row["prompt"]) for row in rows]
    assert lengths != sorted(lengths, reverse=True)  # the longest are answered first
    assert summary["examples"] == 200


def test_predictions_scored_again_are_the_accuracy(evaluate) -> None:
    for arguments in ((), ("split=validation", "checkpoint=last", "removed_tokens=0")):
        _, summary, rows = evaluate(*arguments)
        right = [row["prediction"] == product(row["prompt"]) for row in rows]
        assert [row["right"] for row in rows] == right
        assert 0 < sum(right) < len(right)
        assert summary["answer_accuracy"] == pytest.approx(sum(right) / len(right))
        assert summary["answer_interval"] == pytest.approx(wilson(sum(right), len(right)), abs=1e-6)
        assert summary["unfinished_answers"] == [row["prediction"] for row in rows].count(None)


def test_each_prediction_is_what_the_model_answers_alone(run: Path, evaluate) -> None:
    _, _, rows = evaluate()
    trained = load_run(str(run), "best")
    test = trained.config.task.load()["test"]
    encoded = encode(test, trained.tokenizer, "test")
    for index in (0, 7, 123):
        batch = remove(encoded.collate(torch.tensor([index]).numpy()), trained.removed)
        alone = answers(generate(trained.model, batch, trained.tokenizer.eos_token_id, 30), trained.tokenizer)
        assert alone == [rows[index]["prediction"]]


def test_accuracy_by_position_and_stratum_follow_from_the_predictions(evaluate) -> None:
    out, summary, rows = evaluate()
    longest = max(len(row["target"].split()) for row in rows)
    assert longest == len(summary["answer_positions"]) == 4
    for place, share in enumerate(summary["answer_positions"]):
        there = [row for row in rows if len(row["target"].split()) > place]
        hits = sum(
            (row["prediction"] or "").split()[place : place + 1] == [row["target"].split()[place]] for row in there
        )
        assert (share["n"], share["accuracy"]) == (len(there), pytest.approx(hits / len(there)))
        assert share["interval"] == pytest.approx(wilson(hits, len(there)), abs=1e-6)
    assert f"4: {summary['answer_positions'][3]['accuracy']:.1%} (n={summary['answer_positions'][3]['n']})" in out
    strata: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        first, second = (part.split() for part in row["prompt"].split("*"))
        assert row["strata"]["operand lengths"] == f"{len(first)}x{len(second)}"
        assert row["strata"]["zeros in operands"] == str((first + second).count("0"))
        for name, value in row["strata"].items():
            strata[name][value].append(row["right"])
    assert list(summary["strata"]["operand lengths"]) == ["1x1", "1x2", "2x1", "2x2"]
    for name, values in strata.items():
        assert summary["strata"][name].keys() == values.keys()
        for value, right in values.items():
            share = summary["strata"][name][value]
            assert (share["n"], share["accuracy"]) == (len(right), pytest.approx(sum(right) / len(right)))
            line = next(line for line in out.split(name)[1].splitlines() if line.split()[:1] == [value])
            assert line.split()[1:3] == [str(len(right)), f"{sum(right) / len(right):.1%}"]
            assert line.endswith("few") == (len(right) < 30)


def test_a_file_is_answered_like_the_split_it_holds(run: Path, evaluate, tmp_path) -> None:
    _, of_split, rows = evaluate()
    test = load_run(str(run), "best").config.task.load()["test"].slice(0, 200)
    (tmp_path / "mine.txt").write_text("\n\n".join(example.line() for example in test) + "\n")
    objects = [{"question": e.prompt, "steps": e.cot, "answer": e.answer} for e in test]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(one) + "\n" for one in objects))
    for name in ("mine.txt", "mine.jsonl"):
        out, of_file, again = evaluate(f"file={tmp_path / name}")
        assert again == rows
        assert str(tmp_path / name) in out
        differ = {key for key in of_split.keys() | of_file.keys() if of_split.get(key) != of_file.get(key)}
        assert differ == {"split", "file"}  # the digest is of what was read
    written = {path.name for path in (run / "evaluations").iterdir()}
    assert f"best-file-mine-{of_split['data_digest'][:8]}-removed6.jsonl" in written
    assert {"best-test-removed6.json", "best-test-removed6.jsonl"} <= written
    assert not any(name.endswith(".tmp") for name in written)


def test_another_file_has_another_digest_and_another_name(run: Path, evaluate, tmp_path) -> None:
    digests = []
    for folder, line in (("a", "2 * 3||6 0 #### 6 0"), ("b", "2 * 4||8 0 #### 8 0")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.txt").write_text(line + "\n")
        _, summary, rows = evaluate(f"file={tmp_path / folder / 'one.txt'}")
        assert [row["prompt"] for row in rows] == [line.split("||")[0]]
        digests.append(summary["data_digest"])
    assert len(set(digests)) == 2
    assert len(list((run / "evaluations").glob("best-file-one-*.jsonl"))) == 2


def test_a_limit_is_the_beginning(evaluate) -> None:
    assert evaluate("limit=20")[2] == evaluate()[2][:20]


def test_the_suite_is_one_table_that_follows_from_its_predictions(run: Path, evaluate) -> None:
    out, summary, rows = evaluate("suite=ood", "suite_size=60")
    trained = load_run(str(run), "best")
    assert summary["removed_tokens"] == trained.limits.max_cot
    assert "answer_accuracy" not in summary  # a mixture
    prompts = {example.prompt for example in trained.config.task.load()["train"].slice(0, 3000)}
    of_part: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        of_part[row["strata"]["part"]].append(row)
        assert row["right"] == (row["prediction"] == product(row["prompt"]))
        assert row["prompt"] not in prompts
    assert of_part["test"] == [{**row, "strata": {"part": "test", **row["strata"]}} for row in evaluate()[2]]
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("part "))
    shown = [line.split()[:3] for line in lines[head + 1 : head + 8]]
    assert [part for part, *_ in shown] == [
        "test", "fewer_digits", "leading_zeros", "swapped", "repeated_digits", "carry_heavy", "zero_heavy",
    ]  # fmt: skip
    for part, n, accuracy in shown:
        right = [row["right"] for row in of_part[part]]
        assert (n, accuracy) == (str(len(right)), f"{sum(right) / len(right):.1%}" if right else "-")
        assert [row["index"] for row in of_part[part]] == list(range(len(right)))
        assert summary["suite_sizes"][part] == len(right)
    assert summary["suite_sizes"]["fewer_digits"] == 0  # one digit is trained on
    assert "Where n is below 60 there are no more such problems" in out
    assert (run / "evaluations" / "best-ood-removed6.jsonl").is_file()


def test_errors_are_one_line(run: Path, tmp_path) -> None:
    (tmp_path / "bad.txt").write_text("2 * 3||6 0 #### 6 0\n2 * 3 #### 6 0\n")
    (tmp_path / "eos.txt").write_text("2 <eos> 3||6 0 #### 6 0\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "words.txt").write_text("two times three||6 #### 6\n")
    for arguments, message in {
        "split=test suite=ood": "split=test and suite=ood: give one of split, file and suite",
        f"split=train file={tmp_path / 'bad.txt'}": "give one of split, file and suite",
        "suite=hard": "suite=hard: must be one of ood",
        "suite=ood limit=3": "limit=3: is not for a suite",
        "suite_size=0": "suite_size=0: must be at least 1",
        f"file={tmp_path / 'bad.txt'}": "1 malformed lines, the first is line 2: no '||' between prompt and CoT",
        f"file={tmp_path / 'eos.txt'}": "the end token '<eos>' occurs in the text",
        f"file={tmp_path / 'empty.txt'}": "no example in it",
        f"file={tmp_path / 'words.txt'}": "the tokenizer does not know 'three times two'",
        f"file={tmp_path / 'mine'}": "cannot tell the format by the ending",
        f"file={tmp_path / 'none.jsonl'}": "none.jsonl: No such file or directory",
    }.items():
        out = command("evaluate", f"run={run}", *arguments.split(), check=False)
        line = out.stderr.strip().splitlines()[-1]
        assert (out.returncode, line.startswith("error: "), message in line) == (2, True, True), out.stderr
        assert "Traceback" not in out.stderr
        assert not out.stdout


def test_a_run_on_files_reads_other_files_by_its_own_columns(tmp_path) -> None:
    rows = [
        {"q": f"{a} * {b}", "z": list(f"{a * b:02d}"[::-1]), "a": " ".join(f"{a * b:02d}"[::-1])}
        for a in range(1, 10)
        for b in range(1, 10)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:70]))
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[70:]))
    command(
        "train", *SMALL[3:], "task=file", f"task.train={tmp_path / 'train.jsonl'}", "task.prompt_field=q",
        "task.cot_field=z", "task.answer_field=a", "task.validation_size=5", "task.test_size=5",
        "schedule.unit=step", f"run_dir={tmp_path / 'run'}", "trainer.max_epochs=3",
    )  # fmt: skip
    command("evaluate", f"run={tmp_path / 'run'}", f"file={tmp_path / 'more.jsonl'}", "speed_problems=0")
    found = next((tmp_path / "run" / "evaluations").glob("best-file-more-*.jsonl"))
    assert [json.loads(line)["prompt"] for line in found.read_text().splitlines()] == [row["q"] for row in rows[70:]]
    out = command("evaluate", f"run={tmp_path / 'run'}", "suite=ood", check=False)
    assert out.stderr == "error: suite=ood: task file has none; multiplication has one\n"
    # Lines of text know no steps, which matters only where some are left.
    (tmp_path / "lines.txt").write_text("2 * 3||6 0 #### 6 0\n")
    out = command("evaluate", f"run={tmp_path / 'run'}", f"file={tmp_path / 'lines.txt'}", "speed_problems=0")
    out = command(
        "evaluate", f"run={tmp_path / 'run'}", f"file={tmp_path / 'lines.txt'}", "removed_steps=1", check=False
    )
    assert "its CoT has no reasoning steps" in out.stderr


def test_the_bound_on_new_tokens_follows_the_data(tokenizer: PreTrainedTokenizerBase) -> None:
    """Longer problems than those of the run are answered to the end."""
    from stepwise_pl.datamodule import Limits

    short, long = (
        encode(Multiplication(digits=d, train_size=20, validation_size=1, test_size=1).load()["train"], tokenizer, "train")
        for d in (1, 4)
    )  # fmt: skip
    limits = Limits.of({"train": short}, "left")
    model = small_model(tokenizer)
    for removed in range(limits.max_removed + 1):
        scorer = Scorer(model, tokenizer, long, limits, removed)
        left = 0 if removed == limits.max_removed else int(long.cot_length.max()) - removed
        assert scorer.bound == left + int(long.answer_length.max())
        assert all(batch.length_of(1).max() == left for batch in scorer.batches(7))  # type: ignore[arg-type]
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
