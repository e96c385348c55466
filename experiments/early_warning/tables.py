"""The tables of README.md, from signals.csv and results.csv.

python experiments/early_warning/tables.py [--check]
"""

import sys
from functools import cache

from experiments import readme
from experiments.early_warning.roc import (
    HERE,
    HIGHER_IS_WORSE,
    WHEN,
    Judged,
    StageOfRun,
    alarm,
    judged,
    read_stages,
)
from experiments.readme import read_rows, table
from stepwise_pl.common.text import percent


@cache
def stages() -> tuple[StageOfRun, ...]:
    """All stages; the tables share them."""
    return tuple(read_stages())


@cache
def all_judged() -> tuple[Judged, ...]:
    """Every signal at every moment."""
    return tuple(judged(stages(), signal, when) for signal in HIGHER_IS_WORSE for when in WHEN)


def runs_table() -> str:
    """Of each pace: runs, runs with a lost stage, and runs that the guard called collapsed."""
    said = {(row["pace"], row["seed"]): bool(row["collapsed_at"]) for row in read_rows(HERE / "results.csv")}
    paces = sorted({stage.run[0] for stage in stages()})
    lost = {stage.run for stage in stages() if stage.is_lost}
    rows = []
    for pace in paces:
        runs = [run for run in said if run[0] == str(pace)]
        at = [str(stage.removed_tokens) for stage in stages() if stage.is_lost and stage.run[0] == pace]
        rows.append([
            str(pace), str(len(runs)), str(sum(run[0] == pace for run in lost)), ", ".join(sorted(at)) or readme.NONE,
            str(sum(said[run] for run in runs)),
        ])  # fmt: skip
    return table(
        [
            "steps for each token",
            "runs",
            "with a lost stage",
            "tokens gone at the first",
            "collapsed, as the guard says",
        ],
        rows,
    )


def areas_table(pairs: str) -> str:
    """Area under the ROC curve of each signal at each moment; `pairs` is the attribute of `Judged` that has it."""

    def cell(found: Judged) -> str:
        area, low, high = getattr(found, pairs)
        return f"{area:.2f} [{low:.2f}, {high:.2f}]"

    head = ["signal", "before the token leaves", *(f"{when} steps after" for when in WHEN[1:])]
    cells = {(found.signal, found.when): cell(found) for found in all_judged()}
    return table(head, ([f"`{signal}`", *(cells[signal, when] for when in WHEN)] for signal in HIGHER_IS_WORSE))


def alarms_table() -> str:
    """Thresholds from the even seeds, tried on the odd ones."""
    head = ["signal", "read", "alarm at", "lost stages called", "kept stages called"]
    rows = []
    for signal, is_higher in HIGHER_IS_WORSE.items():
        for when in WHEN:
            found = alarm(stages(), signal, when)
            rows.append([
                f"`{signal}`", "before the token leaves" if when == 0 else f"{when} steps after",
                f"{'≥' if is_higher else '≤'} {found.threshold:.3g}",
                *(f"{called} of {count}" for called, count in (found.caught, found.false)),
            ])  # fmt: skip
    return table(head, rows)


def guard_table() -> str:
    """The effect of the early judgement on runs that go back."""
    head = [
        "`guard.early`",
        "seed",
        "went back, from step to step",
        "examples given up",
        "CoT tokens gone at the best checkpoint",
        "test accuracy",
    ]
    rows = read_rows(HERE / "guard.csv")
    return table(head, (
        [row["early"] or "null", row["seed"], row["went_back"] or readme.NONE, f"{int(row['abandoned_examples']):,}",
         row["removed_tokens"], percent(float(row["test_accuracy"]))]
        for row in sorted(rows, key=lambda row: (row["early"], int(row["seed"])))
    ))  # fmt: skip


def tables() -> dict[str, str]:
    """The tables of the README by their names."""
    return {
        "runs": runs_table(), "areas": areas_table("area"), "areas at one pace": areas_table("at_one_pace"),
        "areas at one pace and stage": areas_table("at_one_place"), "alarms": alarms_table(),
        "guard": guard_table(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
