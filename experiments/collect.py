"""Collect finished runs into an experiment's evidence: results.csv and a figure made from it.

    python experiments/collect.py experiments/quickstart outputs/quickstart/seed0 outputs/quickstart/seed1
    python experiments/collect.py experiments/guard warn=outputs/a guard=outputs/b

Runs are named `<name>, seed <seed>` after what is given before `=`, or after their summary.
results.csv has a row per run and number of removed tokens (last validation), one for the
final test, and the validations of attempts that the guard gave up (`given_up`: the number
of the attempt). Of more than seven runs no figure is drawn.
"""

import argparse
import csv
import json
from pathlib import Path

from stepwise_pl.reporting.figures.accuracy import accuracy_chart
from stepwise_pl.reporting.history import History
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.reporting.style import COLORS
from stepwise_pl.runs.stages import StageAccuracy, read_stages

COLUMNS = (
    "run", "seed", "split", "given_up", "removed_tokens", "step", "accuracy", "low", "high", "examples", "seconds",
)  # fmt: skip


def rows_of(folder: Path, name: str = "") -> list[dict[str, object]]:
    """The rows of one run."""
    summary = json.loads((folder / "summary.json").read_text())
    common = {"run": name or summary["name"], "seed": summary["seed"]}
    stages, given_up = read_stages(folder / "metrics.csv")
    rows = [
        {**common, "split": "validation", "given_up": attempt, "removed_tokens": s.removed_tokens, "step": s.step,
         "accuracy": s.accuracy, "low": s.interval[0], "high": s.interval[1], "examples": s.examples}
        for attempt, of_attempt in (("", stages), *enumerate(given_up))
        for s in of_attempt
    ]  # fmt: skip
    low, high = summary["test_interval"]
    final = {"split": "test", "removed_tokens": summary["removed_tokens"], "step": summary["steps"],
             "accuracy": summary["test_accuracy"], "low": low, "high": high, "examples": summary["test_examples"],
             "seconds": summary["seconds"]}  # fmt: skip
    return [*rows, {**common, **final}]


def main(experiment: Path, runs: list[str]) -> None:
    """Write results.csv from the runs, and the figure from results.csv if every run can have a colour of its own."""
    experiment.mkdir(parents=True, exist_ok=True)
    with (experiment / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for run in runs:
            name, _, folder = run.rpartition("=")
            for row in rows_of(Path(folder), name):
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    if len(runs) <= len(COLORS):
        draw(experiment)


def draw(experiment: Path) -> None:
    """The figure, from results.csv alone."""
    stages: dict[str, list[StageAccuracy]] = {}
    given_up: dict[str, dict[str, list[StageAccuracy]]] = {}
    with (experiment / "results.csv").open(newline="") as file:
        for row in (row for row in csv.DictReader(file) if row["split"] == "validation"):
            stage = StageAccuracy(
                int(row["removed_tokens"]), int(row["step"]), float(row["accuracy"]), int(row["examples"])
            )
            name = f"{row['run']}, seed {row['seed']}"
            attempts = given_up.setdefault(name, {})
            (attempts.setdefault(row["given_up"], []) if row["given_up"] else stages.setdefault(name, [])).append(stage)
    # Every run has a colour of its own, also where runs differ in the seed alone.
    runs = [
        History(experiment, name, cell, stages=of_run, stages_given_up=list(given_up[name].values()))
        for cell, (name, of_run) in enumerate(stages.items())
    ]
    chart = accuracy_chart(runs, title=experiment.name)
    if chart is not None:
        write_figure(chart, list(stages), experiment)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of the experiment")
    parser.add_argument("runs", nargs="+", help="run folders that hold a summary.json, or <name>=<run folder>")
    arguments = parser.parse_args()
    main(arguments.experiment, arguments.runs)
