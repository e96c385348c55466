"""The tables of README.md, from the csv files beside it; that of the arms is explained in arms.py.

python experiments/quickstart/tables.py [--check]
"""

import sys
from pathlib import Path

from experiments import readme
from experiments.quickstart.arms import arms_table, smoothing_table
from experiments.stages import runs_table

HERE = Path(__file__).parent
NAMES = {"quickstart": "`quickstart`", "no_cot": "No CoT", "explicit_cot": "explicit CoT"}


def tables() -> dict[str, str]:
    """The tables of the README by their names."""
    return {
        "runs": runs_table(HERE / "results.csv", NAMES, tokens=8),
        "smoothing": smoothing_table(),
        "arms": arms_table(),
    }


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
