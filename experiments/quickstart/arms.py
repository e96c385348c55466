"""The tables of the quickstart's arms, from results.csv (the quickstart), results_arms.csv (the arms) and results_smoothing.csv.

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

from experiments.readme import NONE, span, table
from stepwise_pl.common.statistics import holm

HERE = Path(__file__).parent
BASE, TOKENS, END = "quickstart", 8, 4000
# One thing of the quickstart is other in each arm.
OTHER = {
    "quickstart_reset": "the moments are cleared when a token leaves, as in the paper",
    "quickstart_no_smoothing": "λ = inf",
    "quickstart_right_side": "tokens leave from the right",
    "quickstart_linear": "one token every 200 steps from step 600 on, without waiting",
}
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
    """Finished seeds, steps, lowest accuracies and test accuracies."""
    steps = [seed.all_gone for seed in seeds if seed.all_gone is not None]
    return [
        f"{len(steps)} of {len(seeds)}", span(steps, ","), span([seed.lowest for seed in seeds], ".1%"),
        f"{span([seed.test for seed in seeds], '.1%')} with {span([seed.removed for seed in seeds], 'd')} gone",
    ]  # fmt: skip


def measure(arm: str, seeds: list[Seed]) -> list[float]:
    """The numbers that p is about."""
    return [seed.lowest if arm in OPEN_LOOP else float(seed.all_gone or END) for seed in seeds]


def p_of(one: list[float], other: list[float]) -> float:
    """The p value of the Mann-Whitney test: exact by all permutations, ties included."""
    return float(mannwhitneyu(one, other, method=PermutationMethod(n_resamples=10_000)).pvalue)


def arms_table() -> str:
    """The quickstart, and each arm with its p value."""
    base, arms = read("results.csv")[BASE], read("results_arms.csv")
    p = holm([p_of(measure(arm, seeds), measure(arm, base)) for arm, seeds in arms.items()])
    head = ["arm", "what is other", f"seeds that lost all {TOKENS} tokens", "all gone after steps", "lowest end of a stage", "test accuracy", "p"]  # fmt: skip
    rows = [
        [f"`{arm}`", OTHER[arm], *cells(seeds), f"{value:.2g}"]
        for (arm, seeds), value in zip(arms.items(), p, strict=True)
    ]
    return table(head, [[f"`{BASE}`", NONE, *cells(base), NONE], *rows])


def smoothing_table() -> str:
    """The quickstart with its own λ and with the paper's."""
    seeds = {"1": read("results.csv")[BASE], "4": read("results_smoothing.csv")["smoothing4"]}
    head = [
        "λ",
        f"seeds that lost all {TOKENS} tokens within {END:,} steps",
        "all gone after steps",
        "test accuracy of each seed",
    ]
    tests = {smoothing: ", ".join(f"{seed.test:.1%}" for seed in found) for smoothing, found in seeds.items()}
    return table(head, [[smoothing, *cells(found)[:2], tests[smoothing]] for smoothing, found in seeds.items()])
