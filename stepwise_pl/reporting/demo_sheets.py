"""The parts of the page of `demo`, as HTML: header, answers side by side, logit lens. Colours and look are those of the report."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stepwise_pl.common.text import counted, milliseconds
from stepwise_pl.runs.inside import Grid
from stepwise_pl.runs.replies import Watched

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Column:
    """The reply of a model to a problem, or the reason why it gave none.

    Attributes:
        key: tells columns apart: `run`, `explicit_cot`, `no_cot`.
        heading: the name of the model for people.
        note: the checkpoint and its stage.
        watched: what it said; None if there is an error.
        error: the line for a problem that it cannot be asked; empty if there is none.
    """

    key: str
    heading: str
    note: str
    watched: Watched | None = None
    error: str = ""

    @property
    def time(self) -> float:
        """Milliseconds of the whole reply; 0 if there is none."""
        return 0.0 if self.watched is None else self.watched.reply.milliseconds


def style() -> str:
    """The style of the page. Rules of the report hold for our own parts, inside of `.sheet`, and colours for all of it."""
    colors, page, demo = ((HERE / name).read_text(encoding="utf-8") for name in ("colors.css", "page.css", "demo.css"))
    return f"{colors}\n.sheet {{\n{page}\n}}\n{demo}"


def header(title: str, lead: str, facts: Sequence[tuple[str, str, str]]) -> str:
    """The head of the page; a fact is its name, its value, and what stands below in small letters."""
    return _part("header", title, lead, facts)


def error(line: str) -> str:
    """The line for a problem that cannot be asked."""
    return _part("error", line)


def note(line: str) -> str:
    """A line in small letters."""
    return _part("note", line)


def board(columns: Sequence[Column], said: str, until: float | None = None) -> str:
    """The answers side by side.

    Args:
        said: the line above them.
        until: shows what was there after so many milliseconds; None: shows all.
    """
    longest = max((column.time for column in columns), default=0.0) or 1.0
    return _part("board", [_shown(column, until) for column in columns], longest, said, until)


def _shown(column: Column, until: float | None) -> dict[str, Any]:
    """The column with the number of its newest moment, from 1."""
    moments = () if column.watched is None else column.watched.moments
    now = 0 if until is None else sum(moment.milliseconds <= until for moment in moments)
    return {
        "key": column.key, "heading": column.heading, "note": column.note, "watched": column.watched, "error": column.error,
        "now": now,
    }  # fmt: skip


def plain(column: Column) -> dict[str, Any]:
    """The column as plain data."""
    watched = {} if column.watched is None else asdict(column.watched)
    return {"key": column.key, "heading": column.heading, "error": column.error, **watched}


def lens(grid: Grid, heading: str) -> str:
    """The logit lens on a problem, as the report draws it (inside.js)."""
    return _part("lens", grid, heading)


def footer(version: str, device: str, seconds: float) -> str:
    """The foot of the page: how times are measured, with tries for so many seconds, and what made the page."""
    return _part("footer", version, device, seconds)


def _part(macro: str, *arguments: Any) -> str:
    """A part of demo.html. All texts are escaped."""
    return str(getattr(_template().module, macro)(*arguments))


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    environment.globals |= {"ms": milliseconds, "counted": counted}
    return environment.get_template("demo.html")
