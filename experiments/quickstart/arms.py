"""The table of the quickstart's arms, from results.csv (the quickstart) and results_arms.csv (the arms).

    python experiments/quickstart/arms.py

`all gone`: the step at which the last token left; a seed that kept tokens counts as 4,000, the end. `lowest`: the lowest last
validation of a number of removed tokens that the seed came to. p: the Mann-Whitney test of an arm's seeds against those of the
quickstart, two-sided, by all permutations, corrected by Holm over the arms; of `all gone` where a schedule waits for accuracy, of `lowest`
where it does not.
"""

import csv
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from scipy.stats import PermutationMethod, mannwhitneyu

from stepwise_pl.common.statistics import holm

HERE = Path(__file__).parent
BASE, TOKENS, END = "quickstart", 8, 4000
OPEN_LOOP = ("quickstart_linear", "quickstart_linear_fast", "quickstart_linear_guard")


class Seed(NamedTuple):
    """A run. `all_gone` is None if tokens stayed to the end; `removed` are gone in the checkpoint that was tested."""

    all_gone: int | None
    lowest: float
    test: float
    removed: int


def read(name: str) -> dict[str, list[Seed]]:
    """The seeds of each run, in the order of the file."""
    stages: dict[tuple[str, str], dict[int, tuple[int, float]]] = defaultdict(dict)
    found: dict[str, list[Seed]] = defaultdict(list)
    with (HERE / name).open(newline="") as file:
        for row in csv.DictReader(file):
            key, removed = (row["run"], row["seed"]), int(row["removed_tokens"])
            if row["split"] == "validation":
                if not row["given_up"]:
                    stages[key][removed] = int(row["step"]), float(row["accuracy"])
                continue
            of_run = stages[key]
            most = max(of_run)
            left = max((step for count, (step, _) in of_run.items() if count < TOKENS), default=0)
            lowest = min(accuracy for _, accuracy in of_run.values())
            found[row["run"]].append(Seed(left if most == TOKENS else None, lowest, float(row["accuracy"]), removed))
    return found


def cells(seeds: list[Seed]) -> list[str]:
    """Finished seeds, steps, lowest accuracies and test accuracies, ordered."""
    steps = sorted(seed.all_gone for seed in seeds if seed.all_gone is not None)
    span = f"{steps[0]:,} to {steps[-1]:,}" if steps else "–"
    lowest, test, removed = (sorted(getattr(seed, name) for seed in seeds) for name in ("lowest", "test", "removed"))
    gone = " to ".join(map(str, dict.fromkeys((removed[0], removed[-1]))))
    return [
        f"{len(steps)} of {len(seeds)}", span, f"{lowest[0]:.1%} to {lowest[-1]:.1%}",
        f"{test[0]:.1%} to {test[-1]:.1%} with {gone} gone",
    ]  # fmt: skip


def measure(arm: str, seeds: list[Seed]) -> list[float]:
    """The numbers that p is about."""
    return [seed.lowest if arm in OPEN_LOOP else float(seed.all_gone or END) for seed in seeds]


def p_of(one: list[float], other: list[float]) -> float:
    """The p value of the Mann-Whitney test: exact by all permutations, ties included."""
    return float(mannwhitneyu(one, other, method=PermutationMethod(n_resamples=10_000)).pvalue)


def main() -> None:
    base, arms = read("results.csv")[BASE], read("results_arms.csv")
    p = holm([p_of(measure(arm, seeds), measure(arm, base)) for arm, seeds in arms.items()])
    print("| arm | seeds that lost all 8 tokens | all gone after steps | lowest end of a stage | test accuracy | p |")
    print("|---|---|---|---|---|---|")
    print(f"| `{BASE}` | {' | '.join(cells(base))} | – |")
    for (arm, seeds), value in zip(arms.items(), p, strict=True):
        print(f"| `{arm}` | {' | '.join(cells(seeds))} | {value:.2g} |")


if __name__ == "__main__":
    main()
