"""Figures for the page, as plotly draws them. The page's style gives axes and text their colours."""

import json
from html import escape
from typing import Any

from stepwise_pl.reporting.figures.data import Cells, Chart, HeatMap, Panel, Series, log_ticks
from stepwise_pl.reporting.style import BAND, ink_on

# Plotly's buttons stand in the upper margin, where they cover no point.
BUTTONS = 34
MARGIN = {"l": 64, "r": 16, "t": BUTTONS, "b": 52}


def spec(figure: Chart | HeatMap) -> dict[str, Any]:
    """Data and layout for plotly, checked by plotly, in plain containers.

    Plotly reads text as HTML, so all text is escaped.
    """
    import plotly.graph_objects as go

    drawn = go.Figure(_heat_map(figure) if isinstance(figure, HeatMap) else _chart(figure))
    found: dict[str, Any] = json.loads(drawn.to_json())
    return found


def text_of(text: str) -> str:
    """Lines of text for plotly."""
    return escape(text).replace("\n", "<br>")


def _chart(chart: Chart) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "template": "none", "hovermode": "closest", "showlegend": False, "dragmode": "zoom", "margin": MARGIN,
        "xaxis": {"title": {"text": text_of(chart.x_label)}, "zeroline": False, "automargin": True},
    }  # fmt: skip
    x = [value for panel in chart.panels for series in panel.series for value in series.x]
    if chart.log_x:
        layout["xaxis"] |= _log_axis(x)
    if chart.whole_x and max(x) <= 16:
        layout["xaxis"] |= {"dtick": 1}
    data = []
    gap, top = 0.07, 1.0
    shares = sum(panel.share for panel in chart.panels)
    height = (1 - gap * (len(chart.panels) - 1)) / shares
    for number, panel in enumerate(chart.panels, start=1):
        suffix = "" if number == 1 else str(number)
        bottom = max(0.0, top - height * panel.share)
        layout[f"yaxis{suffix}"] = _y_axis(panel) | {"domain": [bottom, top]}
        top = bottom - gap
        data += [{**_series(series), "xaxis": "x", "yaxis": f"y{suffix}"} for series in panel.series]
        # The x axis stands below the last panel.
        layout["xaxis"]["anchor"] = f"y{suffix}"
    return {"data": data, "layout": layout}


def _y_axis(panel: Panel) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": text_of(panel.y_label)}, "zeroline": False, "automargin": True}
    if panel.percent:
        axis |= {"tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    if panel.y_range is not None:
        axis["range"] = list(panel.y_range)
    if panel.log:
        axis |= _log_axis([y for series in panel.series for y in series.y if y is not None])
    return axis


def _log_axis(values: list[float]) -> dict[str, Any]:
    ticks = log_ticks(values)
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _series(series: Series) -> dict[str, Any]:
    if series.line == "band":
        return _band(series)
    color, shape, dashes = series.color, series.shape, series.dashes
    modes = [*["lines"] * (dashes is not None), *["markers"] * (shape is not None), *["text"] * bool(series.labels)]
    out: dict[str, Any] = {
        "type": "scatter", "mode": "+".join(modes), "name": text_of(series.name), "meta": {"runs": series.runs},
        "x": list(series.x), "y": list(series.y), "connectgaps": False, "cliponaxis": False,
        "hoverinfo": "text" if series.hover else "skip", "hovertext": list(map(text_of, series.hover)),
    }  # fmt: skip
    if dashes is not None:
        steps = "hv" if series.line == "steps" else "linear"
        out["line"] = {"color": color, "width": 1.1 if series.thin else 1.6, "dash": dashes.plotly, "shape": steps}
    if shape is not None:
        outline = {"color": color, "width": 0 if shape.filled else 1.6}
        out["marker"] = {"symbol": shape.plotly, "size": shape.size, "color": color, "line": outline}
    if series.low:
        below, above = series.errors
        out["error_y"] = {
            "type": "data", "symmetric": False, "color": color, "thickness": 1, "width": 3,
            "array": above, "arrayminus": below,
        }  # fmt: skip
    if series.labels:
        is_below = series.label_side.startswith("below ")
        out |= {
            "text": list(map(text_of, series.labels)),
            "textposition": f"{'bottom' if is_below else 'top'} {series.label_side.removeprefix('below ')}",
            "textfont": {"size": 12},
        }
    return out


def _band(series: Series) -> dict[str, Any]:
    """A filled area without an edge."""
    return {
        "type": "scatter", "mode": "lines", "name": text_of(series.name), "meta": {"runs": series.runs},
        "x": [*series.x, *reversed(series.x)], "y": [*series.low, *reversed(series.high)],
        "fill": "toself", "fillcolor": BAND, "line": {"width": 0, "color": series.color}, "hoveron": "fills",
        "hoverinfo": "text", "text": text_of(series.hover[0]),
    }  # fmt: skip


def panel_height(figure: HeatMap) -> int:
    """The height of a panel on the page, in pixels."""
    if len(figure.panels) == 1:
        return max(180, 44 * len(figure.y))
    row = 14 + 13 * figure.text_size[1] if figure.has_room else 14
    return max(120, min(row * len(figure.y), max(420, 10 * len(figure.y))))


def longest_title(figure: HeatMap) -> int:
    """Characters of the longest title of a panel."""
    return max(len(panel.title) for panel in figure.panels)


def frame_width(figure: HeatMap) -> int:
    """The width up to which the figure grows on the page, in pixels."""
    return 260 + figure.across * max(58 * len(figure.x), 8 * max(longest_title(figure), len(figure.x_label)) + 14)


def frame_height(figure: HeatMap) -> int:
    """The height of the whole figure on a wide page, in pixels; `page.js` measures the same."""
    turned = 7 * max(map(len, figure.x)) if len(figure.panels) > 1 else 0
    return figure.down * (panel_height(figure) + 36) + 52 + BUTTONS + turned


def _heat_map(figure: HeatMap) -> dict[str, Any]:
    """The page lays the panels out (`page.js`), because their number in a row depends on the width of the screen."""
    meta = {"runs": [] if figure.run is None else [figure.run]}
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    titles: list[dict[str, Any]] = []
    layout: dict[str, Any] = {
        "template": "none", "margin": MARGIN, "showlegend": False, "shapes": shapes, "annotations": titles,
        "coloraxis": {
            "cmin": 0, "cmax": figure.high, "colorscale": "Cividis",
            "colorbar": {
                "tickformat": ".0%" if figure.percent else "", "thickness": 12, "outlinewidth": 0,
                "title": {"text": text_of(figure.label), "side": "right", "font": {"size": 13}},
            },
        },
        "meta": {
            "panels": len(figure.panels), "columns": figure.across, "height": panel_height(figure),
            "x": [len(figure.x), max(map(len, figure.x))], "y": [len(figure.y), max(map(len, figure.y))],
            "characters": figure.text_size[0], "title": longest_title(figure), "label": len(figure.x_label),
        },
    }  # fmt: skip
    axis = {"type": "category", "automargin": True, "showgrid": False, "zeroline": False}
    for number, panel in enumerate(figure.panels, start=1):
        suffix = "" if number == 1 else str(number)
        x, y = f"x{suffix}", f"y{suffix}"
        on = {"meta": meta, "xaxis": x, "yaxis": y}
        columns, rows = list(map(text_of, panel.x)), list(map(text_of, panel.y))
        data.append({
            **on, "type": "heatmap", "z": panel.values, "coloraxis": "coloraxis", "x": columns, "y": rows, "xgap": 1, "ygap": 1,
            "hoverinfo": "text" if panel.hover else "x+y+z", "hoverongaps": False,
            "hovertext": [list(map(text_of, row)) for row in panel.hover] or None,
        })  # fmt: skip
        if figure.has_room:
            data.append({**on, **_written(panel, columns, rows, figure.high)})
        for name, label, anchor, places in (("x", figure.x_label, y, panel.x), ("y", figure.y_label, x, panel.y)):
            layout[f"{name}axis{suffix}"] = {
                **axis, "anchor": anchor, "range": [-0.5, len(places) - 0.5], "title": {"text": text_of(label), "standoff": 8},
            }  # fmt: skip
        shapes += [shape for line in panel.lines for shape in _line(line, x, y)]
        if longest_title(figure):
            titles.append({
                "text": text_of(panel.title), "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "showarrow": False,
                "font": {"size": 13},
            })  # fmt: skip
    return {"data": data, "layout": layout}


def _written(panel: Cells, columns: list[str], rows: list[str], high: float) -> dict[str, Any]:
    """The texts in the cells. Plotly writes all text of a heat map in one colour, which cannot be read on every cell."""
    inks = [ink_on(None if value is None else value / high) for row in panel.values for value in row]
    return {
        "type": "scatter", "mode": "text", "hoverinfo": "skip",
        "x": [x for _ in rows for x in columns], "y": [y for y in rows for _ in columns],
        "text": [text_of(text) for row in panel.texts for text in row], "textfont": {"size": 12, "color": inks},
    }  # fmt: skip


def _line(ends: tuple[float, float, float, float], x: str, y: str) -> list[dict[str, Any]]:
    """A black line with a white edge, which is seen on every colour."""
    place = dict(zip(("x0", "y0", "x1", "y1"), ends, strict=True)) | {"type": "line", "xref": x, "yref": y}
    return [{**place, "line": {"color": color, "width": width}} for color, width in (("#ffffff", 5), ("#000000", 2.5))]
