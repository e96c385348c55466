"""Figures as files, drawn by matplotlib."""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepwise_pl.reporting.figures.data import Cells, Chart, HeatMap, Panel, Series, log_ticks
from stepwise_pl.reporting.style import GREY, ink_on, style_of

# A marker of one pixel on the page has this many points in a file.
POINTS = 0.65
# Inches that a character of small print takes, at most.
CHARACTER = 0.075


def write_figure(figure: Chart | HeatMap, labels: Sequence[str], folder: Path) -> list[Path]:
    """Write `<slug>.png` and `<slug>.svg`, dark on white.

    Args:
        labels: what the cells are called, by their number; a heat map needs none.
    """
    with pyplot() as plt, plt.rc_context({"svg.fonttype": "none"}):
        drawn = _heat_map(figure, plt) if isinstance(figure, HeatMap) else _chart(figure, labels, plt)
        # Ten characters of the title fit into an inch.
        line = f" ({figure.line})" if isinstance(figure, HeatMap) and figure.line else ""
        title = textwrap.fill(figure.title + line, round(10 * drawn.get_figwidth()), break_on_hyphens=False)
        drawn.suptitle(title, fontsize="medium")
        return save_figure(drawn, folder / figure.slug)


@contextmanager
def pyplot() -> Iterator[Any]:
    """Matplotlib's pyplot for figures that become files: no display, text taken literally, every figure closed at the end.

    A notebook, or a script that draws by itself, keeps its backend, by which its own figures are shown.
    """
    import matplotlib

    if not {"matplotlib.pyplot", "ipykernel"} & sys.modules.keys():
        matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    try:
        # Names of runs are not to be read as formulas.
        with plt.rc_context({"text.parse_math": False, "text.usetex": False}):
            yield plt
    finally:
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)


def save_figure(figure: Any, stem: Path) -> list[Path]:
    """Write `<stem>.png` and `<stem>.svg`. Each file appears only when it is complete."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        fresh = path.with_name(f"{path.name}.tmp")
        try:
            figure.savefig(fresh, format=path.suffix[1:], dpi=150)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    return paths


def _chart(chart: Chart, labels: Sequence[str], plt: Any) -> Any:
    shares = [panel.share for panel in chart.panels]
    rows = [textwrap.fill(row, 60, break_on_hyphens=False) for row in chart.rows]
    if rows:
        lines = [row.split("\n") for row in rows]
        width = 7.5 + 1.2 * CHARACTER * max(len(line) for row in lines for line in row)
        # Every row gets the room of the longest, a sixth of an inch for each further line.
        room = 0.34 + 0.17 * (max(map(len, lines)) - 1)
        figure, axes = plt.subplots(
            1, len(shares), figsize=(width, 1.4 + room * len(rows)), sharey=True, squeeze=False, layout="constrained",
            width_ratios=shares,
        )  # fmt: skip
    else:
        figure, axes = plt.subplots(
            len(shares), figsize=(7.2, 4.2 if len(shares) == 1 else 5.6), sharex=True, squeeze=False, layout="constrained",
            height_ratios=shares,
        )  # fmt: skip
    # On its side, the chart has its values along matplotlib's x.
    along, across = ("y", "x") if chart.rows else ("x", "y")
    for panel, place in zip(chart.panels, axes.flat, strict=True):
        aside = _aside(panel) if chart.whole_x else {}
        for series in panel.series:
            _draw(series, place, aside.get(series.cell, 0.0), bool(chart.rows))
        _value_axis(panel, place, across)
        place.grid(alpha=0.3)
    last = axes.flat[-1]
    last.set(**{f"{along}label": chart.x_label})
    if rows:
        last.set(yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
    if chart.log_x:
        _log_axis(last, along, [x for panel in chart.panels for series in panel.series for x in series.x])
    if chart.whole_x:
        _count_along(last, along)
    _write_legend(figure, chart, labels)
    return figure


def _value_axis(panel: Panel, axes: Any, across: str) -> None:
    """Label, range and ticks of the panel's y, along matplotlib's x where the chart lies on its side."""
    from matplotlib.ticker import PercentFormatter

    axes.set(**{f"{across}label": panel.y_label})
    if panel.y_range is not None:
        axes.set(**{f"{across}lim": panel.y_range})
    if panel.log:
        _log_axis(axes, across, [y for series in panel.series for y in series.y if y is not None])
    if panel.percent:
        getattr(axes, f"{across}axis").set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(**{f"{across}ticks": [0, 0.25, 0.5, 0.75, 1]})
    if panel.whole:
        _count_along(axes, across)


def _count_along(axes: Any, which: str) -> None:
    from matplotlib.ticker import MaxNLocator

    getattr(axes, f"{which}axis").set_major_locator(MaxNLocator(integer=True))


def _log_axis(axes: Any, which: str, values: list[float]) -> None:
    from matplotlib.ticker import NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis, limits, ticks = getattr(axes, f"{which}axis"), getattr(axes, f"get_{which}lim")(), log_ticks(values)
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())
    # Ticks outside the limits have widened them.
    axes.set(**{f"{which}lim": limits})


def _aside(panel: Panel) -> dict[int | None, float]:
    """The shift of each cell along x. Intervals at the same count then stand side by side, within half a count."""
    cells = list(dict.fromkeys(series.cell for series in panel.series))
    x = [value for series in panel.series for value in series.x]
    step = min(0.004 * (max(x) - min(x)), 0.5 / len(cells))
    return {cell: step * (place - (len(cells) - 1) / 2) for place, cell in enumerate(cells)}


def _draw(series: Series, axes: Any, aside: float, on_its_side: bool) -> None:
    if series.line == "band":
        axes.fill_between(series.x, series.low, series.high, color=series.color, alpha=0.35, linewidth=0)
        return
    x = [value + aside for value in series.x]
    y = [float("nan") if value is None else value for value in series.y]
    points = (y, x) if on_its_side else (x, y)
    style = {**_style(series), "drawstyle": "steps-post" if series.line == "steps" else "default"}
    if series.low:
        errors = [[float("nan") if error is None else error for error in side] for side in series.errors]
        axes.errorbar(*points, capsize=2, elinewidth=0.9, **{"xerr" if on_its_side else "yerr": errors}, **style)
    else:
        axes.plot(*points, **style)
    is_below, side = series.label_side.startswith("below "), series.label_side.removeprefix("below ")
    x_offset, align = {"left": (-5, "right"), "right": (5, "left"), "center": (0, "center")}[side]
    offset = (x_offset, 0 if side == "center" else -11 if is_below else 3)
    for point, label in zip(zip(*points, strict=True), series.labels, strict=False):
        axes.annotate(
            label, point, xytext=offset, textcoords="offset points", ha=align,
            va="center" if align == "center" else "baseline", fontsize="x-small",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )  # fmt: skip


def _style(series: Series) -> dict[str, Any]:
    """Colour, line and marker as matplotlib calls them."""
    shape, dashes = series.shape, series.dashes
    return {
        "color": series.color, "linestyle": dashes.matplotlib if dashes else "",
        "linewidth": 0.8 if series.thin else 1.4, "alpha": 0.6 if series.thin else 1.0,
        "marker": shape.matplotlib if shape else "", "markersize": POINTS * shape.size if shape else 0,
        "markeredgewidth": 1.0 if shape is None or shape.filled else 1.4,
    }  # fmt: skip


def _write_legend(figure: Any, chart: Chart, labels: Sequence[str]) -> None:
    """Write what cells, lines and markers are, below the axes, where the legend hides nothing."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for cell, label in chart.legend(labels).items():
        color, marker = style_of(cell)
        handles.append(
            Line2D([], [], label=label, color=color, marker=marker.matplotlib, markersize=POINTS * marker.size)
        )
    for meaning, series in chart.meanings().items():
        if series[0].line == "band":
            handles.append(Patch(label=meaning, color=series[0].color, alpha=0.35, linewidth=0))
            continue
        style = _style(series[0])
        # A line that several cells have is explained in no cell's colour.
        style["color"] = series[0].color if len({one.cell for one in series}) == 1 else GREY
        handles.append(Line2D([], [], label=meaning, **style))
    if not handles:
        return
    for handle in handles:
        handle.set_label(textwrap.fill(str(handle.get_label()), 100, break_on_hyphens=False))
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    columns = max(1, min(4 if chart.rows else 3, int(figure.get_figwidth() / (0.6 + CHARACTER * longest))))
    lines = [str(handle.get_label()).count("\n") + 1 for handle in handles]
    # Handles go down one column after the other.
    deep = -(-len(handles) // columns)
    height = max(sum(lines[first : first + deep]) for first in range(0, len(handles), deep))
    figure.set_figheight(figure.get_figheight() + 0.17 * height + 0.1)
    figure.legend(handles=handles, fontsize="x-small", ncols=columns, loc="outside lower center", frameon=False)


def _heat_map(figure: HeatMap, plt: Any) -> Any:
    from matplotlib.ticker import PercentFormatter

    longest, deepest = figure.text_size
    across, down = figure.across, figure.down
    titles = 0.1 + CHARACTER * max(len(panel.title) for panel in figure.panels)
    cell = max(min(11.8 / across, 0.5 * len(figure.x)) / len(figure.x), 0.15 + CHARACTER * longest if longest else 0.0)
    row = 0.28 + 0.17 * deepest if len(figure.panels) == 1 else 0.12 + 0.15 * deepest
    sides = 1.5 + CHARACTER * max(map(len, figure.y))
    foot = 0.7 + CHARACTER * max(map(len, figure.x))
    size = (
        max(4.8, sides + across * (0.25 + max(titles, cell * len(figure.x)))),
        max(2.8, foot + down * (0.5 + row * len(figure.y))),
    )
    drawn, grid = plt.subplots(
        down, across, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for panel, axes in zip(figure.panels, grid.flat, strict=False):
        image = _cells(panel, figure, axes)
    for axes in grid.flat[len(figure.panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(figure.y_label)
    # A panel with none below it has the names of the columns.
    for axes in grid.flat[len(figure.panels) - across : len(figure.panels)]:
        axes.set_xlabel(figure.x_label)
        axes.tick_params(labelbottom=True)
    percents = PercentFormatter(1, decimals=0) if figure.percent else None
    # The scale takes its room from all panels together.
    drawn.colorbar(image, ax=grid, label=figure.label, format=percents, fraction=0.15 / across)
    return drawn


def _cells(panel: Cells, figure: HeatMap, axes: Any) -> Any:
    """Draw one panel; return its image, which the scale of colours needs."""
    import numpy as np
    from matplotlib import patheffects

    values = np.array([[np.nan if value is None else value for value in row] for row in panel.values], float)
    image = axes.imshow(values, origin="lower", aspect="auto", vmin=0, vmax=figure.high, cmap="cividis")
    step = -(-len(panel.x) // 24)
    turned = {"rotation": 90} if max(map(len, panel.x)) > 5 else {}
    axes.set_xticks(range(0, len(panel.x), step), panel.x[::step], **turned)
    axes.set_yticks(range(len(panel.y)), panel.y)
    if figure.has_room:
        for y, row in enumerate(panel.texts):
            for x, text in enumerate(row):
                ink = ink_on(values[y, x] / figure.high)
                axes.text(x, y, text, ha="center", va="center", fontsize="small", color=ink)
    edge = [patheffects.withStroke(linewidth=4, foreground="white")]
    for x0, y0, x1, y1 in panel.lines:
        axes.plot(
            [x0, x1],
            [y0, y1],
            color="black",
            linewidth=2,
            path_effects=edge,
            clip_on=False,
            solid_capstyle="projecting",
        )
    if panel.title:
        axes.set_title(panel.title, fontsize="small", loc="left")
    return image
