"""Accuracy by the keys of a sweep: the figures of a sweep folder, and those of the page, which may show runs from anywhere."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.text import percent
from stepwise_pl.config.duration import Duration
from stepwise_pl.config.keys import aside
from stepwise_pl.reporting.figures.data import Cells, Chart, HeatMap, Panel, Series, listed
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.cells import Cell, SweepRun, cells_of, results_of, row_of


def sweep_chart(cells: Sequence[Cell[SweepRun]], title: str) -> Chart:
    """Test accuracy with its interval, and tokens removed at 95% accuracy: a row for each cell, a dot (collapsed: ×) for each seed."""
    tested = [(row, cell) for row, cell in enumerate(cells) if cell.ended]
    seeds = [(row, result) for row, cell in tested for result in results_of(cell)]
    intervals = [(row, *cell.interval) for row, cell in tested if cell.interval is not None]
    most = [(row, results_of(cell)[0].max_cot_tokens) for row, cell in tested]
    # The bars come last, so that no dot hides the mean.
    accuracy = [
        _intervals([(row, low, high) for row, low, high, how in intervals if how == "t"], "95% interval over seeds (t)", "solid"),
        _intervals(
            [(row, low, high) for row, low, high, how in intervals if how != "t"], "95% interval over problems (Wilson)", "dotted"
        ),
        *_seeds([(row, result.test_accuracy, result.collapsed) for row, result in seeds]),
        _bars([(row, cell.accuracy) for row, cell in tested], "mean"),
        *(_in_words(row, cell) for row, cell in enumerate(cells) if not cell.ended),
    ]  # fmt: skip
    removed = [*_seeds([(row, result.removed_at_95, result.collapsed) for row, result in seeds]), _bars(most)]
    right_end = 1.03 * max((count for _, count in most), default=0) + 0.5
    lines = [f"{cell.label}: {percent(cell.accuracy or 0)}" for _, cell in tested]
    return Chart(
        "sweep", title, "Test accuracy and removed tokens of every seed.", f"Dots of test accuracy by cell. Means: {listed(lines)}.", "",
        [
            Panel("test accuracy", accuracy, (-0.03, 1.03), percent=True, share=3.0),
            Panel("tokens removed at 95% (bar: all)", removed, (-0.5, right_end), whole=True, share=2.0),
        ],
        rows=[cell.label for cell in cells],
    )  # fmt: skip


def _seeds(found: Sequence[tuple[int, float | None, bool]]) -> list[Series]:
    """The value of each seed at its row: dots, or crosses if accuracy has collapsed at the end of the run."""
    out = []
    for has_collapsed, meaning in ((False, "a seed"), (True, "a seed that collapsed")):
        points = [(row, value) for row, value, collapsed in found if collapsed == has_collapsed and value is not None]
        if points:
            x, y = [row for row, _ in points], [value for _, value in points]
            marker = "x" if has_collapsed else "run"
            # The first two colours stand for the outcomes, because all rows are cells.
            out.append(Series(x, y, [], int(has_collapsed), meaning, line="none", marker=marker, meaning=meaning))
    return out


def _intervals(found: Sequence[tuple[int, float, float]], meaning: str, line: str) -> Series:
    """A line from low to high at each row; a missing point parts it from the next."""
    x = [row for row, _, _ in found for _ in range(3)]
    y = [end for _, low, high in found for end in (low, high, None)]
    return Series(x, y, [], 0, meaning, line=line, meaning=meaning if found else "")


def _bars(found: Sequence[tuple[int, float | None]], meaning: str = "") -> Series:
    x, y = [row for row, _ in found], [value for _, value in found]
    return Series(x, y, [], None, meaning, line="none", marker="bar", meaning=meaning)


def _in_words(row: int, cell: Cell[SweepRun]) -> Series:
    """The outcome of a cell that has no result."""
    outcome = "failed" if row_of(cell)["failed"] else "not finished"
    return Series([row], [0.5], [], None, outcome, line="none", labels=[outcome], label_side="center")


def sweep_grid(cells: Sequence[Cell[SweepRun]], title: str) -> HeatMap | None:
    """Mean test accuracy by two swept keys, with the number of seeds; None if the cells make no grid."""
    keys = grid_of(cells)
    if keys is None:
        return None
    x_values, y_values = (ordered({cell.config[key]: None for cell in cells}) for key in keys)
    values: list[list[float | None]] = [[None] * len(x_values) for _ in y_values]
    texts = [[""] * len(x_values) for _ in y_values]
    for cell in cells:
        x, y = x_values.index(cell.config[keys[0]]), y_values.index(cell.config[keys[1]])
        collapsed = row_of(cell)["collapsed"]
        values[y][x] = cell.accuracy
        texts[y][x] = f"{'–' if cell.accuracy is None else percent(cell.accuracy)}\nn={len(cell.ended)}"
        texts[y][x] += f"\n{collapsed} collapsed" if collapsed else ""
    x_label, y_label = (key.lstrip("+") for key in keys)
    return HeatMap(
        "sweep-grid", title, "Mean accuracy on the test set over n seeds.",
        f"Heat map of mean test accuracy by {x_label} and {y_label}.", x_label, y_label, [Cells(x_values, y_values, values, texts, texts)],
        label="test accuracy (mean)",
    )  # fmt: skip


def grid_of(cells: Sequence[Cell[SweepRun]]) -> tuple[str, str] | None:
    """The two swept keys, if there are exactly two, and if more than half of the places of their grid have a cell."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.config))
    if len(keys) != 2:
        return None
    places = math.prod(len({cell.config.get(key) for cell in cells}) for key in keys)
    return (keys[0], keys[1]) if 2 * len(cells) > places else None


def ordered(values: Sequence[str] | dict[str, None]) -> list[str]:
    """The values by number, if all are numbers such as 8, 0.5, 1/2 and inf, or lengths of one unit such as 8steps; else as given."""
    try:
        numbers = {value: unit_and_number(value) for value in values}
    except (ValueError, ZeroDivisionError):
        return list(values)
    has_one_unit = len({unit for unit, _ in numbers.values()}) == 1
    return sorted(numbers, key=lambda value: numbers[value]) if has_one_unit else list(values)


def unit_and_number(value: str) -> tuple[str, float]:
    """The unit (empty: none) and the number of a value. Raise `ValueError` or `ZeroDivisionError` if it is no number."""
    with contextlib.suppress(UserError):
        length = Duration.parse(value)
        return length.unit, float(length.amount)
    return "", float(Fraction(value)) if "/" in value else float(value)


@dataclass
class Swept:
    """A run that has ended, in a sweep of Δ and λ."""

    delta: Fraction
    smoothing: float
    accuracy: float


def delta_smoothing_maps(runs: Sequence[History]) -> list[HeatMap]:
    """Final accuracy by Δ and λ, a heat map for every set of runs that differ in nothing else but their seed."""
    alike = cells_of(runs, (*aside(), "schedule.delta", "schedule.smoothing"))
    groups = [[swept for run in cell.runs if (swept := _swept(run))] for cell in alike]
    several = [group for group in groups if len({(swept.delta, swept.smoothing) for swept in group}) > 1]
    return [_delta_smoothing_map(group, number) for number, group in enumerate(several, start=1)]


def _swept(run: History) -> Swept | None:
    if run.baseline or "test_accuracy" not in run.summary:
        return None
    try:
        delta, smoothing = Fraction(str(run.config["schedule.delta"])), float(run.config["schedule.smoothing"])
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        # An adaptive schedule has no Δ.
        return None
    return Swept(delta, smoothing, float(run.summary["test_accuracy"]))


def _delta_smoothing_map(group: Sequence[Swept], number: int) -> HeatMap:
    deltas = sorted({swept.delta for swept in group})
    smoothings = sorted({swept.smoothing for swept in group})
    values: list[list[float | None]] = [[None] * len(deltas) for _ in smoothings]
    texts, hover = ([[""] * len(deltas) for _ in smoothings] for _ in range(2))
    found = []
    for y, smoothing in enumerate(smoothings):
        for x, delta in enumerate(deltas):
            accuracies = [swept.accuracy for swept in group if (swept.delta, swept.smoothing) == (delta, smoothing)]
            if not accuracies:
                continue
            mean, name = sum(accuracies) / len(accuracies), f"Δ={delta}, λ={smoothing:g}"
            values[y][x], texts[y][x] = mean, f"{percent(mean)}\nn={len(accuracies)}"
            hover[y][x] = f"{name}\nmean {percent(mean)}, n={len(accuracies)}: {', '.join(map(percent, accuracies))}"
            found.append((mean, name))
    (worst, where_worst), (best, where_best) = min(found), max(found)
    return HeatMap(
        f"sweep-{number}", "Final accuracy by Δ and λ",
        "Accuracy on the test set at the end: the mean over n runs that differ in their seed alone; all else is the same in the whole "
        "figure. Empty: no such run has ended.",
        f"Heat map of final accuracy by Δ and λ. Best: {percent(best)} at {where_best}; worst: {percent(worst)} at {where_worst}.",
        "Δ (CoT tokens removed per epoch)", "λ (removal smoothing)",
        [Cells(list(map(str, deltas)), [f"{smoothing:g}" for smoothing in smoothings], values, texts, hover)],
    )  # fmt: skip
