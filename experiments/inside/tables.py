"""The table of README.md, from seeds.csv.

python experiments/inside/tables.py [--check]
"""

import sys
from pathlib import Path

from experiments import readme
from experiments.readme import read_rows, table
from stepwise_pl.common.text import percent, percents

HERE = Path(__file__).parent
ARM, TOKENS, LAST = "quickstart", (4, 5, 6), 8
# Tokens gone after those that stand before the token, and what the table calls it.
STAGES = {0: "as many as stand before it", 1: "itself, too", 2: "and the next one"}


def fading_table() -> str:
    """The score of the probe of each token as tokens leave, means of the seeds with 95% t intervals."""
    rows = {(row["target"], int(row["stage"])): row for row in read_rows(HERE / "seeds.csv") if row["arm"] == ARM}

    def cell(token: int, stage: int) -> str:
        row = rows[f"cot {token}", stage]
        # An interval of Student's t knows nothing of 100%.
        interval = (max(0.0, float(row["states_low"])), min(1.0, float(row["states_high"])))
        return f"{percent(float(row['states']))} {percents(interval)}"

    def end(token: int) -> str:
        return "(the line above)" if token + 2 == LAST else cell(token, LAST)

    return table(
        ["tokens gone", *(f"`cot {token}`" for token in TOKENS)],
        [
            *([name, *(cell(token, token + more) for token in TOKENS)] for more, name in STAGES.items()),
            [f"all {LAST}", *map(end, TOKENS)],
            ["best control, at the end", *(percent(float(rows[f"cot {token}", LAST]["control"])) for token in TOKENS)],
        ],
    )


def tables() -> dict[str, str]:
    """The tables of the README by their names."""
    return {"fading": fading_table()}


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
