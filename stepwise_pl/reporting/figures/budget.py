"""Accuracy over what training has used: examples, and tokens read, the one budget in which methods can be compared."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from stepwise_pl.common.statistics import wilson
from stepwise_pl.common.text import percent, percents
from stepwise_pl.reporting.figures.data import Chart, Panel, Series, listed
from stepwise_pl.reporting.figures.loss import POINTS, REMOVED, thinned
from stepwise_pl.reporting.figures.marks import band_sentence, bands
from stepwise_pl.reporting.history import History, Row

# Ticks show where tokens left, for at most this many runs.
RUGS = 6
Used = Callable[[History, Row], float | None]


def budget_chart(runs: Sequence[History]) -> Chart | None:
    """Validation accuracy over tokens read, a line for each run that counted them; None if none did, or if no run was validated."""
    return _chart(
        runs, lambda _, row: row.get("tokens_read"), "tokens read", "accuracy-budget", "Accuracy over tokens read",
        "tokens read in training",
        "Every validation, over the tokens of all forward passes of the run: those of a teacher or of a second model count too, "
        "padding and the earlier training of a teacher do not.",
    )  # fmt: skip


def examples_chart(runs: Sequence[History]) -> Chart | None:
    """Validation accuracy over training examples; None if no run was validated, or if all have lost their configuration."""
    return _chart(
        runs, _examples, "examples", "accuracy-examples", "Accuracy over training examples", "training examples",
        "Every validation, over the examples trained on until then.", marks_removals=True,
    )  # fmt: skip


def _examples(run: History, row: Row) -> float | None:
    """The examples that the run has been trained on up to a row of metrics.csv."""
    size = run.config.get("data.batch_size")
    return None if size is None else row["step"] * size


def _chart(
    runs: Sequence[History], used: Used, unit: str, slug: str, title: str, x_label: str, caption: str, *, marks_removals: bool = False
) -> Chart | None:  # fmt: skip
    """Every validation over what training has used until then; `unit`: of `used`, in hover texts."""
    series, lines = [], []
    with_removals = [number for number, run in enumerate(runs) if marks_removals and _removals(run, used)]
    rugs = with_removals if len(with_removals) <= RUGS else []
    for number, run in enumerate(runs):
        rows = [row for row in run.rows if "val/answer_accuracy" in row and used(run, row) is not None]
        rows = thinned(rows, -(-len(rows) // POINTS)) if rows else rows
        if not rows:
            continue
        x = [used(run, row) or 0 for row in rows]
        y = [row["val/answer_accuracy"] for row in rows]
        hover = [_hover(run, row, f"{count:,.0f} {unit}") for row, count in zip(rows, x, strict=True)]
        name = [*[""] * (len(rows) - 1), run.baseline] if run.baseline else []
        series.append(Series(x, y, [number], run.cell, run.label, hover, turn=run.turn, labels=name, label_side="left"))
        if number in rugs:
            series.append(_rug(run, number, used, -0.05 - 0.03 * rugs.index(number)))
        lines.append(f"{run.label}: {percent(y[-1])} after {x[-1]:,.0f} {unit}")
    if not series:
        return None
    recipe = bands(runs, (0.0, max(x for one in series for x in one.x)))
    caption += " Ticks below: CoT tokens left." * bool(rugs) + band_sentence(recipe)
    return Chart(
        slug, title, caption, f"Line chart of answer accuracy over {x_label}. {listed(lines)}.", x_label,
        [Panel("answer accuracy (validation)", [*recipe, *series], (-0.05 - 0.03 * len(rugs), 1.04), percent=True)],
    )  # fmt: skip


def _hover(run: History, row: Row, used: str) -> str:
    accuracy, examples, stage = row["val/answer_accuracy"], round(row["val/examples"]), run.stage_of(row)
    return (
        f"{run.label}\n{percent(accuracy)} {percents(wilson(accuracy, examples))}, n={examples}\n"
        f"{used}, step {row['step']:.0f}\n"
        f"{row.get(REMOVED, 0):.0f} CoT tokens removed{f', stage {stage}' if stage else ''}"
    )


def _removals(run: History, used: Used) -> list[Row]:
    """The first row after each growth of the removed tokens. Several growths between two rows count as one."""
    rows = [row for row in run.rows if REMOVED in row and "test/loss" not in row and used(run, row) is not None]
    return [row for before, row in pairwise(rows) if row[REMOVED] > before[REMOVED]]


def _rug(run: History, number: int, used: Used, y: float) -> Series:
    rows = _removals(run, used)
    return Series(
        x=[used(run, row) or 0 for row in rows], y=[y] * len(rows), runs=[number], cell=run.cell,
        name=f"{run.label}: CoT tokens left", line="none", marker="|", meaning="CoT tokens left",
        hover=[f"{run.label}\n{row[REMOVED]:.0f} CoT tokens removed, seen at step {row['step']:.0f}" for row in rows],
    )  # fmt: skip
