"""Losses of finished runs as results.csv, and a figure made from it.

    python experiments/smollm2/collect.py pretrained=outputs/pretrained random=outputs/random

results.csv has a row for every logged loss of a run: its name, seed, split, optimizer steps
done, loss (nats per target token), token accuracy, and for validation and test the answers that are right.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from stepwise_pl.reporting.static import pyplot
from stepwise_pl.reporting.style import style_of
from stepwise_pl.runs.records import read_metrics

HERE = Path(__file__).parent
COLUMNS = ("run", "seed", "split", "step", "loss", "token_accuracy", "answer_accuracy", "examples")
SPLITS = {"train": "train", "val": "validation", "test": "test"}
# The line in the figure is the mean over this many steps.
MEAN_OVER = 10


def rows_of(name: str, folder: Path) -> list[dict[str, object]]:
    """The rows of one run."""
    seed = json.loads((folder / "summary.json").read_text())["seed"]
    out: list[dict[str, object]] = []
    for row in read_metrics(folder / "metrics.csv"):
        for key, split in SPLITS.items():
            if row.get(f"{key}/loss"):
                found = {column: row.get(f"{key}/{column}", "") for column in COLUMNS[4:]}
                out.append({"run": name, "seed": seed, "split": split, "step": int(row["step"]), **found})
    return out


def draw() -> None:
    """The figure, from results.csv alone."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    with (HERE / "results.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            points[row["run"], row["split"]].append((int(row["step"]), float(row["loss"])))
    with pyplot() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
        for number, name in enumerate(dict.fromkeys(run for run, _ in points)):
            color, marker = style_of(number)
            steps, losses = zip(*points[name, "train"], strict=True)
            axes.plot(steps, losses, color=color, alpha=0.25, linewidth=1)
            means = [fmean(losses[max(0, i - MEAN_OVER + 1) : i + 1]) for i in range(len(losses))]
            axes.plot(steps, means, color=color, label=f"{name}: training, mean of the last {MEAN_OVER} steps")
            steps, losses = zip(*points[name, "validation"], strict=True)
            axes.plot(steps, losses, marker.matplotlib, color=color, label=f"{name}: validation")
        axes.set(xlabel="optimizer step", ylabel="loss (nats per target token)", yscale="log", title="smollm2")
        # Matplotlib's own ticks are formulas, and `pyplot` takes text literally.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(HERE / "loss.png", dpi=130)


def main(runs: list[str]) -> None:
    """Write results.csv from the runs, and the figure from results.csv."""
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for run in runs:
            name, _, folder = run.partition("=")
            writer.writerows(rows_of(name, Path(folder)))
    draw()


if __name__ == "__main__":
    main(sys.argv[1:])
