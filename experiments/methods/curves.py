"""Every validation of some runs, over steps and over tokens read, as curves.csv.

python experiments/methods/curves.py <name>/<run folder> ...
"""

import csv
import json
import sys
from pathlib import Path

from stepwise_pl.runs.records import read_metrics

COLUMNS = ("run", "seed", "step", "tokens_read", "removed_tokens", "accuracy", "examples")


def main(runs: list[str]) -> None:
    """Write curves.csv beside this file."""
    with (Path(__file__).parent / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for run in map(Path, runs):
            summary = json.loads((run / "summary.json").read_text())
            for row in read_metrics(run / "metrics.csv"):
                if row["val/answer_accuracy"]:
                    place = [round(float(row[key])) for key in ("step", "tokens_read", "schedule/removed_tokens")]
                    accuracy = f"{float(row['val/answer_accuracy']):.3f}"
                    examples = round(float(row["val/examples"]))
                    writer.writerow([run.parent.name, summary["seed"], *place, accuracy, examples])


if __name__ == "__main__":
    main(sys.argv[1:])
