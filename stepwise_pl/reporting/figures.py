"""What the figures show, as plain data; `interactive` and `static` draw it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from statistics import fmean
from typing import Any

from stepwise_pl.common.statistics import over_seeds
from stepwise_pl.common.text import percent, percents
from stepwise_pl.config.keys import ASIDE
from stepwise_pl.reporting.history import History, Row, labelled_cells
from stepwise_pl.runs.cells import cells_of
from stepwise_pl.runs.stages import ANY_LENGTH, StageAccuracy

POINTS = 1000  # of a curve; of longer ones every so many are shown
LISTED = 8  # runs that the text for those who do not see a figure tells of
RUGS = 6  # runs whose optimizer resets are shown below the accuracies


@dataclass
class Series:
    """Points of one run, or of several, in the colour of their cell.

    Attributes:
        x, y: of each point; y None: there is none.
        runs: numbers of the runs; it is shown as long as one of them is. Empty: always.
        cell: number of the runs' cell, which colour and shape follow from; None: neither.
        hover: a text for each point.
        low, high: interval of each y; empty: none.
        line: solid, dotted, dashed, steps, or none.
        marker: `run` for the shape of the cell's runs, `x`, `|`, or none.
        labels: written beside each point, on its `label_side`; empty: none.
        turn: the run's place in its cell, which tells its lines from those of other seeds.
        thin: it goes with another line of its run.
        key: what the legend calls its cell; empty: as the cell is called.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    runs: list[int]
    cell: int | None
    name: str
    hover: list[str] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    line: str = "solid"
    marker: str = "none"
    labels: list[str] = field(default_factory=list)
    label_side: str = "right"
    turn: int = 0
    thin: bool = False
    key: str = ""

    @property
    def errors(self) -> tuple[list[float | None], list[float | None]]:
        """How far the interval of each y reaches below and above it. Evaluations of old runs may end a rounding step short of y."""
        below = [None if y is None else max(0.0, y - low) for y, low in zip(self.y, self.low, strict=True)]
        above = [None if y is None else max(0.0, high - y) for y, high in zip(self.y, self.high, strict=True)]
        return below, above


@dataclass
class Panel:
    """Axes that share x with those of the same chart."""

    y_label: str
    series: list[Series]
    y_range: tuple[float, float] | None = None
    percent: bool = False
    log: bool = False
    share: float = 1.0  # of the height, relative to the others


@dataclass
class Chart:
    """Panels one below the other."""

    slug: str
    title: str
    caption: str
    alt: str
    x_label: str
    panels: list[Panel]
    log_x: bool = False
    whole_x: bool = False  # x is counted


@dataclass
class HeatMap:
    """Shares between 0 and 1 by two quantities; None: not known. Rows from below."""

    slug: str
    title: str
    caption: str
    alt: str
    x_label: str
    y_label: str
    x: list[str]
    y: list[str]
    values: list[list[float | None]]  # [y][x]
    texts: list[list[str]]  # in the cells
    hover: list[list[str]]
    run: int | None = None


def with_interval(stage: StageAccuracy) -> str:
    """An accuracy for reading."""
    at_any_length = stage.accuracy_any_length
    more = f"\n{percent(at_any_length)} {ANY_LENGTH}" if at_any_length is not None and stage.differs else ""
    return f"{percent(stage.accuracy)} {percents(stage.interval)}, n={stage.examples}{more}"


def log_ticks(values: Sequence[float]) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, and where those are few 2 and 5 times them as well, or all multiples."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    steps = range(1, 10) if max(positive) < 4 * min(positive) else (1, 2, 5) if high - low <= 2 else (1,)
    return [float(f"{step}e{power}") for power in range(low, high + 1) for step in steps]


def listed(lines: Sequence[str]) -> str:
    """A sentence about so many runs that it can still be listened to."""
    more = f"; and {len(lines) - LISTED} more, which the tables have" if len(lines) > LISTED else ""
    return "; ".join(lines[:LISTED]) + more


def accuracy(runs: Sequence[History]) -> Chart | None:
    """Accuracy versus removed tokens, with resets, rollbacks and attempts given up; None if nothing was validated."""
    series: list[Series] = []
    rugs = [number for number, run in enumerate(runs) if run.resets]
    lines = []
    for number, run in enumerate(runs):
        stages = run.stages
        if not stages:
            continue
        series.append(Series(
            x=[one.removed_tokens for one in stages], y=[one.accuracy for one in stages], runs=[number], cell=run.cell, name=run.label,
            hover=[f"{run.label}\n{one.removed_tokens} CoT tokens removed\n{with_interval(one)}\nstep {one.step}" for one in stages],
            low=[one.interval[0] for one in stages], high=[one.interval[1] for one in stages], marker="run", turn=run.turn,
        ))  # fmt: skip
        if any(one.differs for one in stages):
            series.append(Series(
                x=[one.removed_tokens for one in stages], y=[one.accuracy_any_length for one in stages], runs=[number],
                cell=run.cell, name=f"{run.label}: {ANY_LENGTH}", line="dashed", turn=run.turn, thin=True,
            ))  # fmt: skip
        series += _given_up(run, number)
        if len(rugs) <= RUGS and number in rugs:
            place = -0.05 - 0.03 * rugs.index(number)
            resets = run.resets
            series.append(Series(
                x=[row["schedule/removed_tokens"] for row in resets], y=[place] * len(resets), runs=[number], cell=run.cell,
                name=f"{run.label}: optimizer reset", line="none", marker="|",
                hover=[f"{run.label}\noptimizer reset, seen at step {row['step']:.0f}" for row in resets],
            ))  # fmt: skip
        first, last = stages[0], stages[-1]
        lines.append(
            f"{run.label}: {percent(first.accuracy)} with {first.removed_tokens} tokens removed, "
            f"{percent(last.accuracy)} with {last.removed_tokens}"
        )
    if not series:
        return None
    caption = "The last validation at each number of removed CoT tokens, with its 95% Wilson interval."
    if any(one.differs for run in runs for one in run.stages):
        caption += " Thin dashes: answers that are right at any length, also beyond the tokens that targets take."
    if any(run.turn for run in runs):
        caption += " Runs that differ in the seed alone share colour and shape, and differ in their dashes."
    if any(run.stages_given_up for run in runs):
        caption += " Dotted, ending in ×: attempts that were given up when the guard went back."
    if rugs and len(rugs) <= RUGS:
        caption += " Ticks below: the optimizer was reset because tokens left."
    elif rugs:
        caption += " Wherever tokens left the optimizer was reset (not marked for so many runs)."
    low = -0.05 - 0.03 * (len(rugs) if len(rugs) <= RUGS else 0)
    panel = Panel("answer accuracy (validation)", series, (low, 1.04), percent=True)
    return Chart(
        "accuracy", "Accuracy while tokens leave", caption, f"Line chart of answer accuracy against removed CoT tokens. {listed(lines)}.",
        "CoT tokens removed", [panel], whole_x=True,
    )  # fmt: skip


def means(runs: Sequence[History]) -> Chart | None:
    """Accuracy versus removed tokens as a mean over seeds; None if no cell has several that have ended.

    A cell with one is shown too, dashed: it may be a baseline.
    """
    series = []
    lines = []
    several = False
    for cell in labelled_cells(runs):
        stages = [{one.removed_tokens: one for one in run.stages} for run in cell.ended if run.stages]
        if not stages or not cell.distinct_seeds:
            continue
        several |= len(stages) > 1
        seeds = f"{len(stages)} seed{'s' * (len(stages) > 1)}"
        x, mean, low, high, hover = [], [], [], [], []
        for removed in sorted(set.intersection(*map(set, stages))):
            found = [one[removed] for one in stages]
            accuracies = [stage.accuracy for stage in found]
            x.append(removed)
            mean.append(fmean(accuracies))
            below, above, how = over_seeds(accuracies, found[0].examples)
            low.append(below)
            high.append(above)
            hover.append(
                f"{cell.label}\n{removed} CoT tokens removed\nmean {percent(mean[-1])}, {how} {percents((below, above))}\n"
                f"{seeds}: {', '.join(map(percent, accuracies))}"
            )
        if not x:
            continue
        line = "solid" if len(stages) > 1 else "dashed"
        series.append(
            Series(x, mean, cell.places, cell.number, cell.label, hover, low, high, line, "run", key=f"{cell.label} ({seeds})")
        )  # fmt: skip
        lines.append(f"{cell.label}: {percent(mean[0])} with {x[0]} tokens removed, {percent(mean[-1])} with {x[-1]}")
    if not several:
        return None
    return Chart(
        "accuracy-mean", "Accuracy while tokens leave, mean over seeds",
        "The mean over runs that have ended and differ in the seed alone, at each number of removed CoT tokens that all of them "
        "were validated at, with its 95% interval: Student's t, about other seeds; for one seed (dashed), or where all agree, "
        "Wilson's, about other problems. Hiding some of the runs does not change their mean.",
        f"Line chart of mean answer accuracy against removed CoT tokens. {listed(lines)}.", "CoT tokens removed",
        [Panel("answer accuracy (validation)", series, (-0.05, 1.04), percent=True)], whole_x=True,
    )  # fmt: skip


def _given_up(run: History, number: int) -> list[Series]:
    out = []
    for attempt, stages in enumerate(run.stages_given_up):
        if not stages:
            continue
        # They left the run's line at its last stage before.
        left = [one for one in run.stages if one.step < stages[0].step][-1:]
        shown = sorted(left + stages, key=lambda one: one.step)
        rollback = run.rollbacks[attempt] if attempt < len(run.rollbacks) else {}
        why = "".join(f"\n{rollback[key]}" for key in ("reason", "does") if rollback.get(key))
        hover = [
            f"{run.label}, given up\n{one.removed_tokens} CoT tokens removed\n{with_interval(one)}\nstep {one.step}"
            for one in shown
        ]
        hover[-1] += f"\nThe guard went back{why}"
        x, y = [one.removed_tokens for one in shown], [one.accuracy for one in shown]
        name = f"{run.label}: given up"
        out.append(Series(x, y, [number], run.cell, name, hover, line="dotted"))
        out.append(Series(x[-1:], y[-1:], [number], run.cell, name, hover[-1:], line="none", marker="x"))
    return out


def loss(runs: Sequence[History]) -> Chart | None:
    """Loss over steps, and below it the removed tokens; None if none was logged."""
    losses: list[Series] = []
    removed: list[Series] = []
    lines, strides = [], set()
    for number, run in enumerate(runs):
        trained = [row for row in run.rows if "train/loss" in row]
        if not trained:
            continue
        stride = -(-len(trained) // POINTS)
        strides.add(stride)
        losses.append(_curve(run, number, thinned(trained, stride), "train/loss", "loss"))
        for rows in run.given_up:
            rows = [row for row in rows if "train/loss" in row]
            if rows:
                stride = -(-len(rows) // POINTS)
                losses.append(_curve(run, number, thinned(rows, stride), "train/loss", "loss, given up", line="dotted"))
                end = _curve(run, number, rows[-1:], "train/loss", "the guard went back", line="none", marker="x")
                losses.append(end)
        validated = [row for row in run.rows if "val/loss" in row]
        losses.append(
            _curve(run, number, validated, "val/loss", "validation loss, without offset", line="none", marker="run")
        )
        where = [row for row in run.rows if "schedule/removed_tokens" in row and "test/loss" not in row]
        # Of a staircase the corners suffice.
        corners = [
            row
            for i, row in enumerate(where)
            if i in (0, len(where) - 1)
            or row["schedule/removed_tokens"] != where[i - 1]["schedule/removed_tokens"]
            or row["schedule/removed_tokens"] != where[i + 1]["schedule/removed_tokens"]
        ]
        key = "schedule/removed_tokens"
        removed.append(_curve(run, number, corners, key, "CoT tokens removed", line="steps"))
        if run.resets:
            removed.append(_curve(run, number, run.resets, key, "removed; optimizer reset", line="none", marker="|"))
        lines.append(f"{run.label}: {trained[-1]['train/loss']:.3g} at step {trained[-1]['step']:.0f}")
    if not losses:
        return None
    caption = "Above: training loss in nats per target token (lines) and loss on validation (markers). Below: removed CoT tokens"
    caption += "; ticks: the optimizer was reset." if any(run.resets for run in runs) else "."
    if any(run.given_up for run in runs):
        caption += " Dotted: given up when the guard went back, at ×."
    if max(strides) > 1:
        caption += f" Long curves show one of up to {max(strides)} logged steps."
    return Chart(
        "loss", "Loss, and removed tokens, over steps", caption,
        f"Line chart of the training loss over optimizer steps. Last values: {listed(lines)}.", "optimizer steps",
        [Panel("loss", losses, log=True, share=2.0), Panel("removed", removed)],
    )  # fmt: skip


def thinned(rows: Sequence[Row], stride: int) -> list[Row]:
    """Every so many of the rows, and the last."""
    return [*rows[:-1:stride], *rows[-1:]]


def _curve(run: History, number: int, rows: Sequence[Row], key: str, what: str, **style: Any) -> Series:
    return Series(
        x=[row["step"] for row in rows],
        y=[row[key] if math.isfinite(row[key]) else None for row in rows],
        runs=[number],
        cell=run.cell,
        turn=run.turn,
        name=f"{run.label}: {what}",
        hover=[
            f"{run.label}\n{what} {row[key]:.4g}\nstep {row['step']:.0f}, {row.get('schedule/removed_tokens', 0):.0f} removed"
            for row in rows
        ],
        **style,
    )


@dataclass
class Measured:
    """An evaluation with its speed."""

    run: int
    speed: float  # problems per second
    evaluation: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return float(self.evaluation["answer_accuracy"])


def speeds(runs: Sequence[History]) -> dict[int, list[Measured]]:
    """Evaluations of whole splits, as trained, whose speed was measured, by batch size; stale ones are not in `History`."""
    out: dict[int, list[Measured]] = {}
    for number, run in enumerate(runs):
        for one in run.evaluations:
            whole = one.get("split") in ("test", "validation") and not one.get("limit")
            if not (whole and one.get("as_trained") and "answer_accuracy" in one):
                continue
            for key, value in one.items():
                if key.startswith("problems_per_second_batch_"):
                    out.setdefault(int(key.rpartition("_")[2]), []).append(Measured(number, float(value), one))
    return dict(sorted(out.items()))


def frontier(points: Sequence[Measured]) -> list[Measured]:
    """Those that no other beats in speed without being less accurate, the slowest first."""
    best, out = -1.0, []
    for one in sorted(points, key=lambda one: (-one.speed, -one.accuracy)):
        if one.accuracy > best:
            best = one.accuracy
            out.append(one)
    return out[::-1]


def speed_charts(runs: Sequence[History]) -> list[Chart]:
    """Accuracy versus problems per second, a chart for every batch size."""
    out = []
    for batch, points in speeds(runs).items():
        front = frontier(points)
        slowest, fastest = (choose(one.speed for one in points) for choose in (min, max))
        series = [Series(
            [one.speed for one in front], [one.accuracy for one in front], [], None, "frontier of all runs",
            ["frontier: no run is faster without being less accurate"] * len(front), line="dashed",
        )]  # fmt: skip
        lines = []
        for number, run in enumerate(runs):
            own = sorted((one for one in points if one.run == number), key=lambda one: one.evaluation["removed_tokens"])
            if not own:
                continue
            intervals = [one.evaluation.get("answer_interval") or [one.accuracy] * 2 for one in own]
            series.append(Series(
                [one.speed for one in own], [one.accuracy for one in own], [number], run.cell, run.label,
                [_measured_hover(run, one) for one in own], [low for low, _ in intervals], [high for _, high in intervals],
                marker="run", labels=[run.baseline] * len(own) if run.baseline else [],
                label_side="right" if own[0].speed < (slowest + fastest) / 2 else "left",
            ))  # fmt: skip
            lines += [
                f"{run.baseline or run.label}: {percent(one.accuracy)} at {one.speed:.3g} per second" for one in own
            ]
        devices = sorted({str(one.evaluation.get("accelerator")) for one in points})
        how = "one problem at a time" if batch == 1 else f"{batch} at a time"
        caption = (
            f"Problems answered per second, {how} ({', '.join(devices)}), and accuracy with its 95% Wilson interval, as "
            "evaluate measured them; lines join the checkpoints of a run. Dashed: the frontier. Speeds compare on the same "
            "machine only."
        )
        out.append(Chart(
            f"speed-batch{batch}", f"Accuracy against speed, {how}", caption,
            f"Scatter chart of accuracy against problems per second, {how}. {listed(lines)}.", "problems per second",
            [Panel("answer accuracy", series, (-0.06, 1.08), percent=True)], log_x=fastest > 8 * slowest,
        ))  # fmt: skip
    return out


def _measured_hover(run: History, one: Measured) -> str:
    found = one.evaluation
    return (
        f"{run.label}{f' ({run.baseline})' if run.baseline else ''}\n{found.get('checkpoint')}, {found['removed_tokens']} "
        f"CoT tokens removed\n{percent(one.accuracy)} of {found.get('examples')} ({found.get('split')})\n"
        f"{one.speed:.3g} problems per second ({found.get('accelerator')})"
    )


def digits(run: History, number: int) -> HeatMap | None:
    """Accuracy at each token of the answer at each number of removed tokens; None if there is no record of it."""
    stages = run.last_records
    places = max((len(one["digits"]) for one in stages), default=0)
    if not places:
        return None

    def at(stage: int, place: int) -> float | None:
        found = stages[stage]["digits"]
        return found[place] if place < len(found) else None

    values = [[at(stage, place) for stage in range(len(stages))] for place in range(places)]
    hover = [
        [
            "" if value is None else f"token {place} of the answer: {percent(value)}\n"
            f"{stage['removed_tokens']} CoT tokens removed, step {stage['step']}\nwhole answers: {percent(stage['accuracy'])}, n={stage['examples']}"
            for stage, value in zip(stages, row, strict=True)
        ]
        for place, row in enumerate(values, start=1)
    ]  # fmt: skip
    final = [value for value in (row[-1] for row in values) if value is not None]
    hardest = final.index(min(final)) + 1
    return HeatMap(
        f"digits-{number + 1}", f"Digits of the answer: {run.label}",
        "Accuracy at each token of the answer (for multiplication: digit, the least significant first), teacher-forced, at the "
        "last validation with each number of removed CoT tokens; of the examples whose answer is that long.",
        f"Heat map of accuracy by place in the answer and removed CoT tokens. At the last stage, {stages[-1]['removed_tokens']} "
        f"removed, the lowest is {percent(min(final))} at place {hardest}, the highest {percent(max(final))}.",
        "CoT tokens removed", "place in the answer", [str(one["removed_tokens"]) for one in stages],
        [str(place) for place in range(1, places + 1)], values,
        [["" if value is None else _short(value) for value in row] for row in values], hover, number,
    )  # fmt: skip


def _short(share: float) -> str:
    """As much of a percentage as fits into a cell; 100 is all of them."""
    return "100" if share == 1 else f"{min(99.9, 100 * share):.3g}" if share > 0.99 else f"{100 * share:.0f}"


@dataclass
class Swept:
    """A run that has ended, in a sweep."""

    delta: Fraction
    smoothing: float
    accuracy: float


def sweeps(runs: Sequence[History]) -> list[HeatMap]:
    """Final accuracy by Δ and λ, a heat map for every set of runs that differ in nothing else but their seed."""
    alike = cells_of(runs, (*ASIDE, "schedule.delta", "schedule.smoothing"))
    groups = [[one for run in cell.runs if (one := _swept(run))] for cell in alike]
    several = [group for group in groups if len({(one.delta, one.smoothing) for one in group}) > 1]
    return [_sweep(group, number) for number, group in enumerate(several, start=1)]


def _swept(run: History) -> Swept | None:
    if run.baseline or "test_accuracy" not in run.summary:
        return None
    try:
        delta, smoothing = Fraction(str(run.config["schedule.delta"])), float(run.config["schedule.smoothing"])
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        return None  # an adaptive schedule has no Δ
    return Swept(delta, smoothing, float(run.summary["test_accuracy"]))


def _sweep(group: Sequence[Swept], number: int) -> HeatMap:
    deltas, smoothings = (sorted({getattr(one, key) for one in group}) for key in ("delta", "smoothing"))
    cells = [
        [[one.accuracy for one in group if (one.delta, one.smoothing) == (delta, smoothing)] for delta in deltas]
        for smoothing in smoothings
    ]
    means = [[sum(cell) / len(cell) if cell else None for cell in row] for row in cells]
    names = [[f"Δ={delta}, λ={smoothing:g}" for delta in deltas] for smoothing in smoothings]
    texts = [
        ["" if mean is None else f"{percent(mean)}\nn={len(cell)}" for cell, mean in zip(*both, strict=True)]
        for both in zip(cells, means, strict=True)
    ]
    hover = [
        [
            "" if mean is None else f"{name}\nmean {percent(mean)}, n={len(cell)}: {', '.join(map(percent, cell))}"
            for cell, mean, name in zip(*all_three, strict=True)
        ]
        for all_three in zip(cells, means, names, strict=True)
    ]  # fmt: skip
    found = [
        (mean, name)
        for row in zip(means, names, strict=True)
        for mean, name in zip(*row, strict=True)
        if mean is not None
    ]
    (worst, where_worst), (best, where_best) = min(found), max(found)
    return HeatMap(
        f"sweep-{number}", "Final accuracy by Δ and λ",
        "Accuracy on the test set at the end: the mean over n runs that differ in their seed alone; all else is the same in the whole "
        "figure. Empty: no such run has ended.",
        f"Heat map of final accuracy by Δ and λ. Best: {percent(best)} at {where_best}; worst: {percent(worst)} at {where_worst}.",
        "Δ (CoT tokens removed per epoch)", "λ (removal smoothing)", list(map(str, deltas)), [f"{one:g}" for one in smoothings],
        means, texts, hover,
    )  # fmt: skip
