"""`python -m stepwise_pl.report <run or sweep folder> ...`: one HTML page about runs, for reading in any browser."""

import contextlib
import logging
import math
import signal
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import require_own_or_new, write_text
from stepwise_pl.common.errors import UserError, go_on_without, require
from stepwise_pl.common.settings import setting
from stepwise_pl.common.signals import is_free
from stepwise_pl.runs.sweep_folder import holds_sweep

if TYPE_CHECKING:
    from stepwise_pl.reporting.history import History
    from stepwise_pl.reporting.page import Figures
    from stepwise_pl.reporting.watching import State

log = logging.getLogger("stepwise_pl")


# A page that is watched is written anew for at most this share of the time, because the runs need the processor.
SHARE = 0.2


@dataclass
class ReportConfig:
    """A page about runs: `python -m stepwise_pl.report <run or sweep folder> ...`."""

    # Run folders, or folders above them, such as that of a sweep.
    runs: list[str] = setting(factory=list, path=True)
    # The HTML file to write.
    out: str = setting("report.html", path=True)
    # Write every figure as PNG and SVG into this folder as well; null: do not.
    figures: str | None = setting(None, path=True)
    # Write the page anew until the runs have ended. The page then loads itself again, and keeps what the reader has chosen.
    watch: bool = False
    # Seconds between two looks at the runs, with `watch`; at least 1.
    every: float = 10.0

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no folder is given: python -m stepwise_pl.report <run or sweep folder> ...")
        require(bool(self.out), "out", self.out, "must be the name of a file")
        require(1 <= self.every < math.inf, "every", self.every, "must be at least 1")


def report(config: ReportConfig) -> Path:
    """Write the page, and the figures as files if asked for; return where the page is.

    Raises:
        UserError: no folder holds a run, or `out` is another file.
    """
    out = Path(config.out)
    require_own_or_new(out, "out", b"<!doctype html>")
    if config.watch:
        runs, drawn = watch(config)
    else:
        runs, drawn = write_page(config)
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    say(f"report of {count} written to {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if config.figures is not None:
        write_figures(runs, drawn, Path(config.figures))
    return out


def write_page(
    config: ReportConfig, every: float | None = None, is_first: bool = True
) -> "tuple[list[History], Figures]":
    """Write the page, and log what is missing; return the runs and their figures.

    Args:
        every: seconds after which the page loads itself again; None: it does not.
        is_first: whether what is missing is logged.

    Raises:
        UserError: no folder holds a run.
    """
    from stepwise_pl.reporting.history import find_runs, read_runs

    out = Path(config.out)
    paths, notes = find_runs(config.runs)
    if not paths:
        raise UserError(f"nothing to report: {'; '.join(notes)}. Give folders of runs, or folders above them")
    from stepwise_pl.reporting.page import Figures, render

    runs = read_runs(paths)
    drawn = Figures.of(runs)
    if is_first:
        for note in [*notes, *(f"{run.path}: {note}" for run in runs for note in run.notes), *drawn.notes]:
            log.warning("%s", note)
    command = " ".join(["python -m stepwise_pl.report", *config.runs])
    first = Path(config.runs[0])
    sweep = first.resolve().name if len(config.runs) == 1 and holds_sweep(first) else ""
    written = datetime.now().astimezone().isoformat(" ", "minutes" if every is None else "seconds")
    page = render(runs, drawn, notes, written, command, sweep=sweep, every=every)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return runs, drawn


def watch(config: ReportConfig) -> "tuple[list[History], Figures]":
    """Write the page whenever something is new, until the runs have ended, or until Ctrl-C or SIGTERM; return what the last page shows.

    The last page does not load itself again.

    Raises:
        UserError: no folder holds a run, at the beginning.
    """
    from stepwise_pl.reporting.history import find_runs
    from stepwise_pl.reporting.watching import have_ended, state_of

    seen: State | None = None
    is_first = True
    try:
        stop_by_signal()
        while True:
            took = 0.0
            if (now := state_of(find_runs(config.runs)[0])) != seen or is_first:
                begin = time.monotonic()
                with contextlib.nullcontext() if is_first else go_on_without("this time, the page"):
                    runs, _ = write_page(config, config.every, is_first)
                    seen = now
                    if have_ended(runs, config.runs):
                        break
                took = time.monotonic() - begin
            if is_first:
                say(
                    f"{config.out} loads itself again every {config.every:g} s, until the runs have ended; Ctrl-C stops"
                )
            is_first = False
            time.sleep(max(config.every, took / SHARE - took))
    except KeyboardInterrupt:
        say("stopped: the page does not load itself again any more")
    return write_page(config, is_first=False)


def stop_by_signal() -> None:
    """Let SIGINT and SIGTERM end the loop as Ctrl-C does. A shell starts what runs in its background deaf to Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread ask for signals.
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if is_free(number):
            signal.signal(number, signal.default_int_handler)


def write_figures(runs: "list[History]", drawn: "Figures", folder: Path) -> None:
    """Write every figure as PNG and SVG. A figure that cannot be drawn is a warning."""
    from stepwise_pl.reporting.history import labelled_cells
    from stepwise_pl.reporting.static import write_figure

    folder.mkdir(parents=True, exist_ok=True)
    labels = [cell.label for cell in labelled_cells(runs)]
    files = []
    for figure in drawn.all():
        with go_on_without(f"{figure.slug}.png"):
            files += write_figure(figure, labels, folder)
    say(f"{len(files)} files of figures written to {folder}")


def main() -> None:
    """The command."""
    entry_point("report", ReportConfig, report)


if __name__ == "__main__":
    main()
