"""Collect finished runs into an experiment's evidence: results.csv and a figure made from it.

    python experiments/collect.py experiments/quickstart outputs/quickstart/seed0 outputs/quickstart/seed1

Runs are named `<name>, seed <seed>` after their summary. results.csv has a row per run and
number of removed tokens (last validation), and one for the final test.
"""

import csv
import json
import sys
from pathlib import Path

from stepwise_pl.results import Stage, plot_stages, read_stages

COLUMNS = ("run", "seed", "split", "removed_tokens", "step", "accuracy", "low", "high", "examples", "seconds")


def rows_of(folder: Path) -> list[dict[str, object]]:
    """The rows of one run."""
    summary = json.loads((folder / "summary.json").read_text())
    common = {"run": summary["name"], "seed": summary["seed"]}
    rows = [
        {**common, "split": "validation", "removed_tokens": s.removed_tokens, "step": s.step, "accuracy": s.accuracy,
         "low": s.interval[0], "high": s.interval[1], "examples": s.examples}
        for s in read_stages(folder / "metrics.csv")
    ]  # fmt: skip
    low, high = summary["test_interval"]
    final = {"split": "test", "removed_tokens": summary["removed_tokens"], "step": summary["steps"],
             "accuracy": summary["test_accuracy"], "low": low, "high": high, "examples": summary["test_examples"],
             "seconds": summary["seconds"]}  # fmt: skip
    return [*rows, {**common, **final}]


def main(experiment: Path, folders: list[Path]) -> None:
    """Write results.csv from the runs, and the figure from results.csv."""
    experiment.mkdir(parents=True, exist_ok=True)
    with (experiment / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for folder in folders:
            for row in rows_of(folder):
                writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    runs: dict[str, list[Stage]] = {}
    with (experiment / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == "validation":
                stage = Stage(
                    int(row["removed_tokens"]), int(row["step"]), float(row["accuracy"]), int(row["examples"])
                )
                runs.setdefault(f"{row['run']}, seed {row['seed']}", []).append(stage)
    plot_stages(runs, experiment.name, experiment / "accuracy")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
