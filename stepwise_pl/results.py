"""From a run's metrics to its result: accuracy at each number of removed tokens, as a table and a figure."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise_pl.records import read_attempts
from stepwise_pl.statistics import wilson

# Told apart by colour-blind readers (Okabe and Ito), and by shape in grey print.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"


GIVEN_UP = "given up: the guard went back"
ANY_LENGTH = "right at any length"


@dataclass
class Stage:
    """The last validation at one number of removed tokens."""

    removed_tokens: int
    step: int
    accuracy: float
    examples: int
    accuracy_any_length: float | None = None  # None in runs from before it was measured

    @property
    def differs(self) -> bool:
        """Whether some answers are right but took more tokens than were asked for."""
        return self.accuracy_any_length not in (None, self.accuracy)

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson(self.accuracy, self.examples)


def read_stages(metrics_file: Path) -> tuple[list[Stage], list[list[Stage]]]:
    """One `Stage` per number of removed tokens that was validated, ascending; and the same of each attempt given up."""
    if not metrics_file.is_file():
        return [], []
    kept, given_up = read_attempts(metrics_file)
    return stages_of(kept), [stages_of(rows) for rows in given_up]


def stages_of(rows: Iterable[Mapping[str, str]]) -> list[Stage]:
    """The validations in rows of metrics.csv, the last at each number of removed tokens, ascending."""
    stages: dict[int, Stage] = {}
    for row in rows:
        if row.get("val/answer_accuracy"):
            removed = round(float(row["schedule/removed_tokens"]))
            any_length = row.get("val/answer_accuracy_any_length")
            stages[removed] = Stage(
                removed, int(row["step"]), float(row["val/answer_accuracy"]), round(float(row["val/examples"])),
                float(any_length) if any_length else None,
            )  # fmt: skip
    return [stages[removed] for removed in sorted(stages)]


def removed_at(stages: Iterable[Stage], accuracy: float = 0.95) -> int | None:
    """The largest number of removed tokens whose last validation is at least this accurate; None if there is none."""
    return max((stage.removed_tokens for stage in stages if stage.accuracy >= accuracy), default=None)


def selected(metrics_file: Path) -> Stage | None:
    """The validation of best.ckpt: the highest accuracy at the most removed tokens; None before the first validation."""
    kept, _ = read_attempts(metrics_file)
    found = [stage for row in kept for stage in stages_of([row])]
    # As checkpoints are chosen: of equal ones the first.
    return max(found, key=lambda stage: (stage.removed_tokens, stage.accuracy), default=None)


def percent(accuracy: float, examples: int) -> str:
    """An accuracy with its interval and sample size, for reading."""
    low, high = wilson(accuracy, examples)
    return f"{accuracy:6.1%}  [{low:.1%}, {high:.1%}]  n={examples}"


def stage_table(stages: list[Stage]) -> str:
    """The stages as text, one line each; with accuracy at any length where that differs."""
    lines = ["removed tokens    step  validation accuracy [95% Wilson interval]"]
    for s in stages:
        more = f"  ({s.accuracy_any_length:.1%} {ANY_LENGTH})" if s.differs else ""
        lines.append(f"{s.removed_tokens:14d}  {s.step:6d}  {percent(s.accuracy, s.examples)}{more}")
    return "\n".join(lines)


@contextmanager
def pyplot() -> Iterator[Any]:
    """Matplotlib's pyplot for figures that become files: no display, text taken literally, every figure closed at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    try:
        # Names of runs are not to be read as formulas.
        with plt.rc_context({"text.parse_math": False, "text.usetex": False}):
            yield plt
    finally:
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)


def save_figure(figure: Any, stem: Path) -> list[Path]:
    """Write `<stem>.png` and `<stem>.svg`, each in one go."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        fresh = path.with_name(f"{path.name}.tmp")
        try:
            figure.savefig(fresh, format=path.suffix[1:], dpi=150)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    return paths


def plot_stages(
    runs: Mapping[str, list[Stage]],
    title: str,
    stem: Path,
    given_up: Mapping[str, list[list[Stage]]] | None = None,
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


def _draw_stages(axes: Any, runs: Mapping[str, list[Stage]], given_up: Mapping[str, list[list[Stage]]]) -> None:
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
