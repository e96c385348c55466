"""The figure of one run: accuracy versus removed tokens."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwise_pl.reporting.style import COLORS, MARKERS, pyplot, save_figure
from stepwise_pl.runs.stages import ANY_LENGTH, StageAccuracy

GIVEN_UP = "given up: the guard went back"


def plot_stages(
    runs: Mapping[str, list[StageAccuracy]],
    title: str,
    stem: Path,
    given_up: Mapping[str, list[list[StageAccuracy]]] | None = None,
) -> None:
    """Accuracy versus removed tokens with intervals, a line per run, written as `<stem>.png` and `<stem>.svg`.

    Args:
        given_up: the stages of attempts that the guard gave up, by run: dotted, from where they left the run's line.
    """
    with pyplot() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        _draw_stages(axes, runs, given_up or {})
        axes.set_title(textwrap.fill(title, 72, break_on_hyphens=False), fontsize="medium")
        save_figure(figure, stem)


def _draw_stages(
    axes: Any, runs: Mapping[str, list[StageAccuracy]], given_up: Mapping[str, list[list[StageAccuracy]]]
) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, (name, stages) in enumerate(runs.items()):
        x = [stage.removed_tokens for stage in stages]
        y = [stage.accuracy for stage in stages]
        errors = [[s.accuracy - s.interval[0] for s in stages], [s.interval[1] - s.accuracy for s in stages]]
        axes.errorbar(
            x, y, yerr=errors, label=name if len(runs) > 1 else None, color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)],
            markersize=5, capsize=3, linewidth=1.5,
        )  # fmt: skip
        if any(stage.differs for stage in stages):
            label = None if any(line.get_label() == ANY_LENGTH for line in axes.lines) else ANY_LENGTH
            any_length = [math.nan if s.accuracy_any_length is None else s.accuracy_any_length for s in stages]
            axes.plot(x, any_length, "--", color=COLORS[i % len(COLORS)], linewidth=0.8, label=label)
        for attempt in given_up.get(name, []):
            if not attempt:
                continue
            left = [stage for stage in stages if stage.step < attempt[0].step][-1:]
            x, y = ([getattr(stage, key) for stage in left + attempt] for key in ("removed_tokens", "accuracy"))
            label = None if any(line.get_label() == GIVEN_UP for line in axes.lines) else GIVEN_UP
            axes.plot(x, y, ":", color=COLORS[i % len(COLORS)], linewidth=1.2, label=label)
            axes.plot(x[-1], y[-1], "x", color=COLORS[i % len(COLORS)], markersize=7)
    axes.set(xlabel="CoT tokens removed", ylabel="answer accuracy (validation)", ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
