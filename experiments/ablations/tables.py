"""The table of README.md, from results.csv.

    python experiments/ablations/tables.py [--check]

`on the way` is the mean of the last validations at 1 to 9 removed tokens. p: Welch's t test of an arm against `stepwise`,
over seeds, two-sided, corrected by Holm for the arms compared. `collapsed on the way`: seeds in which accuracy was, at two ends of a
stage one after the other, surely below a quarter of the best before, the guard's rule (`stepwise_pl.training.guard`).
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from scipy.stats import ttest_ind

from experiments import readme
from experiments.readme import NONE, mean_cell, read_rows, table
from stepwise_pl.common.statistics import holm, wilson
from stepwise_pl.config.training import GuardConfig

HERE = Path(__file__).parent
LAST = 10  # tokens of a CoT


def collapsed(accuracies: list[float], examples: int) -> bool:
    """By the guard's rule, on the ends of the stages."""
    rule = GuardConfig()
    low, best = 0, 0.0
    for accuracy in accuracies:
        best = max(best, accuracy)
        low = low + 1 if wilson(accuracy, examples)[1] < rule.collapsed * best else 0
        if low == rule.patience:
            return True
    return False


def read() -> tuple[dict[str, list[float]], dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """Per arm in the order of the file, of each seed: test accuracy, validations with 0 to 9 tokens gone, minutes."""
    tests: dict[str, list[float]] = defaultdict(list)
    stages: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    minutes: dict[str, list[float]] = defaultdict(list)
    for row in read_rows(HERE / "results.csv"):
        if row["split"] == "test":
            tests[row["run"]].append(float(row["accuracy"]))
            minutes[row["run"]].append(float(row["seconds"]) / 60)
        elif int(row["removed_tokens"]) < LAST:
            stages[row["run"]][row["seed"]].append(float(row["accuracy"]))
    return tests, {arm: seeds for arm, seeds in stages.items() if arm != "explicit_cot"}, minutes


def against(base: list[float], arms: dict[str, list[float]]) -> dict[str, float]:
    """Holm's p of each arm against the base."""
    p = [float(ttest_ind(base, values, equal_var=False).pvalue) for values in arms.values()]
    return dict(zip(arms, holm(p), strict=True))


def arms_table() -> str:
    """A row for each arm."""
    tests, stages, minutes = read()
    way = {arm: [fmean(one[1:]) for one in seeds.values()] for arm, seeds in stages.items()}
    p_test = against(
        tests["stepwise"], {arm: values for arm, values in tests.items() if arm in way and arm != "stepwise"}
    )
    p_way = against(way["stepwise"], {arm: values for arm, values in way.items() if arm != "stepwise"})
    head = ["arm", "test accuracy, seeds 0, 1, 2", "mean [95% interval]", "p", "mean on the way, seeds 0, 1, 2", "p", "collapsed on the way", "minutes"]  # fmt: skip

    def row(arm: str, values: list[float]) -> list[str]:
        return [
            arm, ", ".join(f"{one:.1%}" for one in values), mean_cell(values, 1000), f"{p_test[arm]:.2g}" if arm in p_test else NONE,
            ", ".join(f"{one:.1%}" for one in way.get(arm, [])) or NONE, f"{p_way[arm]:.2g}" if arm in p_way else NONE,
            f"{sum(collapsed(one, 500) for one in stages[arm].values())} of {len(values)}" if arm in stages else NONE,
            f"{min(minutes[arm]):.0f} – {max(minutes[arm]):.0f}",
        ]  # fmt: skip

    return table(head, (row(arm, values) for arm, values in tests.items()))


def tables() -> dict[str, str]:
    """The tables of the README by their names."""
    return {"arms": arms_table()}


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
