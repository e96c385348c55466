"""The tables of README.md, from the csv files beside this file.

    python experiments/methods/tables.py [--check]

A table for a task needs its markers in README.md; `--check` names those that are missing.
"""

import sys
from collections.abc import Callable, Sequence
from statistics import fmean

from experiments import readme
from experiments.methods.runs import HERE, Run, Speed, read_runs, read_speeds, relative_speeds
from experiments.readme import NONE, alike, mean_cell, read_rows, span, table
from stepwise_pl.common.text import percent

MILLION = 1e6


def by_seed(runs: Sequence[Run], seeds: Sequence[int], cell: Callable[[Run], str]) -> list[str]:
    """A cell for each seed of the task; `–` for a seed that the arm was not run with."""
    found = {run.seed: cell(run) for run in runs}
    return [found.get(seed, NONE) for seed in seeds]


def seeds_of(arms: dict[str, list[Run]]) -> list[int]:
    """The seeds that any arm was run with."""
    return sorted({run.seed for runs in arms.values() for run in runs})


def heading(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def until(runs: Sequence[Run], seeds: Sequence[int]) -> str:
    """Million tokens read before the last CoT token could leave, of each seed."""
    if not runs[0].waits:
        return NONE

    def cell(run: Run) -> str:
        read = run.read_until_last
        return "not reached" if read is None else f"{read / MILLION:.2f}"

    return alike(by_seed(runs, seeds, cell))


def verdict_table(arms: dict[str, list[Run]], speeds: Sequence[Speed]) -> str:
    """The result of each arm and its price, in a line."""
    tokens, seeds, relative = next(iter(arms.values()))[0].tokens, seeds_of(arms), relative_speeds(speeds)
    head = ["arm", "seeds that answer without CoT", "test accuracy, mean", f"{tokens - 1} tokens gone until, million tokens read", "answers per second, explicit CoT = 1"]  # fmt: skip
    return table(head, (
        [arm, f"{sum(run.answers_alone for run in runs)} of {len(runs)}", percent(fmean(run.test for run in runs)),
         until(runs, seeds), span(relative.get(arm, []), ".1f")]
        for arm, runs in arms.items()
    ))  # fmt: skip


def accuracy_table(arms: dict[str, list[Run]]) -> str:
    """Everything about accuracy: of each seed at its best checkpoint, and where each ended."""
    seeds, tokens = seeds_of(arms), next(iter(arms.values()))[0].tokens
    head = [
        "arm", f"test accuracy, {heading(seeds)}", "mean [95% interval]", "CoT tokens gone then",
        f"{tokens - 1} tokens gone until, million tokens read", "tokens gone at the end: validation", "fell and stayed at",
        "guard: collapsed at", "steps", "million tokens read",
    ]  # fmt: skip

    def end(run: Run) -> str:
        last = run.validations[-1]
        return f"{last.removed}: {percent(last.accuracy)}"

    def guard(run: Run) -> str:
        if not run.about["collapsed"]:
            return "not recorded"
        if not run.about["collapsed_at"]:
            return NONE
        return run.about["collapsed_at"] + (" and not at the end" if run.about["collapsed"] == "false" else "")

    def row(arm: str, runs: Sequence[Run]) -> list[str]:
        read = [int(run.about["tokens_read"]) for run in runs]
        teacher = [int(run.about["teacher_tokens_read"]) for run in runs if run.about["teacher_tokens_read"]]
        more = f", and {span([count / MILLION for count in teacher], '.2f')} of the teacher" if teacher else ""
        fell = by_seed(runs, seeds, lambda run: NONE if run.fell_at is None else str(run.fell_at))
        return [
            arm, ", ".join(by_seed(runs, seeds, lambda run: percent(run.test))),
            mean_cell([run.test for run in runs], runs[0].tested), alike(by_seed(runs, seeds, lambda run: str(run.removed))),
            until(runs, seeds), ", ".join(by_seed(runs, seeds, end)), alike(fell), alike(by_seed(runs, seeds, guard)),
            span([int(run.about["steps"]) for run in runs], ","), span([count / MILLION for count in read], ".2f") + more,
        ]  # fmt: skip

    return table(head, (row(arm, runs) for arm, runs in arms.items()))


def cost_table(arms: dict[str, list[Run]], speeds: Sequence[Speed]) -> str:
    """The cost of training and answering, a row for each arm and machine."""

    def number(value: float | None, form: str = ",.0f") -> str:
        return NONE if value is None else format(value, form)

    def training(speed: Speed) -> str:
        if speed.training is not None or speed.first_step is None or speed.last_step is None:
            return number(speed.training)
        steps = fmean(int(run.about["steps"]) for run in arms[speed.arm])
        return span([steps * speed.first_step, steps * speed.last_step], ",.0f")

    head = ["arm", "CoT tokens gone", "answers per second, one at a time", "in batches of 200", "seconds a step, first and last", "training, seconds", "machine, one thread", "date"]  # fmt: skip
    return table(head, (
        [speed.arm, speed.row["removed_tokens"], number(speed.one_at_a_time), number(speed.in_batches),
         alike([number(speed.first_step, ".2g"), number(speed.last_step, ".2g")]), training(speed), speed.row["machine"], speed.row["date"]]
        for speed in speeds
    ))  # fmt: skip


def levels_table() -> str:
    """The last checkpoint of a run at every level."""
    rows = read_rows(HERE / "levels.csv")
    cells = {(row["run"], row["seed"], int(row["removed_tokens"])): percent(float(row["accuracy"])) for row in rows}
    levels = sorted({level for _, _, level in cells})
    return table(["CoT tokens gone", *map(str, levels)], (
        [f"`{run}`, seed {seed}", *(cells.get((run, seed, level), NONE) for level in levels)]
        for run, seed in dict.fromkeys((row["run"], row["seed"]) for row in rows)
    ))  # fmt: skip


def published_table(tasks: dict[str, dict[str, list[Run]]]) -> str:
    """Published numbers, and beside each the mean of the arm here."""
    seen = list(tasks)

    def here(arm: str, task: str) -> str:
        runs = tasks[task].get(arm)
        return percent(fmean(run.test for run in runs)) if runs else NONE

    head = [
        "method",
        "model",
        "data",
        "published accuracy",
        "how it was scored",
        "source",
        *(f"here: {task}" for task in seen),
    ]
    rows = read_rows(HERE / "published.csv")
    keys = ("method", "model", "data", "accuracy", "scored", "source")
    return table(head, ([*(row[key] for key in keys), *(here(row["arm"], task) for task in seen)] for row in rows))


def tables() -> dict[str, str]:
    """The tables of the README by their names."""
    tasks = read_runs()
    found: dict[str, str] = {}
    for task, arms in tasks.items():
        speeds = read_speeds(task)
        if len(arms) > 1:
            found[f"verdict {task}"] = verdict_table(arms, speeds)
        found[f"accuracy {task}"] = accuracy_table(arms)
        if speeds:
            found[f"cost {task}"] = cost_table(arms, speeds)
    return found | {"levels": levels_table(), "published": published_table(tasks)}


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
