"""Runs that are still being trained: whether anything is new in their folders, and whether they have ended."""

from collections.abc import Sequence
from pathlib import Path

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.processes import is_alive
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.sweep_folder import RUNNING, WAITING, Sweep, holds_sweep, process_here, read_sweep

# Folders of a run whose files a report reads, besides the files of the run folder itself.
READ = ("evaluations", "inside", "checkpoints")

State = frozenset[tuple[str, int, int]]


def state_of(paths: Sequence[Path]) -> State:
    """The files of run folders with their times and sizes. It differs from an earlier one as soon as a report would."""
    found = set()
    for path in paths:
        for folder in (path, *(path / name for name in READ)):
            for file in folder.glob("*"):
                try:
                    now = file.stat()
                except OSError:  # It has just been replaced or removed.
                    continue
                if file.is_file():
                    found.add((str(file), now.st_mtime_ns, now.st_size))
    return frozenset(found)


def have_ended(runs: Sequence[History], given: Sequence[str]) -> bool:
    """Whether nothing more will come: each run has a summary or has failed, and no job of a given sweep runs or waits.

    A run that was stopped has not ended, because it can be resumed.
    """
    for folder in map(Path, given):
        if holds_sweep(folder):
            try:
                sweep = read_sweep(folder)
            except UserError:
                continue
            if sweep.count(RUNNING, WAITING) or _more_will_come(sweep):
                return False
    return all(run.summary or run.error for run in runs)


def _more_will_come(sweep: Sweep) -> bool:
    """Whether the sweep's process is still there, and hands out jobs that are not known yet."""
    process = process_here(sweep.process)
    is_complete = sweep.total is not None and len(sweep.jobs) >= sweep.total
    return not is_complete and process is not None and is_alive(process)
