"""The table of README.md, from results.csv.

python experiments/multiplication/tables.py [--check]
"""

import sys
from pathlib import Path

from experiments import readme
from experiments.stages import runs_table

HERE = Path(__file__).parent
NAMES = {"mult3x3_cpu": "`mult3x3_cpu`", "no_cot": "No CoT", "explicit_cot": "explicit CoT"}


def tables() -> dict[str, str]:
    """The tables of the README by their names."""
    return {"runs": runs_table(HERE / "results.csv", NAMES, tokens=24)}


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
