"""A measure of the runs of a sweep by two swept keys: the map that `sweep x= y=` draws."""

import re
from collections.abc import Sequence
from statistics import fmean

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Cells, HeatMap, listed
from stepwise_pl.reporting.figures.sweeps import ordered
from stepwise_pl.runs.measures import MEASURES, Measure, MeasuredRun
from stepwise_pl.runs.sweep_folder import label


def map_slug(value: str, x: str, y: str) -> str:
    """The name of a map's files, without their ending: letters, digits, `_`, `.` and `-`."""
    return "-".join(["map", value, *(re.sub(r"[^A-Za-z0-9_.-]", "_", key.lstrip("+")) for key in (x, y))])


def sweep_map(runs: Sequence[MeasuredRun], value: str, x: str, y: str, title: str) -> HeatMap | None:
    """Mean of a measure by two swept keys, with the number of seeds and their range; None if no run has ended.

    Runs that differ in another key than x, y and the seed are in panels of their own. Runs without x or y are left out.

    Args:
        value: the name of the measure.
    """
    measure = MEASURES[value]
    placed = [run for run in runs if x in run.config and y in run.config]
    if not any(run.has_ended for run in placed):
        return None
    x_values, y_values = (ordered({run.config[key]: None for run in placed}) for key in (x, y))
    groups: dict[str, list[MeasuredRun]] = {}
    for run in placed:
        rest = {key: text for key, text in run.config.items() if key not in (x, y)}
        groups.setdefault(label(rest) if rest else "", []).append(run)
    panels = [_panel(name, group, (x, x_values), (y, y_values), measure) for name, group in groups.items()]
    means = {
        " ".join(filter(None, [panel.title, label({x: x_value, y: y_value})])): mean
        for panel in panels
        for y_value, row in zip(y_values, panel.values, strict=True)
        for x_value, mean in zip(x_values, row, strict=True)
        if mean is not None
    }
    x_label, y_label = x.lstrip("+"), y.lstrip("+")
    words = f"{title}: {measure.label}, mean of n seeds (lowest–highest)"
    if any(run.never_at_95 for run in placed):
        words += "; below 95%: never reached 95%, counted as 0"
    return HeatMap(
        map_slug(value, x, y), words, f"Mean over n seeds, and the lowest and highest seed: {measure.meaning}.",
        f"Heat map of {measure.label} by {x_label} and {y_label}. Means: "
        f"{listed([f'{place}: {shown(mean, measure)}' for place, mean in means.items()]) or 'none'}.",
        x_label, y_label, panels, label=value, percent=measure.is_share,
        high=1.0 if measure.is_share else max(means.values(), default=0.0) or 1.0,
    )  # fmt: skip


def _panel(
    title: str, runs: Sequence[MeasuredRun], x: tuple[str, list[str]], y: tuple[str, list[str]], measure: Measure
) -> Cells:
    """The panel of runs that differ in x, y and the seed alone; `x`, `y`: the key and its values."""
    (x_key, x_values), (y_key, y_values) = x, y
    # The runs at each place, row by row.
    rows = [
        [[run for run in runs if (run.config[x_key], run.config[y_key]) == (x_value, y_value)] for x_value in x_values]
        for y_value in y_values
    ]
    texts = [[place_text(place, measure) for place in row] for row in rows]
    return Cells(x_values, y_values, [[mean_of(place) for place in row] for row in rows], texts, texts, title)


def mean_of(runs: Sequence[MeasuredRun]) -> float | None:
    """The mean of the numbers of the runs; None if no run has one."""
    numbers = [run.value for run in runs if run.value is not None]
    return fmean(numbers) if numbers else None


def place_text(runs: Sequence[MeasuredRun], measure: Measure) -> str:
    """The text at one place of the map: mean, n, and the range of the seeds if they differ. Empty: no run has ended."""
    ended = [run for run in runs if run.has_ended]
    numbers = [run.value for run in ended if run.value is not None]
    if not ended:
        return ""
    if not numbers:
        return f"none\nn=0 of {len(ended)}"
    lines = [shown(fmean(numbers), measure), f"n={len(numbers)}"]
    if len(numbers) < len(ended):
        lines[1] += f" of {len(ended)}"
    if len(set(numbers)) > 1:
        lines.append(f"{shown(min(numbers), measure)}–{shown(max(numbers), measure)}")
    if never := sum(run.never_at_95 for run in ended):
        lines.append(f"{never} below 95%")
    return "\n".join(lines)


def shown(number: float, measure: Measure) -> str:
    """A number as figures and lines of text have it: a percentage if it is a share, else `compact`."""
    return percent(number) if measure.is_share else compact(number)


def compact(number: float) -> str:
    """`8`, `1.5`, `12.8k` or `3.57M`: three digits."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
