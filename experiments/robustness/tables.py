"""The table of README.md, from results.csv.

    python experiments/robustness/tables.py [--check]

`points lost`: accuracy on the test problems minus accuracy on the part, for each seed of the stepwise arm; the mean over seeds
and its 95% t interval. Late answers count in the column that says so, and nowhere else.
"""

import sys
from pathlib import Path
from statistics import fmean

from experiments import readme
from experiments.readme import NONE, Row, alike, read_rows, table
from stepwise_pl.common.statistics import mean_interval

HERE = Path(__file__).parent
# The parts in the order of the table, and what each is.
PARTS = {
    "test": "",
    "high_heavy": "three quarters of the digits are 4",
    "zero_heavy": "three quarters are 0",
    "shorter": "7 digits",
    "longer": "9 digits",
    "half_longer": "12 digits",
    "twice_as_long": "16 digits",
}
ARMS = {"explicit_cot": "explicit CoT", "stepwise": "stepwise", "no_cot": "No CoT"}


def main_table(rows: list[Row]) -> str:
    """A row for each part, with the accuracy of every seed of every arm."""
    found = {(row["arm"], row["part"], row["seed"]): row for row in rows}
    seeds = {arm: [seed for name, part, seed in found if (name, part) == (arm, "test")] for arm in ARMS}

    def of(arm: str, part: str, column: str = "right") -> list[float]:
        cells = [found[arm, part, seed] for seed in seeds[arm]]
        return [int(cell[column]) / int(cell["n"]) for cell in cells]

    def lost(part: str) -> str:
        points = [100 * (test - here) for test, here in zip(of("stepwise", "test"), of("stepwise", part), strict=True)]
        low, high = mean_interval(points)
        return f"{fmean(points):.1f} [{low:.1f}, {high:.1f}]"

    heads = [f"{name}, seeds {', '.join(seeds[arm])}" for arm, name in ARMS.items()]
    body = []
    for part, what in PARTS.items():
        problems = alike([f"{int(found[arm, part, seed]['n']):,}" for arm in ARMS for seed in seeds[arm]])
        is_late = of("stepwise", part, "right_any_length") != of("stepwise", part)
        late = percents(of("stepwise", part, "right_any_length")) if is_late else NONE
        arms = {arm: percents(of(arm, part)) for arm in ARMS}
        body.append(
            [f"`{part}`{f': {what}' if what else ''}", problems, arms["explicit_cot"], arms["stepwise"], late,
             lost(part) if part != "test" else NONE, arms["no_cot"]]
        )  # fmt: skip
    head = ["part", "problems", heads[0], heads[1], "the same, late answers counted", "points that stepwise loses, mean [95% t interval]", heads[2]]  # fmt: skip
    return table(head, body)


def percents(accuracies: list[float]) -> str:
    """`66.5, 98.3%`; one number where the seeds agree."""
    return f"{alike([f'{100 * accuracy:.1f}' for accuracy in accuracies])}%"


def tables() -> dict[str, str]:
    """The tables of the README by their names."""
    return {"parts": main_table(read_rows(HERE / "results.csv"))}


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
