"""Learning curves of runs: every validation as curves.csv, and a figure made from it.

    python experiments/adaptive/curves.py "3x3: adaptive=outputs/a" "3x3: no CoT=outputs/b" "4x4: adaptive=outputs/c"

A run is named `<panel>: <line>`; runs of the same name differ in their seed.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from stepwise_pl.common.statistics import wilson
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.reporting.static import pyplot
from stepwise_pl.reporting.style import COLORS, line_of
from stepwise_pl.runs.records import read_metrics

HERE = Path(__file__).parent
COLUMNS = ("run", "seed", "step", "examples_seen", "removed_tokens", "max_cot_tokens", "accuracy", "examples")


def collect(runs: list[str]) -> None:
    """Write curves.csv."""
    with (HERE / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for run in runs:
            name, _, folder = run.rpartition("=")
            config = read_yaml(Path(folder) / "config.yaml")
            for row in read_metrics(Path(folder) / "metrics.csv"):
                if row["val/answer_accuracy"]:
                    step = int(row["step"])
                    writer.writerow((
                        name, config["seed"], step, step * config["data"]["batch_size"], row["schedule/removed_tokens"],
                        config["derived"]["max_cot_tokens"], row["val/answer_accuracy"], row["val/examples"],
                    ))  # fmt: skip


def draw() -> None:
    """The figure: accuracy on validation over examples seen, the removal above it."""
    lines: dict[str, dict[tuple[str, str], list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    with (HERE / "curves.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            panel, _, line = row["run"].partition(": ")
            lines[panel][line, row["seed"]].append(row)
    with pyplot() as plt:
        figure, axes = plt.subplots(
            2, len(lines), figsize=(4.6 * len(lines), 5), sharex="col", height_ratios=(1, 2.2), layout="constrained",
            squeeze=False,
        )  # fmt: skip
        for column, (panel, runs) in enumerate(lines.items()):
            above, below = axes[:, column]
            draw_panel(above, below, runs)
            above.set(title=panel, ylabel="CoT tokens removed" if not column else "")
            below.set(xlabel="thousand examples seen", ylabel="" if column else "answer accuracy (validation)")
        figure.savefig(HERE / "curves.png", dpi=150)


def draw_panel(above: Any, below: Any, runs: dict[tuple[str, str], list[dict[str, str]]]) -> None:
    """Removed tokens and accuracy of the runs, each a name and a seed: a colour for each name, dashes for each of its seeds."""
    names = list(dict.fromkeys(name for name, _ in runs))
    seeds = {name: [seed for other, seed in runs if other == name] for name in names}
    for (name, seed), rows in runs.items():
        x = [int(row["examples_seen"]) / 1000 for row in rows]
        style = {"color": COLORS[names.index(name)], "linestyle": line_of("", seeds[name].index(seed)).matplotlib}
        above.plot(x, [int(row["removed_tokens"]) for row in rows], **style)
        accuracy = [float(row["accuracy"]) for row in rows]
        bounds = [wilson(a, round(float(row["examples"]))) for a, row in zip(accuracy, rows, strict=True)]
        below.fill_between(x, *zip(*bounds, strict=True), color=style["color"], alpha=0.12, linewidth=0)
        label = f"{name}, seed{'s' * (len(seeds[name]) > 1)} {', '.join(seeds[name])}"
        below.plot(x, accuracy, label=label if seed == seeds[name][0] else None, marker=".", **style)
    below.set(ylim=(-0.02, 1.02))
    below.legend(fontsize="small")
    for axes in (above, below):
        axes.grid(alpha=0.3)


if __name__ == "__main__":
    if sys.argv[1:]:
        collect(sys.argv[1:])
    draw()
