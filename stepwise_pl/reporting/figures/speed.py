"""Accuracy against speed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Chart, Panel, Series, listed
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.folder import number_kept

# The size of a text at a point: the share of the figure's width that a character takes, and of its height that a line takes.
CHARACTER, LINE = 0.011, 0.05
NUMBERS = "numbers: CoT tokens removed"


@dataclass
class Measured:
    """An evaluation with its speed."""

    run: int
    speed: float  # problems per second
    evaluation: dict[str, Any]

    @property
    def removed_tokens(self) -> int:
        """CoT tokens that the checkpoint was trained without."""
        return int(self.evaluation["removed_tokens"])

    @property
    def stage(self) -> str:
        """The name of the checkpoint's stage; the removed tokens if it has none."""
        return str(self.evaluation.get("stage", self.removed_tokens))

    @property
    def accuracy(self) -> float:
        """The share of answers that are right."""
        return float(self.evaluation["answer_accuracy"])

    @property
    def interval(self) -> Sequence[float]:
        """The 95% Wilson interval of the accuracy; the accuracy twice where the evaluation has none."""
        found: Sequence[float] = self.evaluation.get("answer_interval") or [self.accuracy] * 2
        return found


def by_batch_size(evaluation: Mapping[str, Any]) -> dict[int, float]:
    """Problems per second of an evaluation by batch size, ascending; empty if its speed was not measured."""
    start = "problems_per_second_batch_"
    found = {int(key.removeprefix(start)): float(value) for key, value in evaluation.items() if key.startswith(start)}
    return dict(sorted(found.items()))


def is_comparable(evaluation: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of a whole split, as trained, so that runs can be compared by it."""
    is_whole = evaluation.get("split") in ("test", "validation") and not evaluation.get("limit")
    return bool(is_whole and evaluation.get("as_trained") and "answer_accuracy" in evaluation)


def speeds(
    runs: Sequence[History], wanted: Callable[[Mapping[str, Any]], bool] = is_comparable
) -> dict[int, list[Measured]]:
    """The wanted evaluations whose speed was measured, by batch size; `History` has left out stale ones."""
    out: dict[int, list[Measured]] = {}
    for number, run in enumerate(runs):
        # The best checkpoint is often that of the last stage once more. The one that was kept for its stage stands for both.
        kept = {_stage(found) for found in run.evaluations if _is_kept(found)}
        for evaluation in filter(wanted, run.evaluations):
            if not _is_kept(evaluation) and _stage(evaluation) in kept:
                continue
            for batch, speed in by_batch_size(evaluation).items():
                out.setdefault(batch, []).append(Measured(number, speed, evaluation))
    return dict(sorted(out.items()))


def _stage(evaluation: Mapping[str, Any]) -> tuple[Any, ...]:
    """The problems of an evaluation, and its stage."""
    return tuple(evaluation.get(key) for key in ("split", "file", "data_digest", "removed_tokens", "stage"))


def _is_kept(evaluation: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of a checkpoint that was kept of its stage."""
    return number_kept(str(evaluation.get("checkpoint"))) is not None


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


def tradeoff_charts(run: History, slug: str) -> list[Chart]:
    """Accuracy against problems per second in one run, a chart for every batch size; all its evaluations are shown."""
    charts = [_chart([run], batch, points) for batch, points in speeds([run], lambda _: True).items()]
    return [replace(chart, slug=f"{slug}-{chart.slug.removeprefix('speed-')}") for chart in charts]


def _chart(runs: Sequence[History], batch: int, points: Sequence[Measured]) -> Chart:
    slowest, fastest = (choose(point.speed for point in points) for choose in (min, max))
    log_x = fastest > 8 * slowest
    series = []
    has_frontier = False
    if len({point.run for point in points}) > 1 and len(front := frontier(points)) > 1:
        has_frontier = True
        series.append(Series(
            [point.speed for point in front], [point.accuracy for point in front], [], None, "frontier of all runs",
            ["frontier: no run is faster without being less accurate"] * len(front), line="dashed", meaning="frontier of all runs",
        ))  # fmt: skip
    texts = _texts(runs, points, log_x)
    lines = []
    # A line joins only what was measured on the same problems.
    for number, split in dict.fromkeys((point.run, point.evaluation.get("split")) for point in points):
        of_line = [point for point in points if (point.run, point.evaluation.get("split")) == (number, split)]
        own = sorted(of_line, key=lambda point: (point.removed_tokens, point.evaluation.get("step", 0)))
        is_right = own[0].speed > (slowest + fastest) / 2
        series.append(_line(runs[number], own, [texts[id(point)] for point in own], is_right))
        name = runs[number].baseline or runs[number].label
        lines += [
            f"{name}, {point.stage}{'' if 'stage' in point.evaluation else ' removed'}: {percent(point.accuracy)} at {point.speed:.3g} per second"
            for point in own
        ]
    devices = ", ".join(sorted({str(point.evaluation.get("accelerator")) for point in points}))
    splits = {point.evaluation.get("split") for point in points}
    of_split = f" ({splits.pop()})" if len(splits) == 1 and None not in splits else ""
    how = "one problem at a time" if batch == 1 else f"{batch} at a time"
    caption = (
        f"Problems answered per second, {how} ({devices}), and accuracy with its 95% Wilson interval, as evaluate measured "
        f"them.{_drawn(series)}{' Dashed: the frontier of all runs.' if has_frontier else ''} Speeds compare on the same machine only."
    )
    return Chart(
        f"speed-batch{batch}", f"Accuracy against speed, {how}", caption,
        f"Scatter chart of accuracy against problems per second, {how}. {listed(lines)}.", f"problems per second ({devices})",
        [Panel(f"answer accuracy{of_split}, 95% interval", series, (-0.06, 1.08), percent=True)], log_x=log_x,
    )  # fmt: skip


def _drawn(series: Sequence[Series]) -> str:
    """Sentences on the lines and numbers of a chart. Only what is there is explained."""
    of_runs = [one for one in series if one.runs]
    joined = [one for one in of_runs if len(one.x) > 1]
    said = [" Lines join the evaluations of a run."] * bool(joined)
    said += [" Dotted: on the validation split."] * any(one.line == "dotted" for one in joined)
    said += [" Numbers are removed CoT tokens."] * any(NUMBERS in one.meaning for one in of_runs)
    return "".join(said)


def _line(run: History, points: Sequence[Measured], texts: list[str], is_right: bool) -> Series:
    """The evaluations of a run on one split, with a text at each point."""
    is_validation = points[0].evaluation.get("split") == "validation"
    meanings = ["on the validation split"] * is_validation + [NUMBERS] * (
        not run.baseline and any(text.isdigit() for text in texts)
    )
    return Series(
        [point.speed for point in points], [point.accuracy for point in points], [points[0].run], run.cell, run.label,
        [_hover(run, point) for point in points], [point.interval[0] for point in points],
        [point.interval[1] for point in points], line="dotted" if is_validation else "solid", marker="run",
        labels=texts if any(texts) else [],
        label_side="below left" if not run.baseline else "left" if is_right else "right",
        meaning="; ".join(meanings),
    )  # fmt: skip


def _texts(runs: Sequence[History], points: Sequence[Measured], log_x: bool) -> dict[int, str]:
    """The text at each point, by the point's id: the name of a baseline, else the number of removed tokens.

    A point has no text if it would cover another. Baselines come first, then the ends of each run. The name of a
    baseline stands above its point, a number below.
    """
    across = [math.log(point.speed) if log_x else point.speed for point in points]
    width = (max(across) - min(across)) or 1.0
    place = {
        id(point): ((x - min(across)) / width, point.accuracy + 1.5 * LINE * bool(runs[point.run].baseline))
        for point, x in zip(points, across, strict=True)
    }
    last = {run: max(point.removed_tokens for point in points if point.run == run) for run in {p.run for p in points}}

    def order(point: Measured) -> tuple[bool, int]:
        return not runs[point.run].baseline, min(point.removed_tokens, last[point.run] - point.removed_tokens)

    texts = dict.fromkeys(place, "")
    for point in sorted(points, key=order):
        x, y = place[id(point)]
        text = runs[point.run].baseline or point.stage
        # Two texts on one line need the width of the longer one between them.
        is_covered = any(
            other and abs(y - y_other) <= LINE and abs(x - x_other) <= CHARACTER * (1 + max(len(text), len(other)))
            for other, (x_other, y_other) in zip(texts.values(), place.values(), strict=True)
        )
        texts[id(point)] = "" if is_covered else text
    return texts


def _hover(run: History, point: Measured) -> str:
    found = point.evaluation
    return (
        f"{run.label}{f' ({run.baseline})' if run.baseline else ''}\n{found.get('checkpoint')}, {found['removed_tokens']} "
        f"CoT tokens removed{f', stage {point.stage}' if 'stage' in found else ''}\n{percent(point.accuracy)} of {found.get('examples')} ({found.get('split')})\n"
        f"{point.speed:.3g} problems per second ({found.get('accelerator')})"
    )
