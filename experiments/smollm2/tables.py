"""The table of README.md, from results.csv.

python experiments/smollm2/tables.py [--check]
"""

import sys
from pathlib import Path
from statistics import fmean

from experiments import readme
from experiments.readme import NONE, Row, read_rows, table
from stepwise_pl.common.statistics import wilson

HERE = Path(__file__).parent
MEAN_OF = range(91, 101)
LOOKS = (100, 200)


def row_of(name: str, rows: list[Row]) -> list[str]:
    """The losses of a run, and the answers that are right at its end."""
    losses = {(row["split"], int(row["step"])): float(row["loss"]) for row in rows}
    (test,) = (row for row in rows if row["split"] == "test")
    accuracy, examples = float(test["answer_accuracy"]), int(test["examples"])
    low, high = wilson(accuracy, examples)
    validations = [f"{losses['validation', step]:.3f}" if ("validation", step) in losses else NONE for step in LOOKS]
    return [
        name, f"{losses['train', 1]:.2f}", f"{fmean(losses['train', step] for step in MEAN_OF):.2f}", *validations,
        f"{float(test['loss']):.3f} (step {test['step']})", f"{accuracy:.1%} ({100 * low:.1f} – {100 * high:.1f})",
    ]  # fmt: skip


def tables() -> dict[str, str]:
    """The tables of the README by their names."""
    rows = read_rows(HERE / "results.csv")
    runs = dict.fromkeys(row["run"] for row in rows)
    head = [
        "weights at the start", "loss of the first batch", f"training loss, steps {MEAN_OF[0]} – {MEAN_OF[-1]}",
        *(f"validation loss at {step}" for step in LOOKS), "test loss", "answers right (n = 64), 95% Wilson",
    ]  # fmt: skip
    return {"runs": table(head, [row_of(run, [row for row in rows if row["run"] == run]) for run in runs])}


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
