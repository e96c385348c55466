"""What has come of a sweep: one row per cell, as a table, sweep.csv and figures."""

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stepwise_pl.compare import read_summary
from stepwise_pl.disk import write_text
from stepwise_pl.errors import go_on_without
from stepwise_pl.predictions import table
from stepwise_pl.run_folder import derived_of
from stepwise_pl.statistics import over_seeds
from stepwise_pl.sweep_folder import FAILED, FINISHED, Job, Sweep, alone, label, read_sweep, write_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY = 0.95  # what tokens are counted at


@dataclass
class Result:
    """What a finished job has come to."""

    test_accuracy: float
    test_examples: int
    removed_tokens: int  # of the checkpoint that was tested
    removed_at_95: int | None  # see `results.removed_at`
    max_cot_tokens: int
    examples_per_token: float | None
    seconds: float
    collapsed: bool
    collapsed_at: int | None  # CoT tokens gone when it had collapsed for the first time
    test_accuracy_any_length: float | None = None  # None in runs from before it was measured


@dataclass
class Cell:
    """The jobs that differ in nothing but the seed.

    Attributes:
        swept: the swept keys without the seed.
        results: of those jobs that are finished, in their order.
    """

    swept: dict[str, str]
    jobs: list[Job]
    results: list[Result]

    @property
    def label(self) -> str:
        """The swept keys and values, for reading."""
        return label(self.swept)

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over the finished seeds."""
        return fmean(one.test_accuracy for one in self.results) if self.results else None

    @property
    def interval(self) -> tuple[float, float, str] | None:
        """95% interval of the accuracy, and what it is (`statistics.over_seeds`)."""
        if not self.results:
            return None
        return over_seeds([one.test_accuracy for one in self.results], self.results[0].test_examples)

    def row(self) -> dict[str, Any]:
        """What sweep.json and sweep.csv hold of it; lists are over the finished seeds."""
        interval = self.interval or (None, None, None)
        return {
            "runs": len(self.jobs),
            "finished": len(self.results),
            "failed": sum(job.outcome == FAILED for job in self.jobs),
            "collapsed": sum(one.collapsed for one in self.results),
            "collapsed_at": [one.collapsed_at for one in self.results],
            "test_accuracy": self.accuracy,
            "interval_low": interval[0],
            "interval_high": interval[1],
            "interval": "t over seeds" if interval[2] == "t" else interval[2],
            "test_examples": self.results[0].test_examples if self.results else None,
            "test_accuracies": [one.test_accuracy for one in self.results],
            "test_accuracies_any_length": [one.test_accuracy_any_length for one in self.results],
            "removed_tokens": [one.removed_tokens for one in self.results],
            "removed_at_95": [one.removed_at_95 for one in self.results],
            "max_cot_tokens": self.results[0].max_cot_tokens if self.results else None,
            "seconds": fmean(one.seconds for one in self.results) if self.results else None,
            "examples_per_token": self.results[0].examples_per_token if self.results else None,
        }


def read_result(run: Path) -> Result:
    """From the files of a finished run."""
    from stepwise_pl.results import read_stages, removed_at

    summary = read_summary(run / "summary.json")
    stages, _ = read_stages(run / "metrics.csv")
    derived = derived_of(run)
    return Result(
        summary["test_accuracy"], summary["test_examples"], summary["removed_tokens"], removed_at(stages, ACCURACY),
        derived["max_cot_tokens"], derived["examples_per_token"], summary["seconds"], summary["collapsed"],
        summary.get("collapsed_at"), summary.get("test_accuracy_any_length"),
    )  # fmt: skip


def cells_of(sweep: Sweep) -> list[Cell]:
    """The cells in the order of their first jobs."""
    cells: dict[tuple[tuple[str, str], ...], Cell] = {}
    for job in sweep.jobs:
        swept = {key: value for key, value in job.swept.items() if key != "seed"}
        cell = cells.setdefault(tuple(swept.items()), Cell(swept, [], []))
        cell.jobs.append(job)
        if job.outcome == FINISHED:
            cell.results.append(read_result(sweep.folder / job.run))
    return list(cells.values())


def refresh(folder: Path, draw: bool = False) -> tuple[Sweep, list[Cell]]:
    """Bring sweep.json and sweep.csv up to date, and the figures if asked to; at any time, also while the sweep goes on.

    Raises:
        UserError: it is no sweep folder, or a file in it is damaged.
    """
    read_sweep(folder)  # says so if it is none
    with alone(folder):
        sweep = read_sweep(folder)
        cells = cells_of(sweep)
        rows = [{**cell.swept, **cell.row()} for cell in cells]
        write_sweep(sweep, cells=[{"swept": cell.swept, **cell.row()} for cell in cells])
        write_text(folder / "sweep.csv", _csv(rows))
        if draw and any(cell.results for cell in cells):
            with go_on_without("sweep.png"):
                plot_cells(cells, folder.resolve().name, folder / "sweep")
            with go_on_without("sweep-grid.png"):
                if (keys := grid_of(cells)) is not None:
                    plot_grid(cells, *keys, folder.resolve().name, folder / "sweep-grid")
    return sweep, cells


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({
            key: " ".join("none" if one is None else str(one) for one in value) if isinstance(value, list) else value
            for key, value in row.items()
        })  # fmt: skip
    return out.getvalue()


def cell_lines(cells: Sequence[Cell]) -> list[str]:
    """The table, for reading."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.swept))
    head = [
        *(key.lstrip("+") for key in keys), "runs", "test accuracy", "95% interval", "removed", "at 95%", "seconds",
        "examples/token", "collapsed", "failed",
    ]  # fmt: skip
    return table(head, [[*(cell.swept.get(key, "") for key in keys), *_shown(cell)] for cell in cells])


def _shown(cell: Cell) -> list[str]:
    row, results = cell.row(), cell.results
    runs = f"{row['finished']} of {row['runs']}"
    at_some_time = sum(one.collapsed or one.collapsed_at is not None for one in results)
    counts = [f"{row['collapsed']} ({at_some_time})", str(row["failed"])]
    if not results:
        return [runs, *["-"] * 6, *counts]
    per_token = row["examples_per_token"]
    return [
        runs,
        f"{row['test_accuracy']:.1%}",
        f"[{row['interval_low']:.1%}, {row['interval_high']:.1%}] {row['interval'][0]}",
        f"{_span(row['removed_tokens'])} of {row['max_cot_tokens']}",
        _span(row["removed_at_95"]),
        f"{row['seconds']:.0f}",
        "-" if per_token is None else f"{per_token:.0f}",
        *counts,
    ]


def _span(counts: Sequence[int | None]) -> str:
    """`10`, or `8-10` where seeds differ; `none` where 95% was never reached."""
    ordered = sorted(counts, key=lambda count: -1 if count is None else count)
    low, high = ("none" if count is None else str(count) for count in (ordered[0], ordered[-1]))
    return low if low == high else f"{low}-{high}"


LEGEND = (
    "95% interval: t = Student's over seeds, W = Wilson's for one seed, or where all agree. removed: CoT tokens gone\n"
    "in the tested checkpoint; at 95%: the most removed tokens whose last validation was at least 95% right. collapsed: at\n"
    "the end, and in brackets at some time (below a quarter of the best, as the guard sees it)."
)


def plot_cells(cells: Sequence[Cell], title: str, stem: Path) -> None:
    """Test accuracy with interval, and tokens removed at 95% accuracy: a line per cell, a dot (collapsed: cross) per seed."""
    from stepwise_pl.results import pyplot

    with pyplot() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.0, 1.7 + 0.34 * len(cells)), width_ratios=(3, 2), sharey=True, layout="constrained"
        )
        _draw_cells(left, right, cells)
        _save(figure, title, stem)


def _draw_cells(left: "Axes", right: "Axes", cells: Sequence[Cell]) -> None:
    from matplotlib.ticker import MaxNLocator

    from stepwise_pl.results import COLORS

    for place, cell in enumerate(cells):
        if cell.accuracy is None or cell.interval is None:
            left.text(0.5, place, "failed" if cell.row()["failed"] else "not finished", ha="center", va="center")
            continue
        for one in cell.results:
            style: dict[str, Any] = (
                {"marker": "x", "color": COLORS[1]} if one.collapsed else {"marker": "o", "color": COLORS[0]}
            )
            for axes, value in ((left, one.test_accuracy), (right, one.removed_at_95)):
                axes.plot([] if value is None else [value], [place] * (value is not None), markersize=5, **style)
        low, high, how = cell.interval
        left.plot([low, high], [place, place], "-" if how == "t" else ":", color=COLORS[0], linewidth=1.5)
        left.plot([cell.accuracy], [place], "|", color="black", markersize=13)
        right.plot([cell.results[0].max_cot_tokens], [place], "|", color="grey", markersize=13)
    left.set(
        yticks=range(len(cells)), yticklabels=[cell.label for cell in cells], xlim=(-0.03, 1.03),
        xlabel="test accuracy [95% interval; dotted: Wilson's]", ylim=(len(cells) - 0.5, -0.5),
    )  # fmt: skip
    right.set(xlabel="tokens removed at 95% (bar: all)")
    right.set_xlim(left=-0.5)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        axes.grid(alpha=0.3)


def grid_of(cells: Sequence[Cell]) -> tuple[str, str] | None:
    """The two swept keys whose values make a grid that most of the cells are there of, if so they do."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.swept))
    if len(keys) != 2:
        return None
    places = math.prod(len({cell.swept.get(key) for cell in cells}) for key in keys)
    return (keys[0], keys[1]) if 2 * len(cells) > places else None


def plot_grid(cells: Sequence[Cell], x_key: str, y_key: str, title: str, stem: Path) -> None:
    """Mean test accuracy over two swept keys as a heat map, with the number of seeds in each cell."""
    from stepwise_pl.results import pyplot

    with pyplot() as plt:
        x_values, y_values = (ordered({cell.swept[key]: None for cell in cells}) for key in (x_key, y_key))
        grid = [[math.nan] * len(x_values) for _ in y_values]
        figure, axes = plt.subplots(
            figsize=(2.4 + 1.0 * len(x_values), 1.6 + 0.7 * len(y_values)), layout="constrained"
        )
        for cell in cells:
            x, y = x_values.index(cell.swept[x_key]), y_values.index(cell.swept[y_key])
            grid[y][x] = math.nan if cell.accuracy is None else cell.accuracy
            _write_in(axes, x, y, cell)
        image = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
        axes.set(
            xticks=range(len(x_values)), xticklabels=x_values, yticks=range(len(y_values)), yticklabels=y_values,
            xlabel=x_key.lstrip("+"), ylabel=y_key.lstrip("+"),
        )  # fmt: skip
        figure.colorbar(image, label="test accuracy (mean)")
        _save(figure, title, stem)


def _write_in(axes: "Axes", x: int, y: int, cell: Cell) -> None:
    text = "-" if cell.accuracy is None else f"{cell.accuracy:.1%}"
    collapsed = cell.row()["collapsed"]
    more = f", {collapsed} collapsed" if collapsed else ""
    color = "white" if cell.accuracy is not None and cell.accuracy < 0.6 else "black"
    axes.text(x, y, f"{text}\nn={len(cell.results)}{more}", ha="center", va="center", color=color, fontsize="small")


def ordered(values: Sequence[str] | dict[str, None]) -> list[str]:
    """By number where all are numbers, such as 8, 0.5, 1/2 and inf; else as given."""
    numbers: dict[str, float] = {}
    for value in values:
        try:
            numbers[value] = float(Fraction(value)) if "/" in value else float(value)
        except (ValueError, ZeroDivisionError):
            return list(values)
    return sorted(numbers, key=lambda value: numbers[value])


def _save(figure: Any, title: str, stem: Path) -> None:
    from stepwise_pl.results import save_figure

    figure.suptitle(textwrap.fill(title, round(10 * figure.get_figwidth()), break_on_hyphens=False), fontsize="small")
    save_figure(figure, stem)
