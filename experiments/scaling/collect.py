"""Put the finished runs of sweeps into results.csv and stages.csv beside this file. Rows of all other runs stay.

    python experiments/scaling/collect.py outputs/sweeps/scaling_mult outputs/sweeps/scaling_parity

results.csv  a row for each run: measures of stepwise_pl/runs/measures.py, and how the run ended
stages.csv   a row for each stage of a run: the optimizer steps from its begin until 95% was reached, or else to its last validation
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.readme import read_rows, replaced, write_rows
from stepwise_pl.common.text import counted
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.runs.cells import SweepRun, cells_of_sweep
from stepwise_pl.runs.measures import MEASURES, LearningRecord, read_learning
from stepwise_pl.runs.results import read_summary
from stepwise_pl.runs.sweep_folder import read_sweep

HERE = Path(__file__).resolve().parent
KEY = ("task", "layers", "width", "seed")
THROUGH, STUCK, OVER = "through", "stuck", "steps over"
RESULTS = (
    *KEY, "side", "cot_tokens", "removed_at_95", "examples", "examples_per_token", "steps", "tokens_read", "seconds", "ended",
)  # fmt: skip
STAGES = (*KEY, "removed_tokens", "steps", "kept")
Row = dict[str, Any]


def task_name(task: dict[str, Any]) -> str:
    """`3x2` or `parity 10`.

    Raises:
        ValueError: the task is another.
    """
    if task["kind"] == "multiplication":
        return f"{task['digits']}x{task['second_digits'] or task['digits']}"
    if task["kind"] == "parity":
        return f"parity {task['bits']}"
    raise ValueError(f"task.kind={task['kind']}: this experiment is about multiplication and parity")


def stage_rows(run: LearningRecord, batch_size: int) -> list[Row]:
    """The stages that were validated, in their order. A stage begins at the last validation of the one before.

    Args:
        batch_size: examples of an optimizer step.
    """
    rows: list[Row] = []
    begin = 0
    for removed in sorted({one.place[0] for one in run.validations}):
        last = max(one.examples for one in run.validations if one.place[0] == removed)
        right = run.first_right(removed)
        steps = ((last if right is None else right.examples) - begin) // batch_size
        rows.append({"removed_tokens": removed, "steps": steps, "kept": "no" if right is None else "yes"})
        begin = last
    return rows


def ended(run: LearningRecord, stages: Sequence[Row], stop_when_stuck: int | None) -> str:
    """How the run ended."""
    if MEASURES["examples"].of(run) is not None:
        return THROUGH
    is_stuck = stop_when_stuck is not None and stages and stages[-1]["kept"] == "no"
    return STUCK if is_stuck and stages[-1]["steps"] >= stop_when_stuck else OVER


def rows_of(folder: Path, job: SweepRun) -> tuple[Row, list[Row]]:
    """The row of a finished run, and the rows of its stages.

    Args:
        folder: of the run.

    Raises:
        ValueError: tokens do not leave one by one, or the task is another.
    """
    assert job.result is not None
    config, summary = read_yaml(folder / "config.yaml"), read_summary(folder / "summary.json")
    method, schedule, model = config["method"], config["schedule"], config["model"]
    kind = (method["kind"], method["unit"], schedule["kind"], schedule["chunk"])
    if kind != ("stepwise", "token", "adaptive", "one"):
        raise ValueError(f"{folder}: is {' '.join(kind)}, where tokens leave one by one in this experiment")
    run = read_learning(folder, job.result, config)
    key = dict(zip(KEY, (task_name(config["task"]), model["layers"], model["width"], config["seed"]), strict=True))
    stages = stage_rows(run, config["data"]["batch_size"])
    numbers = {
        name: MEASURES[name].of(run)
        for name in ("removed_at_95", "examples", "examples_per_token", "tokens_read", "seconds")
    }
    row = {
        **key, "side": method["side"], "cot_tokens": job.result.max_cot_tokens, "steps": summary["steps"],
        **{name: "" if value is None else value for name, value in numbers.items()},
        "ended": ended(run, stages, schedule["stop_when_stuck"]),
    }  # fmt: skip
    return row, [{**key, **stage} for stage in stages]


def jobs_of(sweep: Path) -> Iterator[tuple[Path, SweepRun]]:
    """The run folders of a sweep, with their jobs."""
    for cell in cells_of_sweep(read_sweep(sweep)):
        for job in cell.runs:
            yield sweep / job.job.run, job


def main(sweeps: Sequence[Path], folder: Path = HERE) -> str:
    """Put the runs into the csv files of a folder, and say how many there were.

    Raises:
        ValueError: two runs have the same task, depth, width and seed, or a run is none of this experiment.
    """
    results: list[Row] = []
    stages: list[Row] = []
    seen: dict[tuple[Any, ...], Path] = {}
    waiting = 0
    for path, job in (found for sweep in sweeps for found in jobs_of(sweep)):
        if job.result is None:
            waiting += 1
            continue
        row, of_run = rows_of(path, job)
        key = tuple(row[name] for name in KEY)
        if key in seen:
            raise ValueError(f"{seen[key]} and {path}: both are {' '.join(map(str, key))}")
        seen[key] = path
        results.append(row)
        stages += of_run
    for name, columns, fresh in (("results", RESULTS, results), ("stages", STAGES, stages)):
        file = folder / f"{name}.csv"
        write_rows(file, columns, replaced(read_rows(file) if file.is_file() else [], fresh, KEY))
    left_out = f", {counted(waiting, 'job')} left out for not being finished" if waiting else ""
    return f"{counted(len(results), 'run')} collected{left_out}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, help="sweep folders")
    print(main(parser.parse_args().sweeps))
