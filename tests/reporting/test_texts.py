"""The results of runs, evaluations and sweeps as text, and the notes of a report, from files made by hand."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from stepwise_pl.config.request import Request
from stepwise_pl.config.training import ExpectedConfig
from stepwise_pl.reporting import run_text, sweep_text
from stepwise_pl.reporting.evaluation_text import result_lines
from stepwise_pl.reporting.history import find_runs, read_run
from stepwise_pl.runs.expected import judge
from stepwise_pl.runs.predictions import Prediction
from stepwise_pl.runs.sweep_folder import Job, Sweep, write_sweep

SUMMARY: dict[str, Any] = {
    "name": "mine", "test_accuracy": 0.5, "test_accuracy_any_length": 0.5, "test_examples": 40, "removed_tokens": 2,
    "max_cot_tokens": 6, "rollbacks": [], "collapsed": False, "collapsed_at": None, "expected": None, "checkpoint": "best.ckpt",
    "examples_per_token": None, "steps": 80, "examples_seen": 640, "seconds": 3.0, "tokens_read": 1000,
    "can_export": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes,line",
    [
        ({"collapsed": True, "collapsed_at": 4}, "guard           accuracy has collapsed; slower removal (a lower schedule.delta, a higher schedule.keep), schedule.smoothing or "
            "guard=halve may prevent it"),
        ({"collapsed_at": 4}, "guard           accuracy had collapsed with 4 tokens removed, and came back"),
    ],
)  # fmt: skip
def test_a_run_that_collapsed_says_whether_accuracy_came_back(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,attempt,schedule/removed_tokens,val/answer_accuracy,val/examples\n20,0,0,0.9,20\n40,0,2,0.5,20\n"
    )
    assert line in run_text.report(tmp_path, SUMMARY | changes, Request("mine")).splitlines()
    assert "guard  " not in run_text.report(tmp_path, SUMMARY, Request("mine"))


def test_an_evaluation_says_whether_it_lies_in_the_band_of_its_recipe() -> None:
    predictions = [Prediction(i, "1 * 1", "1", "1" if i else "2", bool(i)) for i in range(4)]
    judged = judge(ExpectedConfig([0.9, 1.0], source="a table"), 0.75, None, [])
    summary = {"token_accuracy": 0.5, "loss": 1.0, "perplexity": 2.7, "unfinished_answers": 0, "strata": {}}
    lines = result_lines(predictions, {**summary, "expected": judged})
    place = lines.index("expected        test accuracy 90.0% to 100.0%: BELOW (75.0%)")
    assert lines[place + 1] == f"{'':16}says a table"
    assert not any("a table" in line for line in result_lines(predictions, summary))


def swept(folder: Path, *jobs: Job, planned: tuple[str, ...] = ()) -> Sweep:
    return Sweep(
        folder, "a", ["-m", "seed=0,1"], ["seed"], "1 on another-machine", len(jobs), list(jobs), list(planned)
    )


def test_a_sweep_names_the_command_to_go_on_with_for_its_own_jobs_and_counts_those_of_others(tmp_path: Path) -> None:
    mine, other = Job("seed0", [], {"seed": "0"}, "stopped"), Job("seed9", [], {"seed": "9"}, "waiting")
    again = shlex.join(["python", "-m", "stepwise_pl.train", "-m", "seed=0,1", "resume=true"])
    text = sweep_text.report(swept(tmp_path, mine, other, planned=("seed0",)), [])
    assert f"next            {again}\n" in text
    assert "and the earlier command with resume=true, for 1 other jobs\n" in text
    mine.outcome = "finished"
    text = sweep_text.report(swept(tmp_path, mine, other, planned=("seed0",)), [])
    assert again not in text and "for 1 other jobs\n" in text


def test_a_sweep_prints_ten_failures_and_counts_the_others(tmp_path: Path) -> None:
    jobs = [Job(f"seed{i}", [], {"seed": str(i)}, "failed", f"reason {i}") for i in range(13)]
    text = sweep_text.report(swept(tmp_path, *jobs), [])
    assert [i for i in range(13) if f"seed={i}: reason {i}\n" in text] == [*range(10)]
    assert "and 3 more, in sweep.json\n" in text


def test_a_report_notes_the_jobs_of_a_sweep_that_are_not_finished_and_a_damaged_sweep(tmp_path: Path) -> None:
    jobs = [
        Job(f"b/seed{i}", [], {"seed": str(i)}, outcome) for i, outcome in enumerate(("failed", "stopped", "waiting"))
    ]
    jobs[0].error = "no luck"
    write_sweep(swept(tmp_path, *jobs))
    for run in ("a/seed1", "b/seed1"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.yaml").write_text("seed: 1\n")
        (tmp_path / run / "metrics.csv").write_text("step\n1\n")
    found, notes = find_runs([str(tmp_path)])
    assert found == [tmp_path / "b/seed1", tmp_path / "a/seed1"]  # a folder that no job has comes last
    assert notes == [
        f"{tmp_path}: of 3 jobs of the sweep 1 failed, 1 stopped, 1 waiting",
        f"{tmp_path}: seed=0 failed: no luck",
    ]
    (tmp_path / "sweep.json").write_text("{")
    found, (note,) = find_runs([str(tmp_path)])
    assert found == [tmp_path / "a/seed1", tmp_path / "b/seed1"] and note.startswith(f"{tmp_path / 'sweep.json'}: ")


def test_a_report_leaves_out_evaluations_that_are_not_of_the_checkpoint_as_it_was_trained(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    kinds = {
        "other1": {"as_trained": False, "removed_tokens": 1}, "mine": {"as_trained": True, "answer_accuracy": 0.5},
        "other2": {"as_trained": False, "removed_tokens": 2}, "stale": {"as_trained": True, "checkpoint": "best.ckpt"},
    }  # fmt: skip
    for name, content in kinds.items():
        (tmp_path / f"evaluations/{name}.json").write_text(json.dumps(content))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").write_text("written after the evaluation")
    run = read_run(tmp_path)
    assert [found.get("answer_accuracy") for found in run.evaluations] == [0.5]
    told = [note for note in run.notes if note.startswith("evaluations/")]
    assert told == [
        "evaluations/stale.json is older than best.ckpt, with which the run has gone on: it is left out; evaluate it again",
        "evaluations/other1.json and 1 more left out: about targets with more or fewer CoT tokens removed than at the stage of "
        "the checkpoint",
    ]
