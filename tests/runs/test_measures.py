"""The measures of the runs of a sweep, on files written by hand and on a run that was trained."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.runs.cells import cells_of_sweep
from stepwise_pl.runs.measures import MEASURES, MeasuredRun, measured, require_measure
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, RUNNING, WAITING, Job, Sweep

Row = tuple[int, int, float]  # step, removed tokens, accuracy


def write_run(run: Path, rows: Sequence[Row], attempts: Sequence[int] = (), **summary: Any) -> None:
    """A finished run of batches of 10 with 4 CoT tokens, validated at these rows.

    Args:
        attempts: of each row; empty: the guard never went back.
    """
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(
        "seed: 5\ndata: {batch_size: 10}\nderived: {max_cot_tokens: 4, examples_per_token: null}\n"
    )
    (run / "summary.json").write_text(json.dumps({
        "test_accuracy": 0.75, "test_examples": 40, "removed_tokens": 4, "collapsed": False, "seconds": 12.5, "tokens_read": 9000,
        **summary,
    }))  # fmt: skip
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["step", "attempt", "schedule/removed_tokens", "train/loss", "val/answer_accuracy", "val/examples"]
        )
        for place, (step, removed, accuracy) in enumerate(rows):
            attempt = attempts[place] if attempts else 0
            writer.writerow([step, attempt, removed, 0.5, "", ""])
            writer.writerow([step, attempt, removed, "", accuracy, 20])


def sweep_of(folder: Path, *jobs: Job) -> list[tuple[str, MeasuredRun]]:
    """The jobs of a sweep with every measure."""
    cells = cells_of_sweep(Sweep(folder, "a", [], ["seed"], "1 on nowhere", len(jobs), list(jobs)))
    return [(name, run) for name, measure in MEASURES.items() for run in measured(folder, cells, measure)]


def numbers(folder: Path) -> dict[str, float | None]:
    return {name: run.value for name, run in sweep_of(folder, Job("run", [], {}, FINISHED))}


TO_THE_END: list[Row] = [
    (10, 0, 0.5),
    (20, 0, 0.95),
    (30, 2, 0.9),
    (40, 2, 0.97),
    (50, 4, 0.2),
    (60, 4, 0.96),
    (90, 4, 1.0),
]


def test_a_run_that_removes_all_tokens_has_every_number(tmp_path: Path) -> None:
    write_run(tmp_path / "run", TO_THE_END)
    assert numbers(tmp_path) == {
        "removed_at_95": 4, "removed_share": 1.0, "examples": 600, "examples_per_token": 120, "tokens_read": 9000,
        "test_accuracy": 0.75, "seconds": 12.5,
    }  # fmt: skip


def test_training_on_after_the_last_token_has_gone_changes_no_number_of_examples(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [*TO_THE_END, (1000, 4, 1.0), (5000, 4, 0.99)])
    assert (numbers(tmp_path)["examples"], numbers(tmp_path)["examples_per_token"]) == (600, 120)


def test_a_run_that_comes_half_way_counts_what_it_removed(tmp_path: Path) -> None:
    """The first stage counts as well: a run of explicit CoT has the examples until its 95%."""
    write_run(tmp_path / "run", TO_THE_END[:5])
    found = numbers(tmp_path)
    assert (found["removed_at_95"], found["removed_share"], found["examples"]) == (2, 0.5, None)
    assert found["examples_per_token"] == pytest.approx(400 / 3)
    write_run(tmp_path / "explicit" / "run", [(10, 0, 0.5), (20, 0, 0.95), (30, 0, 1.0)])
    found = numbers(tmp_path / "explicit")
    assert (found["removed_at_95"], found["examples"], found["examples_per_token"]) == (0, None, 200)


def test_a_run_that_never_reached_95_percent_counts_0_and_is_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [(10, 0, 0.5), (20, 4, 0.949)])
    found = sweep_of(tmp_path, Job("run", [], {}, FINISHED))
    assert {name: run.value for name, run in found} == {
        "removed_at_95": 0, "removed_share": 0, "examples": None, "examples_per_token": None, "tokens_read": 9000,
        "test_accuracy": 0.75, "seconds": 12.5,
    }  # fmt: skip
    assert {name for name, run in found if run.never_at_95} == {"removed_at_95", "removed_share"}


def test_examples_that_the_guard_threw_away_were_trained_on(tmp_path: Path) -> None:
    """Attempt 1 goes back from step 45 to step 20, so its step 40 comes after 40 + 25 steps."""
    rows: list[Row] = [(20, 0, 0.96), (40, 2, 0.99), (30, 1, 0.9), (40, 2, 0.97)]
    back = {"at_step": 45, "to_step": 20}
    write_run(tmp_path / "run", rows, attempts=[0, 0, 1, 1], rollbacks=[back])
    path = tmp_path / "run" / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], "20,1,0,0.5,,\n", *lines[5:]]))  # an attempt's first row is of its first step
    assert numbers(tmp_path)["examples_per_token"] == pytest.approx(10 * (40 + 25) / 3)


def test_of_stages_with_as_many_removed_tokens_the_last_counts(tmp_path: Path) -> None:
    """Stage 1 reads, stage 2 answers, both with all tokens gone."""
    write_run(tmp_path / "run", [])
    rows = [(10, 0, 1.0, 0), (20, 4, 1.0, 1), (30, 4, 0.5, 2), (40, 4, 0.98, 2)]
    lines = ["step,attempt,schedule/removed_tokens,val/answer_accuracy,val/examples,schedule/stage"]
    lines += [f"{step},0,{removed},{accuracy},20,{stage}" for step, removed, accuracy, stage in rows]
    (tmp_path / "run" / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert (numbers(tmp_path)["removed_at_95"], numbers(tmp_path)["examples"]) == (4, 400)


def test_a_task_without_cot_has_no_share_and_a_run_that_did_not_count_tokens_none(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [(10, 0, 1.0)], tokens_read=None)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("max_cot_tokens: 4", "max_cot_tokens: 0"))
    found = numbers(tmp_path)
    assert (found["removed_share"], found["tokens_read"], found["examples"]) == (None, None, 100)


def test_a_job_that_has_not_ended_has_no_number(tmp_path: Path) -> None:
    write_run(tmp_path / "run", TO_THE_END)
    jobs = [Job(outcome, [], {"seed": str(i)}, outcome) for i, outcome in enumerate((FAILED, RUNNING, WAITING))]
    found = sweep_of(tmp_path, Job("run", [], {"seed": "5"}, FINISHED), *jobs)
    assert {run.outcome for _, run in found if run.value is not None} == {FINISHED}
    assert {(run.seed, run.has_ended) for _, run in found} == {("5", True), ("0", False), ("1", False), ("2", False)}


def test_a_seed_that_is_not_swept_is_that_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", TO_THE_END)
    assert {run.seed for _, run in sweep_of(tmp_path, Job("run", [], {}, FINISHED))} == {"5"}


def test_runs_that_begin_with_a_run_of_their_own_seed_differ_in_the_seed_alone(tmp_path: Path) -> None:
    """The path of that run has the seed in it (`model.init_from`), and is no key of a map or of a law."""
    jobs = []
    for delta in ("1", "2"):
        for seed in ("0", "1"):
            job = Job(f"{delta}/seed{seed}", [], {"schedule.delta": delta, "seed": seed}, FINISHED)
            write_run(tmp_path / job.run, TO_THE_END)
            config = tmp_path / job.run / "config.yaml"
            config.write_text(
                config.read_text().replace("seed: 5", f"seed: {seed}")
                + f"model: {{init_from: /first/seed{seed}}}\nschedule: {{delta: {delta}}}\n"
            )
            jobs.append(job)
    runs = [run for name, run in sweep_of(tmp_path, *jobs) if name == "seconds"]
    assert [run.seed for run in runs] == ["0", "1", "0", "1"]
    assert len({tuple(run.config.items()) for run in runs}) == 2
    assert {run.config["schedule.delta"] for run in runs} == {"1", "2"}


def test_a_configuration_without_its_batch_size_is_damaged(tmp_path: Path) -> None:
    write_run(tmp_path / "run", TO_THE_END)
    (tmp_path / "run" / "config.yaml").write_text("derived: {max_cot_tokens: 4, examples_per_token: null}\n")
    with pytest.raises(UserError, match="run/config.yaml: lacks data.batch_size"):
        numbers(tmp_path)


@pytest.mark.parametrize(
    "file,change,message",
    [
        ("metrics.csv", lambda text: None, "metrics.csv: is missing"),
        ("metrics.csv", lambda text: "", "metrics.csv: is damaged (no row)"),
        ("metrics.csv", lambda text: "a,b\n1,2\n", "metrics.csv: lacks val/answer_accuracy"),
        ("metrics.csv", lambda text: text.replace("0.97", "good"), "metrics.csv: is damaged (could not convert string to float: 'good')"),
        ("metrics.csv", lambda text: text.replace("40,0,2,,0.97,20", "40,0,2"), "metrics.csv: is damaged (the row 40,0,2 is cut off)"),
        ("summary.json", lambda text: text[:-1] + ', "rollbacks": [{"at_step": 5}]}', "summary.json: lacks to_step"),
        ("summary.json", lambda text: text[:-1] + ', "rollbacks": 5}', "summary.json: is damaged ("),
        ("config.yaml", lambda text: text.replace("examples_per_token: null", ""), "config.yaml: lacks examples_per_token"),
        ("config.yaml", lambda text: text.replace("10", "ten"), "config.yaml: lacks data.batch_size"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_told_in_one_line(
    tmp_path: Path, file: str, change: Callable[[str], str | None], message: str
) -> None:
    """None may count as a run that removed no token."""
    write_run(tmp_path / "run", TO_THE_END)
    path = tmp_path / "run" / file
    if (text := change(path.read_text())) is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(UserError) as refused:
        numbers(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'run'}/{message}")


def test_an_unknown_measure_names_them_all() -> None:
    with pytest.raises(UserError) as refused:
        require_measure("speed")
    assert all(f"{name} ({measure.label})" in str(refused.value) for name, measure in MEASURES.items())


def test_the_numbers_of_a_trained_run_are_those_of_its_files(run_dir: Path) -> None:
    """An independent reading of metrics.csv, by the definitions."""
    (found,) = ({name: run.value for name, run in sweep_of(run_dir.parent, Job(run_dir.name, [], {}, FINISHED))},)
    config, summary = read_yaml(run_dir / "config.yaml"), json.loads((run_dir / "summary.json").read_text())
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/answer_accuracy"]]
    last = {int(row["schedule/removed_tokens"]): float(row["val/answer_accuracy"]) for row in rows}
    most = max((removed for removed, accuracy in last.items() if accuracy >= 0.95), default=None)
    steps = [
        int(row["step"])
        for row in rows
        if int(row["schedule/removed_tokens"]) == most and float(row["val/answer_accuracy"]) >= 0.95
    ]
    total = config["derived"]["max_cot_tokens"]
    assert found["removed_at_95"] == (most or 0) and found["removed_share"] == (most or 0) / total
    assert found["examples_per_token"] == (None if most is None else 32 * steps[0] / (most + 1))
    assert found["examples"] == (32 * steps[0] if most == total else None)
    assert (found["tokens_read"], found["test_accuracy"], found["seconds"]) == (
        summary["tokens_read"], summary["test_accuracy"], summary["seconds"],
    )  # fmt: skip
