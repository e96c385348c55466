"""The figure of this experiment: accuracy after a token has left, of stages that were kept and of stages that were lost.

python experiments/early_warning/figure.py
"""

from collections import defaultdict
from collections.abc import Sequence

from experiments.early_warning.roc import HERE, StageOfRun, by_run, read_stages
from experiments.readme import read_rows
from stepwise_pl.reporting.figures.data import Chart, Panel, Series
from stepwise_pl.reporting.static import write_figure

SIGNALS = {
    "accuracy": "accuracy", "averaged_accuracy": "averaged", "loss": "loss", "gradient_norm": "gradient norm",
}  # fmt: skip
MOST = 100  # steps after the token has left: the length of the shortest stages


def curves(stages: Sequence[StageOfRun], signal: str, is_lost: bool) -> dict[int, list[float]]:
    """The readings of a signal by the steps after the token has left, over the stages that were lost, or kept."""
    rows = by_run(read_rows(HERE / "signals.csv"))
    found: dict[int, list[float]] = defaultdict(list)
    for stage in stages:
        if stage.is_lost is not is_lost:
            continue
        own = [row for row in rows[stage.run] if int(row["removed_tokens"]) == stage.removed_tokens]
        begins = int(own[0]["step"]) - 10
        for row in own:
            if (since := int(row["step"]) - begins) <= MOST:
                found[since].append(float(row[signal]))
    return found


def panel(stages: Sequence[StageOfRun], signal: str, label: str) -> Panel:
    """The median over stages, and the middle half of them."""
    series = []
    for cell, (is_lost, name) in enumerate(((False, "stages that were kept"), (True, "stages that were lost"))):
        found = curves(stages, signal, is_lost)
        steps = sorted(found)
        ordered = [sorted(found[step]) for step in steps]
        low, middle, high = (
            [values[int(share * (len(values) - 1))] for values in ordered] for share in (0.25, 0.5, 0.75)
        )
        series.append(
            Series(steps, list(middle), [], cell, name, low=list(low), high=list(high), line="band", key=name)
        )
        series.append(Series(steps, list(middle), [], cell, name, key=name))
    is_share = "accuracy" in signal
    return Panel(label, series, (-0.03, 1.03) if is_share else None, percent=is_share)


def main() -> None:
    """Draw the figure beside this file."""
    stages = read_stages()
    lost = sum(stage.is_lost for stage in stages)
    figure = Chart(
        "signals", "Accuracy tells a lost stage within ten steps, the gradient never",
        f"Median and middle half of {len(stages) - lost} stages that were kept and {lost} that were lost, 40 runs.",
        "Four panels over the steps after a token has left: accuracy, accuracy of averaged weights, loss and gradient norm.",
        "optimizer steps after the token has left", [panel(stages, signal, label) for signal, label in SIGNALS.items()],
    )  # fmt: skip
    write_figure(figure, ["stages that were kept", "stages that were lost"], HERE)


if __name__ == "__main__":
    main()
