"""Panels of heat maps, made cell by cell."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Cells, short
from stepwise_pl.reporting.figures.inside_places import short_names

X = TypeVar("X")
Y = TypeVar("Y")
Line = tuple[float, float, float, float]


class Cell(NamedTuple):
    """A cell: its number, the text in it, and the text that a mouse over it shows."""

    value: float
    text: str
    hover: str


def share(value: float, hover: str, below: str = "") -> Cell:
    """A cell of a share, written as a percentage; `below`: a second line of its text."""
    return Cell(value, short(value) + f"\n{below}" * bool(below), hover)


def number(value: float, hover: str) -> Cell:
    """A cell of a number with two decimals."""
    return Cell(value, decimals(value), hover)


def decimals(value: float) -> str:
    """A number with two decimals; a little less than zero is zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def panel(
    columns: Mapping[X, str],
    rows: Mapping[Y, str],
    at: Callable[[X, Y], Cell | None],
    title: str = "",
    lines: Iterable[Line] = (),
) -> Cells:
    """A panel.

    Args:
        columns, rows: names by what they are of; rows begin at the bottom.
        at: the cell of a column and a row; None, or a number that is not finite: the cell is empty.
        lines: see `Cells`.
    """
    found = [[at(x, y) for x in columns] for y in rows]
    shown = [[cell if cell is not None and abs(cell.value) < float("inf") else None for cell in row] for row in found]
    return Cells(
        short_names(list(columns.values())), short_names(list(rows.values())),
        [[None if cell is None else cell.value for cell in row] for row in shown],
        [["" if cell is None else cell.text for cell in row] for row in shown],
        [["" if cell is None else cell.hover for cell in row] for row in shown], title, list(lines),
    )  # fmt: skip


def names(values: Iterable[X], text: Callable[[X], str] = str) -> dict[X, str]:
    """The values with their texts, in their order."""
    return {value: text(value) for value in values}


def is_empty(panels: Sequence[Cells]) -> bool:
    """Whether no cell of the panels has a number."""
    return all(value is None for cells in panels for row in cells.values for value in row)


def ranges(panels: Sequence[Cells], percents: bool = True) -> str:
    """The least and most of each panel, for readers who do not see the figure."""
    parts = []
    for cells in panels:
        found = [value for row in cells.values for value in row if value is not None]
        if found:
            low, high = (percent(end) if percents else decimals(end) for end in (min(found), max(found)))
            parts.append(f"{cells.title or 'all'}: {low} to {high}")
    return "; ".join(parts)


def box(x: int, first: int, last: int) -> list[Line]:
    """A frame around the cells of a column from one row to another."""
    left, right, bottom, top = x - 0.5, x + 0.5, first - 0.5, last + 0.5
    return [
        (left, bottom, right, bottom),
        (left, top, right, top),
        (left, bottom, left, top),
        (right, bottom, right, top),
    ]


def upright(x: float | None, rows: int) -> list[Line]:
    """A line from the bottom to the top of a panel of so many rows; none if there is no x."""
    return [] if x is None else [(x, -0.5, x, rows - 0.5)]


def stairs(places: Sequence[float | None], end: float) -> list[Line]:
    """A line upwards through the rows.

    Args:
        places: its x in each row, from the bottom; None: at the right end.
        end: x of the right end.
    """
    x = [end if place is None else place for place in places]
    up = [(place, y - 0.5, place, y + 0.5) for y, place in enumerate(x)]
    across = [
        (before, y - 0.5, place, y - 0.5) for y, (before, place) in enumerate(pairwise(x), start=1) if before != place
    ]
    return [*up, *across]
