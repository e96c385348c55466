"""Accuracy against removed tokens: every run, and means over seeds."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from stepwise_pl.common.statistics import over_seeds
from stepwise_pl.common.text import percent, percents
from stepwise_pl.reporting.figures.data import LEGEND, Chart, Panel, Series, listed
from stepwise_pl.reporting.figures.marks import LEVEL, band_sentence, bands, levels, name_of_level
from stepwise_pl.reporting.history import History, labelled_cells
from stepwise_pl.runs.cells import Cell
from stepwise_pl.runs.stages import ANY_LENGTH, StageAccuracy, last_at_each

# Optimizer resets are shown below the accuracies for at most this many runs.
RUGS = 6


def accuracy_chart(runs: Sequence[History], title: str = "Accuracy while tokens leave") -> Chart | None:
    """Accuracy against removed tokens, with resets, rollbacks and attempts given up; None if nothing was validated."""
    series: list[Series] = []
    with_resets = [number for number, run in enumerate(runs) if run.resets]
    rugs = with_resets if len(with_resets) <= RUGS else []
    lines = []
    for number, run in enumerate(runs):
        if not run.stages:
            continue
        series += _of_run(run, number)
        series += _given_up(run, number)
        if number in rugs:
            series.append(_resets(run, number, -0.05 - 0.03 * rugs.index(number)))
        *_, last = by_removed = last_at_each(run.stages)
        first = by_removed[0]
        lines.append(
            f"{run.label}: {percent(first.accuracy)} with {first.removed_tokens} tokens removed, "
            f"{percent(last.accuracy)} with {last.removed_tokens}"
        )
    if not series:
        return None
    removed = [x for one in series for x in one.x]
    ends = (min(removed), max(removed))
    recipe, baselines = bands(runs, ends), levels(runs, ends)
    series = [*recipe, *series, *baselines]
    caption = "The last validation at each number of removed CoT tokens, with its 95% Wilson interval."
    if any(stage.differs for run in runs for stage in run.stages):
        caption += " Thin dashes: answers that are right at any length, also beyond the tokens that targets take."
    if any(run.turn for run in runs):
        caption += " Runs that differ in the seed alone share colour and shape, and differ in their dashes."
    if any(run.stages_given_up for run in runs):
        caption += " Dotted, ending in ×: attempts that were given up when the guard went back."
    caption += " Long dashes, across the chart: the last validation of a baseline." * bool(baselines) + band_sentence(
        recipe
    )
    if rugs:
        caption += " Ticks below: the optimizer was reset because tokens left."
    elif with_resets:
        caption += " Wherever tokens left the optimizer was reset (not marked for so many runs)."
    panel = Panel("answer accuracy (validation)", series, (-0.05 - 0.03 * len(rugs), 1.04), percent=True)
    return Chart(
        "accuracy", title, caption, f"Line chart of answer accuracy against removed CoT tokens. {listed(lines)}.",
        "CoT tokens removed", [panel], whole_x=True,
    )  # fmt: skip


def _of_run(run: History, number: int) -> list[Series]:
    """The run's line with its intervals, and its accuracy at any length where that differs."""
    stages = last_at_each(run.stages)
    removed = [stage.removed_tokens for stage in stages]
    found = [Series(
        x=removed, y=[stage.accuracy for stage in stages], runs=[number], cell=run.cell, name=run.label,
        hover=[
            f"{run.label}\n{_place(stage)}\n{_with_interval(stage)}\nstep {stage.step}" for stage in stages
        ],
        low=[stage.interval[0] for stage in stages], high=[stage.interval[1] for stage in stages], marker="run", turn=run.turn,
    )]  # fmt: skip
    if any(stage.differs for stage in stages):
        found.append(Series(
            x=removed, y=[stage.accuracy_any_length for stage in stages], runs=[number], cell=run.cell,
            name=f"{run.label}: {ANY_LENGTH}", line="dashed", turn=run.turn, thin=True, meaning=ANY_LENGTH,
        ))  # fmt: skip
    return found


def _given_up(run: History, number: int) -> list[Series]:
    """Each attempt that the guard gave up, from where it left the run's line to where the guard went back."""
    out = []
    for attempt, stages in enumerate(run.stages_given_up):
        if not stages:
            continue
        # The attempt left the run's line at the last stage before it.
        left = [stage for stage in run.stages if stage.step < stages[0].step][-1:]
        shown = sorted(left + last_at_each(stages), key=lambda stage: stage.step)
        rollback = run.rollbacks[attempt] if attempt < len(run.rollbacks) else {}
        why = "".join(f"\n{rollback[key]}" for key in ("reason", "does") if rollback.get(key))
        hover = [
            f"{run.label}, given up\n{_place(stage)}\n{_with_interval(stage)}\nstep {stage.step}" for stage in shown
        ]
        hover[-1] += f"\nThe guard went back{why}"
        x, y = [stage.removed_tokens for stage in shown], [stage.accuracy for stage in shown]
        name = f"{run.label}: given up"
        out.append(Series(x, y, [number], run.cell, name, hover, line="dotted", meaning="given up"))
        out.append(Series(
            x[-1:], y[-1:], [number], run.cell, name, hover[-1:], line="none", marker="x", meaning="the guard went back",
        ))  # fmt: skip
    return out


def _resets(run: History, number: int, y: float) -> Series:
    resets = run.resets
    return Series(
        x=[row["schedule/removed_tokens"] for row in resets], y=[y] * len(resets), runs=[number], cell=run.cell,
        name=f"{run.label}: optimizer reset", line="none", marker="|", meaning="the optimizer was reset",
        hover=[f"{run.label}\noptimizer reset, seen at step {row['step']:.0f}" for row in resets],
    )  # fmt: skip


def _place(stage: StageAccuracy) -> str:
    return f"{stage.removed_tokens} CoT tokens removed{f', stage {stage.stage}' if stage.stage else ''}"


def _with_interval(stage: StageAccuracy) -> str:
    at_any_length = stage.accuracy_any_length
    more = f"\n{percent(at_any_length)} {ANY_LENGTH}" if at_any_length is not None and stage.differs else ""
    return f"{percent(stage.accuracy)} {percents(stage.interval)}, n={stage.examples}{more}"


def mean_accuracy_chart(runs: Sequence[History]) -> Chart | None:
    """Accuracy against removed tokens as a mean over seeds; None if no cell has several runs that have ended.

    A cell with one run is shown too, dashed, because it may be a baseline.
    """
    validated = [
        (cell, [run for run in cell.ended if run.stages]) for cell in labelled_cells(runs) if cell.distinct_seeds
    ]
    if not any(len(validated_runs) > 1 for _, validated_runs in validated):
        return None
    series, lines = [], []
    for cell, validated_runs in validated:
        mean = _mean(cell, validated_runs)
        if mean is not None:
            series.append(mean)
            first, last = (f"{percent(mean.y[end] or 0)} with {mean.x[end]}" for end in (0, -1))
            lines.append(f"{cell.label}: {first} tokens removed, {last}")
    baselines = {
        cell.number: name for cell, of_cell in validated if of_cell and (name := of_cell[0].baseline) is not None
    }
    across = _levels(series, baselines)
    recipe = bands(runs, _ends(series))
    seeds = [
        seed for cell, validated_runs in validated if len(validated) <= LEGEND for seed in _seeds(cell, validated_runs)
    ]
    return Chart(
        "accuracy-mean", "Accuracy while tokens leave, mean over seeds",
        "The mean over runs that have ended and differ in the seed alone, at each number of removed CoT tokens that all of them "
        "were validated at, with its 95% interval: Student's t, about other seeds; for one seed (dashed), or where all agree, "
        "Wilson's, about other problems. "
        + "Thin: each seed. " * bool(seeds)
        + "Long dashes: the level of a baseline, which has one number of removed tokens only. " * bool(across)
        + "Hiding some of the runs does not change their mean."
        + band_sentence(recipe),
        f"Line chart of mean answer accuracy against removed CoT tokens. {listed(lines)}.", "CoT tokens removed",
        [Panel("answer accuracy (validation)", recipe + series + across + seeds, (-0.05, 1.04), percent=True)], whole_x=True,
    )  # fmt: skip


def _levels(means: Sequence[Series], baselines: Mapping[int, str]) -> list[Series]:
    """A line across the chart for each baseline, which has one number of removed tokens alone.

    Args:
        baselines: names by number of the cell.
    """
    ends = _ends(means)
    found = []
    for mean in means:
        if mean.cell is not None and mean.cell in baselines and len(mean.x) == 1 and len({*ends}) == 2:
            labels, side = name_of_level(baselines[mean.cell], mean.x[0], ends)
            found.append(Series(
                ends, [mean.y[0]] * 2, mean.runs, mean.cell, f"{mean.name}: level", line="long dashes", thin=True, meaning=LEVEL,
                labels=labels, label_side=side,
            ))  # fmt: skip
    return found


def _ends(means: Sequence[Series]) -> list[float]:
    """The least and the most x of all means."""
    return [end(x for mean in means for x in mean.x) for end in (min, max)] if means else []


def _seeds(cell: Cell[History], runs: Sequence[History]) -> list[Series]:
    """A thin line for each run of a cell; none for a single run or point."""
    places = [place for place, run in zip(cell.places, cell.runs, strict=True) if run in runs]
    shown = [(place, run.seed, last_at_each(run.stages)) for place, run in zip(places, runs, strict=True)]
    return [
        Series(
            [stage.removed_tokens for stage in stages], [stage.accuracy for stage in stages], [place], cell.number,
            f"{cell.label}: seed {seed}", thin=True, meaning="a seed",
        )
        for place, seed, stages in shown
        if len(runs) > 1 and len(stages) > 1
    ]  # fmt: skip


def _mean(cell: Cell[History], runs: Sequence[History]) -> Series | None:
    """The mean over the runs of a cell at each number of removed tokens that all of them were validated at; None if there is none."""
    stages = [{stage.removed_tokens: stage for stage in run.stages} for run in runs]
    shared = sorted(set.intersection(*map(set, stages))) if stages else []
    if not shared:
        return None
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    mean, low, high, hover = [], [], [], []
    for removed in shared:
        found = [of_run[removed] for of_run in stages]
        accuracies = [stage.accuracy for stage in found]
        below, above, how = over_seeds(accuracies, found[0].examples)
        mean.append(fmean(accuracies))
        low.append(below)
        high.append(above)
        hover.append(
            f"{cell.label}\n{removed} CoT tokens removed\nmean {percent(mean[-1])}, {how} {percents((below, above))}\n"
            f"{seeds}: {', '.join(map(percent, accuracies))}"
        )
    return Series(
        shared, mean, cell.places, cell.number, cell.label, hover, low, high, "solid" if len(runs) > 1 else "dashed", "run",
        key=f"{cell.label} ({seeds})",
    )  # fmt: skip
