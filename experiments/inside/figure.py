"""The figure of this experiment, from probes.csv: what can be read of each CoT token as tokens leave, and what a control reads.

python experiments/inside/figure.py
"""

import csv
from collections import defaultdict
from pathlib import Path

from stepwise_pl.reporting.figures.data import Cells, HeatMap
from stepwise_pl.reporting.static import write_figure

HERE = Path(__file__).parent
TOKENS, STAGES = range(8), range(9)
OWN = ("trained_linear", "trained_mlp")
CONTROLS = ("random_linear", "random_mlp", "raw_linear", "raw_mlp", "shuffled_linear")


def best(row: dict[str, str], columns: tuple[str, ...]) -> float:
    """The best score among some columns of a row."""
    return max(float(row[column]) for column in columns if row[column])


def panel(rows: list[dict[str, str]], columns: tuple[str, ...], title: str) -> Cells:
    """The mean over seeds of the best score, for each token and stage."""
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        found[int(row["target"].split()[1]), int(row["removed_tokens"])].append(best(row, columns))
    means = [[sum(found[token, stage]) / len(found[token, stage]) for stage in STAGES] for token in TOKENS]
    lines = [(token + 0.5, token - 0.5, token + 0.5, token + 0.5) for token in TOKENS]
    return Cells(
        x=[str(stage) for stage in STAGES], y=[f"cot {token}" for token in TOKENS], values=[list(row) for row in means],
        texts=[[f"{mean:.0%}" for mean in row] for row in means], hover=[], title=title, lines=lines,
    )  # fmt: skip


def main() -> None:
    """Draw the figure beside this file."""
    with (HERE / "probes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "quickstart" and row["target"].startswith("cot")]
    figure = HeatMap(
        slug="probes",
        title="The running sums fade once their tokens have left",
        caption="Quickstart, mean of five seeds. Accuracy of the better of a linear probe and one with a hidden layer; chance is 20%. "
        "The control is the best of raw tokens, random weights and shuffled labels.",
        alt="Two heat maps of tokens against removed tokens: trained model and best control",
        x_label="CoT tokens removed",
        y_label="token",
        panels=[panel(rows, OWN, "trained model"), panel(rows, CONTROLS, "best control")],
        columns=2,
        line="line: the token leaves",
    )  # fmt: skip
    write_figure(figure, ["quickstart"], HERE)


if __name__ == "__main__":
    main()
