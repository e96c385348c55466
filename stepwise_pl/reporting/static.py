"""Figures as files, drawn by matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepwise_pl.reporting.figures import Chart, HeatMap, Panel, Series, log_ticks
from stepwise_pl.reporting.interactive import MANY_CELLS, ink_on, legend
from stepwise_pl.reporting.style import pyplot, save_figure, style_of

LINES: dict[str, Any] = {"dotted": ":", "dashed": "--", "none": ""}
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (7, 2, 1, 2)))  # those of `interactive`


def write_figure(figure: Chart | HeatMap, labels: Sequence[str], folder: Path) -> list[Path]:
    """`<slug>.png` and `<slug>.svg`, as white paper shows them; `labels` are those of the cells."""
    with pyplot() as plt, plt.rc_context({"svg.fonttype": "none"}):
        drawn = _heat_map(figure, plt) if isinstance(figure, HeatMap) else _chart(figure, labels, plt)
        return save_figure(drawn, folder / figure.slug)


def _chart(chart: Chart, labels: Sequence[str], plt: Any) -> Any:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    shares = [panel.share for panel in chart.panels]
    figure, axes = plt.subplots(
        len(shares), figsize=(7.2, 4.2 if len(shares) == 1 else 5.6), sharex=True, squeeze=False, layout="constrained",
        height_ratios=shares,
    )  # fmt: skip
    for panel, place in zip(chart.panels, axes[:, 0], strict=True):
        aside = _aside(panel) if chart.whole_x else {}
        for series in panel.series:
            _draw(series, place, aside.get(series.cell, 0.0))
        place.set_ylabel(panel.y_label)
        if panel.y_range is not None:
            place.set_ylim(*panel.y_range)
        if panel.log:
            _log_axis(place, "y", [y for series in panel.series for y in series.y if y is not None])
        if panel.percent:
            place.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            place.set_yticks([0, 0.25, 0.5, 0.75, 1])
        place.grid(alpha=0.3)
    axes[0, 0].set_title(chart.title)
    axes[-1, 0].set_xlabel(chart.x_label)
    if chart.log_x:
        _log_axis(axes[-1, 0], "x", [x for panel in chart.panels for series in panel.series for x in series.x])
    if chart.whole_x:
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    if shown := legend(chart, labels):
        # Below the axes, where it hides nothing.
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(shown) // 3))
        figure.legend(handles=_handles(shown), fontsize="x-small", ncols=3, loc="outside lower center", frameon=False)
    return figure


def _aside(panel: Panel) -> dict[int | None, float]:
    """How far each cell is moved along x, so that intervals at the same count stand side by side: together at most half a count."""
    cells = list(dict.fromkeys(series.cell for series in panel.series))
    x = [value for series in panel.series for value in series.x]
    step = min(0.004 * (max(x) - min(x)), 0.5 / len(cells))
    return {cell: step * (place - (len(cells) - 1) / 2) for place, cell in enumerate(cells)}


def _log_axis(axes: Any, which: str, values: list[float]) -> None:
    from matplotlib.ticker import NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis, limits, ticks = getattr(axes, f"{which}axis"), getattr(axes, f"get_{which}lim")(), log_ticks(values)
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())
    # Ticks outside the limits have widened them.
    axes.set(**{f"{which}lim": limits})


def _handles(shown: dict[int, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    styles = [(label, *style_of(cell)) for cell, label in shown.items()]
    return [Line2D([], [], label=label, color=color, marker=marker) for label, color, marker in styles]


def _draw(series: Series, axes: Any, aside: float) -> None:
    color, shape = style_of(series.cell) if series.cell is not None else ("#777777", "o")
    x = [value + aside for value in series.x]
    y = [float("nan") if value is None else value for value in series.y]
    style = {
        "color": color, "linestyle": LINES.get(series.line, DASHES[series.turn % len(DASHES)]), "linewidth": 1.0 if series.thin else 1.4,
        "marker": {"run": shape, "none": ""}.get(series.marker, series.marker), "markersize": 6 if series.marker == "x" else 5,
        "drawstyle": "steps-post" if series.line == "steps" else "default",
    }  # fmt: skip
    if series.low:
        errors = [[float("nan") if one is None else one for one in side] for side in series.errors]
        axes.errorbar(x, y, yerr=errors, capsize=2, elinewidth=0.9, **style)
    else:
        axes.plot(x, y, **style)
    for at, value, label in zip(x, y, series.labels, strict=False):
        left = series.label_side == "left"
        axes.annotate(
            label, (at, value), xytext=(-5 if left else 5, 3), textcoords="offset points",
            ha="right" if left else "left", fontsize="x-small",
        )  # fmt: skip


def _heat_map(figure: HeatMap, plt: Any) -> Any:
    import numpy as np
    from matplotlib.ticker import PercentFormatter

    width = min(14.0, max(4.8, 2.2 + 0.5 * len(figure.x)))
    drawn, axes = plt.subplots(figsize=(width, max(2.8, 1.6 + 0.45 * len(figure.y))), layout="constrained")
    values = np.array([[np.nan if value is None else value for value in row] for row in figure.values], float)
    image = axes.imshow(values, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="cividis")
    step = -(-len(figure.x) // 24)
    axes.set_xticks(range(0, len(figure.x), step), figure.x[::step])
    axes.set_yticks(range(len(figure.y)), figure.y)
    if values.size <= MANY_CELLS:
        for y, row in enumerate(figure.texts):
            for x, text in enumerate(row):
                axes.text(x, y, text, ha="center", va="center", fontsize="x-small", color=ink_on(values[y, x]))
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    axes.set_title(figure.title, fontsize="medium")
    drawn.colorbar(image, label="accuracy", format=PercentFormatter(1, decimals=0))
    return drawn
