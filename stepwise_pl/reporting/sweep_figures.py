"""The figures of a sweep: accuracy of every cell, and a heat map where two keys are swept."""

import math
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise_pl.common.text import percent
from stepwise_pl.runs.cells import Cell, SweepRun, results_of, row_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_cells(cells: Sequence[Cell[SweepRun]], title: str, stem: Path) -> None:
    """Test accuracy with interval, and tokens removed at 95% accuracy: a line per cell, a dot (collapsed: cross) per seed."""
    from stepwise_pl.reporting.style import pyplot

    with pyplot() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.0, 1.7 + 0.34 * len(cells)), width_ratios=(3, 2), sharey=True, layout="constrained"
        )
        _draw_cells(left, right, cells)
        _save(figure, title, stem)


def _draw_cells(left: "Axes", right: "Axes", cells: Sequence[Cell[SweepRun]]) -> None:
    from matplotlib.ticker import MaxNLocator

    from stepwise_pl.reporting.style import COLORS

    for place, cell in enumerate(cells):
        if cell.accuracy is None or cell.interval is None:
            left.text(0.5, place, "failed" if row_of(cell)["failed"] else "not finished", ha="center", va="center")
            continue
        for one in results_of(cell):
            style: dict[str, Any] = (
                {"marker": "x", "color": COLORS[1]} if one.collapsed else {"marker": "o", "color": COLORS[0]}
            )
            for axes, value in ((left, one.test_accuracy), (right, one.removed_at_95)):
                axes.plot([] if value is None else [value], [place] * (value is not None), markersize=5, **style)
        low, high, how = cell.interval
        left.plot([low, high], [place, place], "-" if how == "t" else ":", color=COLORS[0], linewidth=1.5)
        left.plot([cell.accuracy], [place], "|", color="black", markersize=13)
        right.plot([results_of(cell)[0].max_cot_tokens], [place], "|", color="grey", markersize=13)
    left.set(
        yticks=range(len(cells)), yticklabels=[cell.label for cell in cells], xlim=(-0.03, 1.03),
        xlabel="test accuracy [95% interval; dotted: Wilson's]", ylim=(len(cells) - 0.5, -0.5),
    )  # fmt: skip
    right.set(xlabel="tokens removed at 95% (bar: all)")
    right.set_xlim(left=-0.5)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        axes.grid(alpha=0.3)


def grid_of(cells: Sequence[Cell[SweepRun]]) -> tuple[str, str] | None:
    """The two swept keys whose values make a grid that most of the cells are there of, if so they do."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.config))
    if len(keys) != 2:
        return None
    places = math.prod(len({cell.config.get(key) for cell in cells}) for key in keys)
    return (keys[0], keys[1]) if 2 * len(cells) > places else None


def plot_grid(cells: Sequence[Cell[SweepRun]], x_key: str, y_key: str, title: str, stem: Path) -> None:
    """Mean test accuracy over two swept keys as a heat map, with the number of seeds in each cell."""
    from stepwise_pl.reporting.style import pyplot

    with pyplot() as plt:
        x_values, y_values = (ordered({cell.config[key]: None for cell in cells}) for key in (x_key, y_key))
        grid = [[math.nan] * len(x_values) for _ in y_values]
        figure, axes = plt.subplots(
            figsize=(2.4 + 1.0 * len(x_values), 1.6 + 0.7 * len(y_values)), layout="constrained"
        )
        for cell in cells:
            x, y = x_values.index(cell.config[x_key]), y_values.index(cell.config[y_key])
            grid[y][x] = math.nan if cell.accuracy is None else cell.accuracy
            _write_in(axes, x, y, cell)
        image = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
        axes.set(
            xticks=range(len(x_values)), xticklabels=x_values, yticks=range(len(y_values)), yticklabels=y_values,
            xlabel=x_key.lstrip("+"), ylabel=y_key.lstrip("+"),
        )  # fmt: skip
        figure.colorbar(image, label="test accuracy (mean)")
        _save(figure, title, stem)


def _write_in(axes: "Axes", x: int, y: int, cell: Cell[SweepRun]) -> None:
    text = "-" if cell.accuracy is None else percent(cell.accuracy)
    collapsed = row_of(cell)["collapsed"]
    more = f", {collapsed} collapsed" if collapsed else ""
    color = "white" if cell.accuracy is not None and cell.accuracy < 0.6 else "black"
    axes.text(x, y, f"{text}\nn={len(cell.ended)}{more}", ha="center", va="center", color=color, fontsize="small")


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
    from stepwise_pl.reporting.style import save_figure

    figure.suptitle(textwrap.fill(title, round(10 * figure.get_figwidth()), break_on_hyphens=False), fontsize="small")
    save_figure(figure, stem)
