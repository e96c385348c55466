"""Write the tables of every experiment's README from the csv files beside it: `make tables`.

python experiments/tables.py [--check]
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from experiments import readme

HERE = Path(__file__).resolve().parent


def all_tables() -> dict[Path, Callable[[], dict[str, str]]]:
    """A function for each folder that makes its tables, the text by the name."""
    folders = sorted(path.parent for path in HERE.glob(f"*/{readme.NAME}"))
    return {
        folder: import_module(f"experiments.{folder.name}.tables").tables
        for folder in folders
        if "<!-- table: " in (folder / readme.NAME).read_text(encoding="utf-8")
    }


if __name__ == "__main__":
    sys.exit(readme.command(all_tables()))
