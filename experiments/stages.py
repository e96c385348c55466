"""The table that several experiments have: a row for each run, from results.csv as experiments/collect.py writes it."""

from collections.abc import Mapping
from pathlib import Path

from experiments.readme import NONE, read_rows, table
from stepwise_pl.common.text import percent


def runs_table(path: Path, names: Mapping[str, str], tokens: int) -> str:
    """Test accuracy, CoT tokens left, lowest stage, the step at which all tokens were gone, and time.

    Args:
        names: what the table calls a run, by its name in the file, in the order of the table.
        tokens: of a whole CoT.
    """
    rows = read_rows(path)
    stages: dict[tuple[str, str], dict[int, tuple[int, float]]] = {}
    for row in rows:
        if row["split"] == "validation" and not row["given_up"]:
            of_run = stages.setdefault((row["run"], row["seed"]), {})
            of_run[int(row["removed_tokens"])] = int(row["step"]), float(row["accuracy"])

    def gone(of_run: dict[int, tuple[int, float]]) -> str:
        if tokens not in of_run:
            return "never"
        return f"{max((step for removed, (step, _) in of_run.items() if removed < tokens), default=0):,}"

    body = []
    for run, name in names.items():
        for row in (row for row in rows if row["run"] == run and row["split"] == "test"):
            of_run = stages[run, row["seed"]]
            # A run of one stage has no way down.
            lowest = percent(min(accuracy for _, accuracy in of_run.values())) if len(of_run) > 1 else NONE
            low, high = (f"{100 * float(row[key]):.1f}" for key in ("low", "high"))
            body.append(
                [name, row["seed"], f"{percent(float(row['accuracy']))} [{low}, {high}]", f"{tokens - int(row['removed_tokens'])} of {tokens}",
                 lowest, gone(of_run), f"{float(row['seconds']):,.0f} s"]
            )  # fmt: skip
    problems = next(row["examples"] for row in rows if row["split"] == "test")
    head = ["run", "seed", f"test accuracy (n = {int(problems):,}) [95% Wilson]", "CoT tokens left", "lowest", "all gone", "training time"]  # fmt: skip
    return table(head, body)
