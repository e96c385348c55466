"""The result of a sweep, for reading."""

import shlex
from collections.abc import Sequence
from typing import Any

from stepwise_pl.common.text import table
from stepwise_pl.runs import sweep_folder as folders
from stepwise_pl.runs.cells import Cell
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, RUNNING, Job, Sweep

_MOST_FAILURES = 10  # to print


def of_last_command(sweep: Sweep) -> list[Job]:
    """The jobs of the command that went on with the sweep the last time; of all, if it could not know them before."""
    return [job for job in sweep.jobs if not sweep.planned or job.run in sweep.planned]


def report(sweep: Sweep, cells: Sequence[Any]) -> str:
    """The end of a sweep, or its state, for reading."""

    counts = [f"{count} {outcome}" for outcome in folders.OUTCOMES if (count := sweep.count(outcome))]
    failed = [f"{job.label}: {job.error}" for job in sweep.jobs if job.outcome == FAILED]
    if len(failed) > _MOST_FAILURES:
        failed[_MOST_FAILURES:] = [f"and {len(failed) - _MOST_FAILURES} more, in sweep.json"]
    following = [f"python -m stepwise_pl.report {shlex.quote(str(sweep.folder))}"]
    left = [job for job in sweep.jobs if job.outcome not in (FINISHED, RUNNING)]
    if of_this := [job for job in of_last_command(sweep) if job in left]:
        command = [argument for argument in sweep.command if argument != "resume=true"]
        following.insert(0, shlex.join(["python", "-m", "stepwise_pl.train", *command, "resume=true"]))
    if len(of_this) < len(left):
        following.append(f"and the earlier command with resume=true, for {len(left) - len(of_this)} other jobs")
    lines = [
        ("sweep", [f"{', '.join(counts) or 'none'} of {len(sweep.jobs)} jobs"]),
        ("failed", failed),
        ("sweep folder", [str(sweep.folder), "sweep.csv, sweep.json, sweep.png, the run folders"]),
        ("next", following),
    ]
    told = [f"{'' if i else name:16}{line}" for name, some in lines for i, line in enumerate(some)]
    return "\n".join(["", *cell_lines(cells), LEGEND, "", *told, ""])


def cell_lines(cells: Sequence[Cell]) -> list[str]:
    """The table, for reading."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.swept))
    head = [
        *(key.lstrip("+") for key in keys), "runs", "test accuracy", "95% interval", "removed", "at 95%", "seconds",
        "examples/token", "collapsed", "failed",
    ]  # fmt: skip
    return table(head, [[*(cell.swept.get(key, "") for key in keys), *_shown(cell)] for cell in cells])


def _shown(cell: Cell) -> list[str]:
    row, results = cell.row(), cell.results
    runs = f"{row['finished']} of {row['runs']}"
    at_some_time = sum(one.collapsed or one.collapsed_at is not None for one in results)
    counts = [f"{row['collapsed']} ({at_some_time})", str(row["failed"])]
    if not results:
        return [runs, *["-"] * 6, *counts]
    per_token = row["examples_per_token"]
    return [
        runs,
        f"{row['test_accuracy']:.1%}",
        f"[{row['interval_low']:.1%}, {row['interval_high']:.1%}] {row['interval'][0]}",
        f"{_span(row['removed_tokens'])} of {row['max_cot_tokens']}",
        _span(row["removed_at_95"]),
        f"{row['seconds']:.0f}",
        "-" if per_token is None else f"{per_token:.0f}",
        *counts,
    ]


def _span(counts: Sequence[int | None]) -> str:
    """`10`, or `8-10` where seeds differ; `none` where 95% was never reached."""
    ordered = sorted(counts, key=lambda count: -1 if count is None else count)
    low, high = ("none" if count is None else str(count) for count in (ordered[0], ordered[-1]))
    return low if low == high else f"{low}-{high}"


LEGEND = (
    "95% interval: t = Student's over seeds, W = Wilson's for one seed, or where all agree. removed: CoT tokens gone\n"
    "in the tested checkpoint; at 95%: the most removed tokens whose last validation was at least 95% right. collapsed: at\n"
    "the end, and in brackets at some time (below a quarter of the best, as the guard sees it)."
)
