"""Answers that are right but too long: one step after a token has left, a model still writes its old CoT."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl import report
from stepwise_pl.data.batch import continuation
from stepwise_pl.data.encoding import encode
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.evaluation.answers import Decoded, answers
from stepwise_pl.evaluation.scorer import Scorer
from stepwise_pl.evaluation.verifier import Bounds
from stepwise_pl.models.decoding import generate
from stepwise_pl.report import ReportConfig
from stepwise_pl.reporting.figures.accuracy import accuracy_chart
from stepwise_pl.reporting.figures.data import Chart
from stepwise_pl.reporting.figures.speed import speeds
from stepwise_pl.reporting.history import History, read_run
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.runs.cells import read_result
from stepwise_pl.runs.predictions import read_predictions
from stepwise_pl.runs.records import all_rows, read_stage_records
from stepwise_pl.runs.stages import StageAccuracy, read_stages, selected, stage_table
from stepwise_pl.tasks import Multiplication
from tests.conftest import command, learner
from tests.evaluation.test_verifier import numbered, trained

ANY_LENGTH = "answer_accuracy_any_length"

# The run trains explicit CoT for 15 epochs of 10 steps. A token leaves 5 steps later, and training ends after one more.
COPY = (
    "task=file", "task.allow_overlap=true", "model.layers=1", "model.heads=2", "model.width=64", "optimizer.lr=5e-3",
    "data.batch_size=20", "data.epoch_size=200", "data.cache_dir=null", "schedule.smoothing=inf", "schedule.rewarmup_steps=100", "guard.patience=1",
    "schedule.pretrain_epochs=15", "schedule.delta=2", "trainer.duration=156steps", "trainer.validate_every_epochs=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def still_writing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run that ends one step after its first token has left."""
    folder = tmp_path_factory.mktemp("lengths")
    lines = "".join(f"{a} {b}||{b} {a} {b} #### {a} {b}\n" for a in range(10) for b in range(10))
    (folder / "copy.txt").write_text(lines)
    data = [f"task.{split}={folder / 'copy.txt'}" for split in ("train", "validation", "test")]
    out = command("train", *COPY, *data, f"run_dir={folder / 'run'}")
    (folder / "run" / "output.txt").write_text(out.stdout + out.stderr)
    return folder / "run"


def test_a_model_that_still_writes_its_old_cot_is_right_at_any_length_and_has_not_collapsed(
    still_writing: Path,
) -> None:
    before, after = [row for row in all_rows(still_writing / "metrics.csv") if row["val/loss"]][-2:]
    assert (int(before["schedule/removed_tokens"]), int(after["schedule/removed_tokens"])) == (0, 1)
    assert float(before["val/answer_accuracy"]) == float(before[f"val/{ANY_LENGTH}"]) > 0.9
    assert float(after["val/answer_accuracy"]) < 0.1 and float(after[f"val/{ANY_LENGTH}"]) > 0.9
    summary = json.loads((still_writing / "summary.json").read_text())
    assert summary["collapsed"] is False and summary["collapsed_at"] is None
    assert "has collapsed" not in (still_writing / "output.txt").read_text()
    # Both accuracies are reported. Claims use the one within the length asked for.
    assert summary["test_accuracy"] < 0.1 and summary["test_accuracy_any_length"] > 0.9
    assert summary["val_accuracy"] < 0.1 and summary["val_accuracy_any_length"] > 0.9
    assert summary["removed_at_95"] in (0, None)
    record = read_stage_records(still_writing / "stages.jsonl")[-1]
    assert record["accuracy_any_length"] == float(after[f"val/{ANY_LENGTH}"])
    wrong = [sample for sample in record["samples"] if not sample["right"]]
    assert any(sample.get("too_long") and sample["prediction"] == sample["target"] for sample in wrong)
    assert "right at any length" in (still_writing / "output.txt").read_text()


def test_evaluate_reports_the_same_and_the_written_cot(still_writing: Path) -> None:
    out = command("evaluate", f"run={still_writing}", "split=validation", "checkpoint=last", "speed_problems=0").stdout
    found = json.loads((still_writing / "evaluations" / "last-validation-removed1.json").read_text())
    row = [row for row in all_rows(still_writing / "metrics.csv") if row["val/loss"]][-1]
    for key in ("answer_accuracy", ANY_LENGTH):
        assert found[key] == pytest.approx(float(row[f"val/{key}"]), abs=1e-6)
    predictions = read_predictions(still_writing / "evaluations" / "last-validation-removed1.jsonl")
    for one in predictions:
        assert one.right == (one.prediction == one.target and one.within_length)
    assert sum(one.prediction == one.target for one in predictions) / 100 == pytest.approx(found[ANY_LENGTH])
    assert sum(not one.within_length for one in predictions) > 90
    assert (found["max_new_tokens"], found["decoded_up_to"]) == (found["max_new_tokens"], found["max_new_tokens"] + 1)
    counts = [one.cot_tokens for one in predictions]
    assert found["cot_tokens_written"] == {"mean": sum(counts) / 100, "least": min(counts), "most": max(counts)}  # type: ignore[arg-type, type-var]
    assert found["cot_tokens_written"]["mean"] > 2.9 and found["cot_tokens_of_targets"]["mean"] == 2
    assert "at any length" in out and f"right answers took more than {found['max_new_tokens']} tokens" in out
    assert "removed_tokens= sets only" not in out


def test_removed_tokens_sets_the_targets_and_the_model_writes_what_it_has_learned(run_dir: Path) -> None:
    """The model of `run_dir` writes no CoT, though the targets have 2 CoT tokens."""
    out = command("evaluate", f"run={run_dir}", "removed_tokens=0", "speed_problems=0").stdout
    found = json.loads((run_dir / "evaluations" / "best-test-removed0.json").read_text())
    assert found["cot_tokens_written"] == {"mean": 0, "least": 0, "most": 0}
    assert found["cot_tokens_of_targets"] == {"mean": 2, "least": 2, "most": 2}
    assert "written: 0.0 per answer (0 to 0); in the targets: 2.0 per answer (2 to 2)" in out
    assert "removed_tokens= sets only the targets of loss and length: the model writes what it has learned to" in out


@pytest.mark.parametrize("steps", [60, 250])
def test_accuracy_within_the_length_is_that_of_shorter_decoding(steps: int) -> None:
    """Decoding up to the whole CoT gives the same first tokens, bit for bit, as decoding that ends earlier."""
    task = Multiplication(digits=2, min_digits=1, train_size=48, validation_size=30, test_size=30)
    tokenizer = build_tokenizer("symbols", task.symbols())
    examples = encode(task.load()["train"], tokenizer, "train")
    model = trained(tokenizer, numbered(encode(task.load()["train"], tokenizer, "train")), steps)
    limits = Limits.of({"train": examples}, "left")
    for removed in (0, 1, 4, 10**9):
        scorer = Scorer(learner(model, tokenizer), tokenizer, examples, limits, removed)
        asked, whole = scorer.bounds
        assert (asked, whole) == Bounds.of(limits, removed)
        metrics, found = scorer.evaluate(48)
        batch = examples.collate(np.arange(48)).remove(scorer.count)
        eos = tokenizer.eos_token_id
        short = answers(generate(model, batch, eos, asked), tokenizer)
        long = generate(model, batch, eos, whole)
        targets = answers(continuation(batch), tokenizer)
        for key, given_answers in (("answer_accuracy", short), (ANY_LENGTH, answers(long, tokenizer))):
            right = sum(one == target for one, target in zip(given_answers, targets, strict=True))
            assert metrics[key] == pytest.approx(right / 48)
        assert [one.predicted if one.within_length else None for one in found] == short
        assert [one.cot_tokens for one in found] == [row.index(eos) if eos in row else len(row) for row in long]


@given(st.booleans(), st.sampled_from([None, "1", "2"]))
def test_right_is_right_within_the_length(within: bool, predicted: str | None) -> None:
    one = Decoded(predicted, "1", within)
    assert one.right == (within and predicted == "1") and one.right_any_length == (predicted == "1")


# --- run folders of a version that did not count answers of any length


def strip(folder: Path) -> None:
    """Remove the new numbers from a run folder."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            gone = ("any_length", "too_long", "within_length", "cot_tokens", "decoded_up_to")
            return {key: without(one) for key, one in value.items() if not any(name in key for name in gone)}
        return [without(one) for one in value] if isinstance(value, list) else value

    for path in [folder / "summary.json", *folder.glob("evaluations/*.json")]:
        path.write_text(json.dumps(without(json.loads(path.read_text()))))
    for path in [folder / "stages.jsonl", *folder.glob("evaluations/*.jsonl")]:
        path.write_text("".join(json.dumps(without(json.loads(line))) + "\n" for line in path.read_text().splitlines()))
    rows = all_rows(folder / "metrics.csv")
    columns = [name for name in rows[0] if "any_length" not in name]
    lines = [",".join(columns), *(",".join(row[name] for name in columns) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.long
def test_folders_without_the_new_numbers_are_read_by_everything(still_writing: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command("evaluate", f"run={still_writing}", "speed_problems=2")
    for path in sorted(still_writing.rglob("*")):  # in order, so that evaluations stay newer than checkpoints
        if path.is_file():
            (folder / path.relative_to(still_writing)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(still_writing)).write_bytes(path.read_bytes())
    strip(folder)
    assert "any_length" not in (folder / "metrics.csv").read_text()
    for path in folder.glob("evaluations/*"):
        path.touch()
    stages, _ = read_stages(folder / "metrics.csv")
    assert [stage.accuracy_any_length for stage in stages] == [None, None] and "any length" not in stage_table(stages)
    assert selected(folder / "metrics.csv").accuracy_any_length is None  # type: ignore[union-attr]
    assert read_result(folder).test_accuracy_any_length is None
    chart = accuracy_chart([History(folder, "old", stages=stages)])
    assert isinstance(chart, Chart) and write_figure(chart, ["old"], tmp_path)
    page = report.report(
        ReportConfig([str(folder)], out=str(tmp_path / "report.html"), figures=str(tmp_path / "figures"))
    )
    assert "at any length</" not in page.read_text() and (tmp_path / "figures" / "speed-batch1.png").is_file()
    out = command("compare", str(folder), str(still_writing)).stdout
    assert "run" in out
    command("train", f"run_dir={folder}", "resume=true", "trainer.duration=160steps")
    rows = [row for row in all_rows(folder / "metrics.csv") if row["val/loss"]]
    assert [bool(row[f"val/{ANY_LENGTH}"]) for row in rows] == [False] * (len(rows) - 1) + [True]
    assert [stage.accuracy_any_length is None for stage in read_stages(folder / "metrics.csv")[0]] == [True, False]


def test_a_stage_shows_accuracy_at_any_length_if_it_differs(still_writing: Path, tmp_path: Path) -> None:
    assert (
        not StageAccuracy(0, 1, 0.5, 10).differs
        and not StageAccuracy(0, 1, 0.5, 10, 0.5).differs
        and StageAccuracy(0, 1, 0.5, 10, 0.6).differs
    )
    page = report.report(ReportConfig([str(still_writing)], out=str(tmp_path / "report.html"))).read_text()
    figures = json.loads(page.split('type="application/json" id="figures">')[1].split("</script>")[0])
    thin = [trace for trace in figures["accuracy"]["data"] if "right at any length" in trace["name"]]
    (drawn,) = thin
    assert drawn["line"]["dash"] == "dash" and drawn["line"]["width"] < 1.6 and drawn["y"][-1] > 0.9
    assert '<th scope="col">right at any length</th>' in page and "right, but too long" in page


# --- evaluations of another checkpoint than the present one


@pytest.mark.long
def test_a_stale_evaluation_is_left_out_of_the_figures_with_a_note(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    for more in ((), ("removed_tokens=0",), ("checkpoint=last",), ("split=validation", "limit=3")):
        command("evaluate", f"run={folder}", "speed_problems=2", *more)
    fresh = read_run(folder)
    # The figure has two checkpoints. It leaves out other targets than those trained on, and a limit of three problems.
    assert [len(points) for points in speeds([fresh]).values()] == [2, 2]
    assert any(
        "best-test-removed0.json left out: about targets with more or fewer CoT tokens" in note for note in fresh.notes
    )
    best = folder / "evaluations" / "best-test-removed2.json"
    best.write_text(best.read_text().replace('"step": ', '"step": 9'))
    last = folder / "evaluations" / "last-test-removed2.json"
    os.utime(last, (1, 1))  # a copied folder may have old dates
    assert not any("older" in note for note in read_run(folder).notes)
    # A rollback may leave another checkpoint of the same step.
    last.write_text(last.read_text().replace('"checkpoint_digest": "', '"checkpoint_digest": "0'))
    stale = read_run(folder)
    assert speeds([stale]) == {}
    assert any("best-test-removed2.json is of step 9" in note and "left out" in note for note in stale.notes)
    assert any("last-test-removed2.json is older than last.ckpt" in note and "left out" in note for note in stale.notes)
    out = command("compare", str(folder), str(run_dir), check=False)
    assert out.returncode == 2 and "is of step 9" in out.stderr and "evaluate it again" in out.stderr
