"""The figures of a look inside one run as files, for those who show them elsewhere than on the page."""

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from stepwise_pl.common.errors import go_on_without
from stepwise_pl.reporting.figures.inside import PARTS, draw
from stepwise_pl.reporting.history import read_run
from stepwise_pl.reporting.inside_section import files_of
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.runs.inside import COMMANDS, Row


def write_pictures(run: Path, kinds: Collection[type[Row]], folder: Path) -> list[Path]:
    """Write the figures of some tables of a run as PNG and SVG; return the files. A figure that cannot be drawn is a warning.

    Args:
        kinds: the tables, by their rows.
        folder: where the files go; it is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    history = read_run(run)
    history.label = str(run)
    files: list[Path] = []
    for part, (kind, _) in PARTS.items():
        if kind in kinds:
            with go_on_without(f"the picture of {part}"):
                for figure in files_of(draw(part, history, 0)):
                    files += write_figure(figure, [history.label], folder)
    return files


@contextlib.contextmanager
def pictures_of(run: Path, command: str) -> Iterator[list[Path]]:
    """Draw the tables of a command that looks inside, as files of a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield write_pictures(run, COMMANDS[command], Path(folder))
