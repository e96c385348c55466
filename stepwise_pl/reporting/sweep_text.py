"""The result of a sweep as text."""

import shlex
from collections.abc import Sequence

from stepwise_pl.common.text import percent, percents, table
from stepwise_pl.runs.cells import Cell, SweepRun, results_of, row_of
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, OUTCOMES, RUNNING, Job, Sweep

_WIDEST = 24  # characters of a column; a longer name of a key or value is wrapped
_MOST_FAILURES = 10  # further failures are counted, not printed


def of_last_command(sweep: Sweep) -> list[Job]:
    """The jobs of the last command that worked on the sweep. If its sweeper chose jobs as it went, all jobs of the sweep."""
    return [job for job in sweep.jobs if not sweep.planned or job.run in sweep.planned]


def report(sweep: Sweep, cells: Sequence[Cell[SweepRun]]) -> str:
    """The table of the sweep, its failures, and the commands to go on with."""
    counts = [f"{count} {outcome}" for outcome in OUTCOMES if (count := sweep.count(outcome))]
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
    summary = [f"{'' if i else name:16}{line}" for name, texts in lines for i, line in enumerate(texts)]
    return "\n".join(["", *cell_lines(cells), LEGEND, "", *summary, ""])


def cell_lines(cells: Sequence[Cell[SweepRun]]) -> list[str]:
    """The table of a sweep: a line per cell, below the head."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.config))
    head = [
        *(key.lstrip("+") for key in keys), "runs", "test accuracy", "95% interval", "removed", "at 95%", "seconds",
        "examples/token", "collapsed", "failed",
    ]  # fmt: skip
    rows = [[*(cell.config.get(key, "") for key in keys), *_shown(cell)] for cell in cells]
    return table(head, rows, widest=_WIDEST)


def _shown(cell: Cell[SweepRun]) -> list[str]:
    row = row_of(cell)
    runs = f"{row['finished']} of {row['runs']}"
    at_some_time = sum(result.collapsed or result.collapsed_at is not None for result in results_of(cell))
    counts = [f"{row['collapsed']} ({at_some_time})", str(row["failed"])]
    if cell.accuracy is None:
        return [runs, *["-"] * 6, *counts]
    per_token = row["examples_per_token"]
    return [
        runs,
        percent(cell.accuracy),
        f"{percents(cell.interval[:2])} {cell.interval[2][0]}" if cell.interval else "-",
        ", ".join(
            [f"{_span(row['removed_tokens'])} of {row['max_cot_tokens']}", *dict.fromkeys(row.get("stages", ()))]
        ),
        _span(row["removed_at_95"]),
        f"{row['seconds']:.0f}",
        "-" if per_token is None else f"{per_token:.0f}",
        *counts,
    ]


def _span(counts: Sequence[int | None]) -> str:
    """`10`, or `8-10` if seeds differ. `none` stands for a seed that never reached 95%."""
    ordered = sorted(counts, key=lambda count: -1 if count is None else count)
    low, high = ("none" if count is None else str(count) for count in (ordered[0], ordered[-1]))
    return low if low == high else f"{low}-{high}"


LEGEND = (
    "95% interval: t = Student's over seeds, W = Wilson's for one seed, or where all agree. removed: CoT tokens gone\n"
    "in the tested checkpoint, and its stage if stages have names; at 95%: the most removed tokens whose last validation\n"
    "was at least 95% right. collapsed: at the end, and in brackets at some time (below a quarter of the best, as the\n"
    "guard sees it)."
)
