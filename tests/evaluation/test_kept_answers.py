"""The test at the end of a run keeps its answers, as `evaluate` writes them."""

import json
import shutil
from pathlib import Path

import pytest

from stepwise_pl.compare import CompareConfig, compare
from stepwise_pl.evaluate import EvaluateConfig, evaluate
from stepwise_pl.runs.predictions import read_predictions

NAME = "best-test-removed2"


def test_they_are_those_of_an_evaluation(run_dir: Path) -> None:
    file = run_dir / "evaluations" / f"{NAME}.jsonl"
    kept, summary = file.read_bytes(), json.loads(file.with_suffix(".json").read_text())
    assert summary["answer_accuracy"] == json.loads((run_dir / "summary.json").read_text())["test_accuracy"]
    right = [one.right for one in read_predictions(file)]
    assert len(right) == 17 and sum(right) / 17 == pytest.approx(summary["answer_accuracy"])
    evaluated = evaluate(EvaluateConfig(run=str(run_dir), speed_problems=0))
    assert file.read_bytes() == kept
    evaluated = json.loads(json.dumps(evaluated))
    floats = {key for key, value in summary.items() if isinstance(value, float)}
    assert {"loss", "token_accuracy", "answer_accuracy"} <= floats
    assert {key: summary[key] for key in floats} == pytest.approx({key: evaluated[key] for key in floats}, rel=1e-4)
    assert {key: value for key, value in summary.items() if key not in floats} == {
        key: value for key, value in evaluated.items() if key not in floats | {"expected"}
    }


def test_two_runs_are_compared_at_once(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        shutil.copytree(run_dir, tmp_path / name)
    # Predictions of an earlier checkpoint of the same run, which come first by name.
    stale = tmp_path / "a" / "evaluations" / "best-test-removed1.json"
    shutil.copy(stale.with_name(f"{NAME}.jsonl"), stale.with_suffix(".jsonl"))
    summary = json.loads(stale.with_name(f"{NAME}.json").read_text())
    stale.write_text(json.dumps({**summary, "checkpoint_digest": "0", "removed_tokens": 1}))
    found = compare(CompareConfig(runs=[str(tmp_path / "a"), str(tmp_path / "b")]))
    assert [run["removed_tokens"] for run in found["runs"]] == [2, 2]
    assert found["pairs"][0]["only_first_right"] == found["pairs"][0]["only_second_right"] == 0
    shutil.copy(stale, stale.with_name(f"{NAME}.json"))
    with pytest.raises(Exception, match="is older than best.ckpt"):
        compare(CompareConfig(runs=[str(tmp_path / "a"), str(tmp_path / "b")]))
