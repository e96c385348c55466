"""Accuracy against speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Chart, Panel, Series, listed
from stepwise_pl.reporting.history import History


@dataclass
class Measured:
    """An evaluation with its speed."""

    run: int
    speed: float  # problems per second
    evaluation: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """The share of answers that are right."""
        return float(self.evaluation["answer_accuracy"])

    @property
    def interval(self) -> Sequence[float]:
        """The 95% Wilson interval of the accuracy; the accuracy twice where the evaluation has none."""
        found: Sequence[float] = self.evaluation.get("answer_interval") or [self.accuracy] * 2
        return found


def speeds(runs: Sequence[History]) -> dict[int, list[Measured]]:
    """Evaluations of whole splits, as trained, whose speed was measured, by batch size; `History` has left out stale ones."""
    out: dict[int, list[Measured]] = {}
    for number, run in enumerate(runs):
        for evaluation in run.evaluations:
            is_whole = evaluation.get("split") in ("test", "validation") and not evaluation.get("limit")
            if not (is_whole and evaluation.get("as_trained") and "answer_accuracy" in evaluation):
                continue
            for key, value in evaluation.items():
                if key.startswith("problems_per_second_batch_"):
                    batch = int(key.rpartition("_")[2])
                    out.setdefault(batch, []).append(Measured(number, float(value), evaluation))
    return dict(sorted(out.items()))


def frontier(points: Sequence[Measured]) -> list[Measured]:
    """The evaluations that no other beats in speed without being less accurate, the slowest first."""
    best, out = -1.0, []
    for point in sorted(points, key=lambda point: (-point.speed, -point.accuracy)):
        if point.accuracy > best:
            best = point.accuracy
            out.append(point)
    return out[::-1]


def speed_charts(runs: Sequence[History]) -> list[Chart]:
    """Accuracy against problems per second, a chart for every batch size."""
    return [_chart(runs, batch, points) for batch, points in speeds(runs).items()]


def _chart(runs: Sequence[History], batch: int, points: Sequence[Measured]) -> Chart:
    front = frontier(points)
    slowest, fastest = (choose(point.speed for point in points) for choose in (min, max))
    series = [Series(
        [point.speed for point in front], [point.accuracy for point in front], [], None, "frontier of all runs",
        ["frontier: no run is faster without being less accurate"] * len(front), line="dashed", meaning="frontier of all runs" if len(front) > 1 else "",
    )]  # fmt: skip
    lines = []
    for number, run in enumerate(runs):
        own = sorted(
            (point for point in points if point.run == number), key=lambda point: point.evaluation["removed_tokens"]
        )
        if not own:
            continue
        series.append(Series(
            [point.speed for point in own], [point.accuracy for point in own], [number], run.cell, run.label,
            [_hover(run, point) for point in own], [point.interval[0] for point in own], [point.interval[1] for point in own],
            marker="run", labels=[run.baseline] * len(own) if run.baseline else [],
            label_side="right" if own[0].speed < (slowest + fastest) / 2 else "left",
        ))  # fmt: skip
        lines += [
            f"{run.baseline or run.label}: {percent(point.accuracy)} at {point.speed:.3g} per second" for point in own
        ]
    devices = sorted({str(point.evaluation.get("accelerator")) for point in points})
    how = "one problem at a time" if batch == 1 else f"{batch} at a time"
    caption = (
        f"Problems answered per second, {how} ({', '.join(devices)}), and accuracy with its 95% Wilson interval, as "
        "evaluate measured them; lines join the checkpoints of a run. Dashed: the frontier. Speeds compare on the same "
        "machine only."
    )
    return Chart(
        f"speed-batch{batch}", f"Accuracy against speed, {how}", caption,
        f"Scatter chart of accuracy against problems per second, {how}. {listed(lines)}.", "problems per second",
        [Panel("answer accuracy", series, (-0.06, 1.08), percent=True)], log_x=fastest > 8 * slowest,
    )  # fmt: skip


def _hover(run: History, point: Measured) -> str:
    found = point.evaluation
    return (
        f"{run.label}{f' ({run.baseline})' if run.baseline else ''}\n{found.get('checkpoint')}, {found['removed_tokens']} "
        f"CoT tokens removed\n{percent(point.accuracy)} of {found.get('examples')} ({found.get('split')})\n"
        f"{point.speed:.3g} problems per second ({found.get('accelerator')})"
    )
