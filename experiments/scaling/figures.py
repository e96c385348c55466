"""The figures of README.md, from the csv files beside this file.

    python experiments/scaling/figures.py

share-gone.png       share of CoT tokens gone at 95%, by depth and width, a panel for each task
steps-per-stage.png  optimizer steps of each stage, in the order in which tokens leave, a line for each depth; grey: the carry chain
                     into the token that left when the stage began
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.scaling.runs import HERE, Run, Token, read_chains, read_runs
from experiments.scaling.tables import tasks_of
from stepwise_pl.common.text import counted
from stepwise_pl.reporting.figures.data import HeatMap
from stepwise_pl.reporting.figures.maps import sweep_map
from stepwise_pl.reporting.static import POINTS, pyplot, save_figure, write_figure
from stepwise_pl.reporting.style import style_of

COLUMNS = 3
CHAIN = "#bbbbbb"


def share_map(runs: Sequence[Run]) -> HeatMap | None:
    """The map of each task beside the others; None if there is no run."""
    found = sweep_map([run.measured("removed_share") for run in runs], "removed_share", "width", "layers", "Scaling")
    if found is None:
        return None
    panels = [replace(panel, title=panel.title.removeprefix("task=")) for panel in found.panels]
    return replace(found, slug="share-gone", panels=panels, columns=COLUMNS, label="share of CoT tokens gone")


def mean_steps(runs: Sequence[Run]) -> tuple[list[int], list[float], list[bool]]:
    """The stages that some run came to, and the mean steps of each.

    Returns:
        Removed tokens, mean steps (a stage that was not kept counts with its steps so far), and whether every run kept it.
    """
    steps: dict[int, list[int]] = {}
    kept: dict[int, int] = {}
    for stage in (stage for run in runs for stage in run.stages):
        steps.setdefault(stage.removed_tokens, []).append(stage.steps)
        kept[stage.removed_tokens] = kept.get(stage.removed_tokens, 0) + stage.is_kept
    places = sorted(steps)
    return places, [fmean(steps[place]) for place in places], [kept[place] == len(runs) for place in places]


def draw_task(axes: Any, task: str, runs: Sequence[Run], tokens: Sequence[Token], depths: Sequence[int]) -> list[Any]:
    """The panel of a task. Return the axes of the chains, if it has any.

    Args:
        depths: of all tasks, so that a depth has the same colour in every panel.
    """
    for cell, layers in enumerate(depths):
        if not any(run.layers == layers for run in runs):
            continue
        color, marker = style_of(cell)
        places, steps, all_kept = mean_steps([run for run in runs if run.layers == layers])
        axes.plot(places, steps, color=color, linewidth=1.2, label=counted(layers, "layer"))
        for is_full in (True, False):
            at = [place for place, is_kept in enumerate(all_kept) if is_kept == is_full]
            axes.plot(
                [places[i] for i in at], [steps[i] for i in at], linestyle="", color=color, marker=marker.matplotlib,
                markersize=POINTS * marker.size, markerfacecolor=color if is_full else "white",
            )  # fmt: skip
    axes.set_title(task, fontsize="small", pad=3)
    axes.set(yscale="log", xlim=(-0.6, max(run.cot_tokens for run in runs) + 0.6))
    axes.tick_params(labelsize="x-small")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if not tokens:
        return []
    behind = axes.twinx()
    chains = [token.chain for token in runs[0].leaving(tokens)]
    behind.bar(range(1, len(chains) + 1), chains, width=1.0, color=CHAIN, alpha=0.6)
    behind.tick_params(labelsize="x-small", colors="#777777")
    behind.locator_params(axis="y", nbins=4)
    # The lines stand in front of the bars.
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    return [behind]


def draw_steps(runs: Sequence[Run], chains: dict[str, list[Token]], folder: Path) -> list[Path]:
    """Write the figure of the steps as `steps-per-stage.png` and `.svg`."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    tasks, depths = tasks_of(runs), sorted({run.layers for run in runs})
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    longest = max((token.chain for task in tasks for token in chains.get(task, [])), default=1.0)
    with pyplot() as plt, plt.rc_context({"svg.fonttype": "none"}):
        size = (max(6.0, 3.3 * columns), 1.2 + 2.2 * rows)
        figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axes, task in zip(grid.flat, tasks, strict=False):
            for behind in draw_task(
                axes, task, [run for run in runs if run.task == task], chains.get(task, []), depths
            ):
                behind.set_ylim(0, 1.1 * longest)
        for axes in grid.flat[len(tasks) :]:
            axes.set_visible(False)
        low, high = grid.flat[0].get_ylim()
        ticks = [tick for tick in (10, 20, 50, 100, 200, 500, 1000, 2000) if low <= tick <= high]
        grid.flat[0].set_yticks(ticks)
        grid.flat[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        grid.flat[0].yaxis.set_minor_formatter(NullFormatter())
        for axes in grid.flat[max(0, len(tasks) - columns) : len(tasks)]:
            axes.set_xlabel("CoT tokens gone", fontsize="small")
        figure.supylabel("optimizer steps of the stage", fontsize="small")
        figure.suptitle(
            "Steps until 95% was reached in each stage, or so far: mean over widths and seeds.\n"
            "Hollow: not every run came to the stage and kept it. Grey, right: mean carry chain into the token that left last.",
            fontsize="small",
        )
        handles: dict[str, Any] = {}
        for axes in grid.flat[: len(tasks)]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize="small"
        )
        return save_figure(figure, folder / "steps-per-stage")


def main(folder: Path = HERE) -> None:
    """Draw both figures, if there are runs."""
    runs = read_runs(folder)
    drawn = share_map(runs)
    if drawn is None:
        return
    # The README shows the png alone.
    for _, svg in (write_figure(drawn, [], folder), draw_steps(runs, read_chains(folder), folder)):
        svg.unlink()


if __name__ == "__main__":
    main()
