"""The example of docs/extending.md, as a user types it."""

import csv
import json
import re
import shlex
from pathlib import Path

import torch

from stepwise_pl.runs.inside import Ablation, Patch, Swap, read_rows
from tests.conftest import REPO, command

TEXT = (REPO / "docs" / "extending.md").read_text()


def test_the_example_trains_resumes_evaluates_and_reports(tmp_path: Path) -> None:
    files = re.findall(r"^`(my_plugin/\S+)`:\n\n```\w+\n(.*?)```", TEXT, re.S | re.M)
    assert len(files) == 3
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    block = re.findall(r"```sh\n(.*?)```", TEXT, re.S)[0]
    said = {}
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", "-m"]
        said[line] = command(words[2].removeprefix("stepwise_pl."), *words[3:], cwd=tmp_path).stdout
    shown = " ".join(next(iter(said.values())).split())
    assert "maximum, methods_cpu_modular_sum_auxiliary" in shown and "no_cot, slow_stairs, staircase, stepwise" in shown
    run = tmp_path / "outputs" / "maximum"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["removed_tokens"], summary["test_examples"]) == (120, 4, 100)
    assert summary["test_accuracy"] > 0.5
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["callbacks"]["CountBatches"] == {"batches": 120}
    assert list((run / "evaluations").glob("*.json"))
    assert {row.changed for row in read_rows(run, Swap)} == {f"prompt {place}" for place in (-5, -4, -3, -2)}
    assert read_rows(run, Patch) and read_rows(run, Ablation)
    assert "at step 60: trainer.duration=120steps (was 60steps)" in (tmp_path / "outputs" / "maximum.html").read_text()


def test_the_schedule_that_learns_removes_a_token_after_each_validation(tmp_path: Path) -> None:
    source = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "class Patient" in block)
    (tmp_path / "my_patient.py").write_text(source)
    line = re.findall(r"```sh\n(.*?)```", TEXT, re.S)[1].strip()
    command("train", *shlex.split(line)[3:], cwd=tmp_path)
    summary = json.loads((tmp_path / "outputs" / "patient" / "summary.json").read_text())
    # Epochs of 4 steps are validated after steps 4, 8 and 12.
    with (tmp_path / "outputs" / "patient" / "metrics.csv").open() as file:
        gone = {
            int(row["step"]): float(row["schedule/removed_tokens"]) for row in csv.DictReader(file) if row["train/loss"]
        }
    assert [gone[step] for step in (4, 5, 8, 9, 12)] == [0, 1, 1, 2, 2] and summary["steps"] == 12


def test_the_method_with_a_second_loss_trains_and_logs_it(tmp_path: Path) -> None:
    source = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "class Both" in block)
    (tmp_path / "my_both.py").write_text(source)
    line = re.findall(r"```sh\n(.*?)```", TEXT, re.S)[2].strip()
    command("train", *shlex.split(line)[3:], cwd=tmp_path)
    with (tmp_path / "outputs" / "both" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == 12 and all(float(row["train/without_cot"]) > 0 for row in rows)
    # Once all CoT is gone, both losses read the same: prompt and answer twice, 12 tokens an example.
    read = [float(row["tokens_read"]) for row in rows]
    assert read[-1] - read[-2] == 2 * 4 * 12


def test_the_methods_with_thoughts_train_and_evaluate(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    lines = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for name in ("my_mixture", "my_three"):
        line = next(line for line in lines if f"plugins=./{name}.py" in line)
        source = next(block for block in blocks if f'kind: str = "{_value(line, "method")}"' in block)
        assert len(source.splitlines()) < 80
        (tmp_path / f"{name}.py").write_text(source)
        command("train", *shlex.split(line)[3:], cwd=tmp_path)
        run = _value(line, "run_dir")
        command("evaluate", f"run={run}", "checkpoint=last", "split=validation", "speed_problems=4", cwd=tmp_path)
        (found,) = (tmp_path / run / "evaluations").glob("last-validation-*.json")
        assert json.loads(found.read_text())["problems_per_second_batch_1"] > 0
        refused = command("export", f"run={run}", "out=out", cwd=tmp_path, check=False)
        assert refused.returncode == 2 and "does not answer alone" in refused.stderr


def _value(line: str, key: str) -> str:
    (found,) = re.findall(rf"(?:^| ){key}=(\S+)", line)
    return str(found)
