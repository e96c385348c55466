"""`python -m stepwise_pl.report <run or sweep folder> ...`: one HTML page about runs, for reading in any browser."""

import logging
from datetime import datetime
from pathlib import Path

from stepwise_pl import cli
from stepwise_pl.commands import ReportConfig
from stepwise_pl.disk import require_own_or_new, write_text
from stepwise_pl.errors import UserError, go_on_without
from stepwise_pl.sweep_folder import holds_sweep

log = logging.getLogger("stepwise_pl")


def report(config: ReportConfig) -> Path:
    """Write the page, and the figures as files if asked for; return where the page is.

    Raises:
        UserError: no folder holds a run, or `out` is another file.
    """
    from stepwise_pl.reporting.history import cells_of, find_runs, read_runs

    out = Path(config.out)
    require_own_or_new(out, "out", b"<!doctype html>")
    paths, notes = find_runs(config.runs)
    if not paths:
        raise UserError(f"nothing to report: {'; '.join(notes)}. Give folders of runs, or folders above them")
    from stepwise_pl.reporting.page import Figures, render

    for note in notes:
        log.warning("%s", note)
    runs = read_runs(paths)
    for run in runs:
        for note in run.notes:
            log.warning("%s: %s", run.path, note)
    drawn = Figures.of(runs)
    for note in drawn.notes:
        log.warning("%s", note)
    command = " ".join(["python -m stepwise_pl.report", *config.runs])
    first = Path(config.runs[0])
    sweep = first.resolve().name if len(config.runs) == 1 and holds_sweep(first) else ""
    page = render(runs, drawn, notes, datetime.now().astimezone().isoformat(" ", "minutes"), command, sweep)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    cli.say(f"report of {count} written to {out} ({len(page.encode()) / 1e6:.1f} MB)")
    if config.figures is not None:
        from stepwise_pl.reporting.static import write_figure

        folder = Path(config.figures)
        folder.mkdir(parents=True, exist_ok=True)
        labels = [cell.label for cell in cells_of(runs)]
        files = []
        for figure in drawn.all():
            with go_on_without(f"{figure.slug}.png"):
                files += write_figure(figure, labels, folder)
        cli.say(f"{len(files)} files of figures written to {folder}")
    return out


if __name__ == "__main__":
    cli.entry_point("report", report)
