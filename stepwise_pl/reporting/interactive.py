"""Figures for the page, as plotly draws them. The page's style gives axes and text their colours."""

import json
from html import escape
from typing import Any

from stepwise_pl.reporting.figures.data import Chart, HeatMap, Panel, Series, log_ticks
from stepwise_pl.reporting.style import ink_on

MARGIN = {"l": 64, "r": 16, "t": 12, "b": 52}


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


def _heat_map(figure: HeatMap) -> dict[str, Any]:
    meta = {"runs": [] if figure.run is None else [figure.run]}
    data = {
        "type": "heatmap", "meta": meta, "z": figure.values, "zmin": 0, "zmax": 1, "colorscale": "Cividis",
        "x": list(map(text_of, figure.x)), "y": list(map(text_of, figure.y)), "xgap": 1, "ygap": 1,
        "hoverinfo": "text", "hoverongaps": False, "hovertext": [list(map(text_of, row)) for row in figure.hover],
        "colorbar": {
            "tickformat": ".0%", "thickness": 12, "outlinewidth": 0,
            "title": {"text": text_of(figure.label), "side": "right", "font": {"size": 13}},
        },
    }  # fmt: skip
    # Plotly writes all text of a heat map in one colour, which cannot be read on every cell.
    written = {
        "type": "scatter", "mode": "text", "hoverinfo": "skip", "meta": meta,
        "x": [text_of(x) for _ in figure.y for x in figure.x], "y": [text_of(y) for y in figure.y for _ in figure.x],
        "text": [text_of(text) for row in figure.texts for text in row],
        "textfont": {"size": 12, "color": [ink_on(value) for row in figure.values for value in row]},
    }  # fmt: skip
    axis = {"type": "category", "automargin": True, "showgrid": False, "zeroline": False}
    return {
        "data": [data, written] if figure.has_room else [data],
        "layout": {
            "template": "none",
            "margin": MARGIN,
            "xaxis": {**axis, "title": {"text": text_of(figure.x_label)}},
            "yaxis": {**axis, "title": {"text": text_of(figure.y_label)}},
        },
    }
