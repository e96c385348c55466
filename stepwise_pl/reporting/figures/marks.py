"""Lines and areas to compare accuracy with: baselines, and the bands of recipes."""

from collections.abc import Sequence

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Series
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.stages import last_at_each

LEVEL = "level of a baseline"
BAND = "band of the recipe"


def bands(runs: Sequence[History], ends: Sequence[float]) -> list[Series]:
    """A filled area for each band of test accuracy that the recipes of the runs state, from one end of x to the other."""
    numbers: dict[tuple[float, float], list[int]] = {}
    for number, run in enumerate(runs):
        if run.band and run.stages:
            numbers.setdefault(run.band, []).append(number)
    if len(set(ends)) < 2:
        return []
    return [
        Series(
            list(ends), [high, high], of_band, None, BAND, [f"the recipe's band: {said(band)} of the test set at the end"],
            [low, low], [high, high], line="band", meaning=BAND,
        )
        for band, of_band in numbers.items()
        for low, high in [band]
    ]  # fmt: skip


def said(band: Sequence[float]) -> str:
    """`99.0% to 100.0%`: the two ends of a band."""
    low, high = band
    return f"{percent(low)} to {percent(high)}"


def band_sentence(series: Sequence[Series]) -> str:
    """The sentence of a caption about the bands among the series; empty if there is none."""
    found = [f"{percent(one.low[0])} to {percent(one.high[0])}" for one in series if one.line == "band"]
    return f" Grey area: the band in which the recipe wants test accuracy at the end ({'; '.join(found)})." * bool(
        found
    )


def levels(runs: Sequence[History], ends: Sequence[float]) -> list[Series]:
    """A line across the chart for each baseline, at its last validation. The first baseline of a kind has its name there.

    A baseline has one number of removed tokens, so that it would be a single point on a chart over removed tokens.
    """
    if len(set(ends)) < 2:
        return []
    found = []
    named: set[str] = set()
    for number, run in enumerate(runs):
        if not run.baseline or not run.stages:
            continue
        last = last_at_each(run.stages)[-1]
        name = "" if run.baseline in named else run.baseline
        labels, side = name_of_level(name, last.removed_tokens, ends)
        found.append(Series(
            list(ends), [last.accuracy] * 2, [number], run.cell, f"{run.label}: level", line="long dashes", thin=True, meaning=LEVEL,
            labels=labels, label_side=side,
        ))  # fmt: skip
        named.add(run.baseline)
    return found


def name_of_level(name: str, point: float, ends: Sequence[float]) -> tuple[list[str], str]:
    """The labels and `label_side` of a line from one end of x to the other: its name stands away from the baseline's own point."""
    if not name:
        return [], "right"
    return (["", name], "left") if point - ends[0] < ends[1] - point else ([name, ""], "right")
