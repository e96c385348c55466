"""Accuracy over the tokens read in training: the one budget in which methods can be compared."""

from collections.abc import Sequence

from stepwise_pl.common.statistics import wilson
from stepwise_pl.common.text import percent, percents
from stepwise_pl.reporting.figures.data import Chart, Panel, Series, listed
from stepwise_pl.reporting.figures.loss import POINTS, thinned
from stepwise_pl.reporting.history import History


def budget_chart(runs: Sequence[History]) -> Chart | None:
    """Validation accuracy over tokens read, a line for each run that counted them; None if none did, or if no run was validated."""
    series, lines = [], []
    for number, run in enumerate(runs):
        rows = [row for row in run.rows if {"tokens_read", "val/answer_accuracy"} <= row.keys()]
        rows = thinned(rows, -(-len(rows) // POINTS)) if rows else rows
        if not rows:
            continue
        hover = []
        for row in rows:
            accuracy, examples, stage = row["val/answer_accuracy"], round(row["val/examples"]), run.stage_of(row)
            hover.append(
                f"{run.label}\n{percent(accuracy)} {percents(wilson(accuracy, examples))}, n={examples}\n"
                f"{row['tokens_read']:,.0f} tokens read, step {row['step']:.0f}\n"
                f"{row.get('schedule/removed_tokens', 0):.0f} CoT tokens removed{f', stage {stage}' if stage else ''}"
            )
        x, y = [row["tokens_read"] for row in rows], [row["val/answer_accuracy"] for row in rows]
        series.append(Series(x, y, [number], run.cell, run.label, hover, turn=run.turn))
        lines.append(f"{run.label}: {percent(y[-1])} after {x[-1]:,.0f} tokens")
    if not series:
        return None
    return Chart(
        "accuracy-budget", "Accuracy over tokens read",
        "Every validation, over the tokens of all forward passes of the run: those of a teacher or of a second model count too, "
        "padding and the earlier training of a teacher do not.",
        f"Line chart of answer accuracy over tokens read in training. {listed(lines)}.", "tokens read in training",
        [Panel("answer accuracy (validation)", series, (-0.05, 1.04), percent=True)],
    )  # fmt: skip
