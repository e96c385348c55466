"""The figure of each task, from the csv files beside this file.

    python experiments/methods/figures.py

accuracy-<task>.png: above, a panel for each arm with validation accuracy over tokens read, thin for each seed and thick for their
mean, over the share of CoT tokens that is gone; below, test accuracy against the speed of answering. There are more arms than
colours that readers tell apart, so every arm has a panel of its own, and its name stands at its point.
"""

from bisect import bisect_right
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.methods.arms import ARMS, TASKS
from experiments.methods.runs import HERE, Run, Speed, Validation, read_runs, read_speeds, relative_speeds
from stepwise_pl.reporting.static import POINTS, pyplot, save_figure
from stepwise_pl.reporting.style import style_of

COLUMNS = 5
# Points of the mean curve.
POINTS_OF_MEAN = 200
MILLION = 1e6


def at(validations: list[Validation], tokens: float) -> tuple[float, int]:
    """Accuracy between two validations, on a straight line, and the CoT tokens gone at the first of them."""
    read = [one.tokens_read for one in validations]
    place = min(bisect_right(read, tokens), len(read) - 1)
    before, after = validations[max(0, place - 1)], validations[place]
    if after.tokens_read == before.tokens_read:
        return after.accuracy, after.removed
    share = min(1.0, max(0.0, (tokens - before.tokens_read) / (after.tokens_read - before.tokens_read)))
    removed = after.removed if share == 1 else before.removed
    return before.accuracy + share * (after.accuracy - before.accuracy), removed


def means(runs: list[Run]) -> tuple[list[float], list[float], list[float]]:
    """Tokens read, mean accuracy and mean share of CoT tokens gone, where every seed was validated before and after."""
    first = max(run.validations[0].tokens_read for run in runs)
    last = min(run.validations[-1].tokens_read for run in runs)
    grid = [first + (last - first) * step / (POINTS_OF_MEAN - 1) for step in range(POINTS_OF_MEAN)]
    found = [[at(run.validations, tokens) for run in runs] for tokens in grid]
    accuracies = [fmean(accuracy for accuracy, _ in one) for one in found]
    shares = [fmean(removed for _, removed in one) / runs[0].tokens for one in found]
    return grid, accuracies, shares


def draw_curves(axes: Any, arm: str, runs: list[Run], last: float) -> None:
    """The panel of an arm."""
    from matplotlib.ticker import PercentFormatter

    color, _ = style_of(cell_of(arm))
    grid, accuracies, shares = means(runs)
    millions = [tokens / MILLION for tokens in grid]
    # Without a wait for accuracy the tokens are gone, or stay, from the first step on.
    start = [] if runs[0].waits else [0.0]
    axes.fill_between(
        [*start, *millions], 0, [*shares[: len(start)], *shares], color="#dddddd", linewidth=0, step="post"
    )
    for run in runs:
        read = [one.tokens_read / MILLION for one in run.validations]
        axes.plot(read, [one.accuracy for one in run.validations], color=color, linewidth=0.6, alpha=0.55)
    axes.plot(millions, accuracies, color=color, linewidth=1.8)
    axes.set(xlim=(0, last / MILLION), ylim=(0, 1.04), yticks=[0, 0.5, 1])
    axes.set_title(arm, fontsize="small", color=color, fontweight="bold", pad=3)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(labelsize="x-small")
    axes.grid(alpha=0.3)


def draw_speeds(axes: Any, arms: dict[str, list[Run]], speeds: list[Speed]) -> None:
    """Test accuracy against the speed of answering. Names stand beside their points, one below the other where points meet."""
    from matplotlib.ticker import PercentFormatter

    points = {
        arm: (fmean(found), fmean(run.test for run in arms[arm])) for arm, found in relative_speeds(speeds).items()
    }
    taken: list[tuple[float, float]] = []
    for arm, (speed, accuracy) in sorted(points.items(), key=lambda item: item[1]):
        color, marker = style_of(cell_of(arm))
        axes.plot(speed, accuracy, marker.matplotlib, color=color, markersize=1.3 * POINTS * marker.size)
        # Names go to the middle of the panel, away from its upper and lower edge.
        step, y = (-0.075, accuracy - 0.075) if accuracy > 0.5 else (0.075, accuracy + 0.05)
        while any(abs(speed - x) < 0.33 and abs(y - other) < 0.07 for x, other in taken):
            y += step
        taken.append((speed, y))
        axes.annotate(
            arm, (speed, accuracy), (speed, y), color=color, fontsize="small", ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
    fastest = max(speed for speed, _ in points.values())
    axes.set(xlim=(0.7, fastest + 0.4), ylim=(0, 1.06))
    axes.set_xlabel("answers per second, one at a time, explicit CoT on the same machine = 1", fontsize="small")
    axes.set_ylabel("test accuracy, mean of seeds", fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)


def cell_of(arm: str) -> int:
    """The number that decides an arm's colour, the same in every figure."""
    return ARMS.index(arm) if arm in ARMS else len(ARMS)


def draw(task: str, arms: dict[str, list[Run]], speeds: list[Speed], folder: Path) -> list[Path]:
    """Write the figure of a task as `accuracy-<task>.png` and `.svg`."""
    columns = min(COLUMNS, len(arms))
    rows = -(-len(arms) // columns)
    # A speed is drawn beside that of explicit CoT, so that there is nothing to draw before that is measured.
    has_speeds = bool(relative_speeds(speeds))
    with pyplot() as plt, plt.rc_context({"svg.fonttype": "none"}):
        figure = plt.figure(figsize=(9.6, 0.9 + 1.55 * rows + 2.9 * has_speeds), layout="constrained")
        above, *below = figure.subfigures(1 + has_speeds, 1, height_ratios=[0.5 + 1.55 * rows, *[2.9] * has_speeds], squeeze=False).flat  # fmt: skip
        grid = above.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        last = max(run.validations[-1].tokens_read for runs in arms.values() for run in runs)
        for axes, (arm, runs) in zip(grid.flat, arms.items(), strict=False):
            draw_curves(axes, arm, runs, last)
        for number in range(len(arms), rows * columns):
            grid.flat[number].set_visible(False)
            grid.flat[number - columns].tick_params(labelbottom=True)
        above.supxlabel("million tokens read in training", fontsize="small")
        above.supylabel("validation accuracy", fontsize="small")
        title = TASKS[task][0].upper() + TASKS[task][1:]
        above.suptitle(f"{title}: thin, each seed; thick, their mean; grey, CoT tokens gone", fontsize="medium")
        for part in below:
            draw_speeds(part.subplots(), arms, speeds)
        return save_figure(figure, folder / f"accuracy-{task}")


def main() -> None:
    """Draw the figure of every task that has several arms."""
    for task, arms in read_runs().items():
        if len(arms) > 1:
            _, svg = draw(task, arms, read_speeds(task), HERE)
            # The README shows the png alone.
            svg.unlink()


if __name__ == "__main__":
    main()
