"""`python -m stepwise_pl.report <run or sweep folder> ...`: one HTML page about runs, for reading in any browser."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import require_own_or_new, write_text
from stepwise_pl.common.errors import UserError, go_on_without, require
from stepwise_pl.common.settings import setting
from stepwise_pl.runs.sweep_folder import holds_sweep

log = logging.getLogger("stepwise_pl")


@dataclass
class ReportConfig:
    """A page about runs: `python -m stepwise_pl.report <run or sweep folder> ...`."""

    # Run folders, or folders above them, such as that of a sweep.
    runs: list[str] = setting(factory=list, path=True)
    # The HTML file to write.
    out: str = setting("report.html", path=True)
    # Write every figure as PNG and SVG into this folder as well; null: do not.
    figures: str | None = setting(None, path=True)

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no folder is given: python -m stepwise_pl.report <run or sweep folder> ...")
        require(bool(self.out), "out", self.out, "must be the name of a file")


def report(config: ReportConfig) -> Path:
    """Write the page, and the figures as files if asked for; return where the page is.

    Raises:
        UserError: no folder holds a run, or `out` is another file.
    """
    from stepwise_pl.reporting.history import find_runs, labelled_cells, read_runs

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
    say(f"report of {count} written to {out} ({len(page.encode()) / 1e6:.1f} MB)")
    if config.figures is not None:
        from stepwise_pl.reporting.static import write_figure

        folder = Path(config.figures)
        folder.mkdir(parents=True, exist_ok=True)
        labels = [cell.label for cell in labelled_cells(runs)]
        files = []
        for figure in drawn.all():
            with go_on_without(f"{figure.slug}.png"):
                files += write_figure(figure, labels, folder)
        say(f"{len(files)} files of figures written to {folder}")
    return out


def main() -> None:
    """The command."""
    entry_point("report", ReportConfig, report)


if __name__ == "__main__":
    main()
