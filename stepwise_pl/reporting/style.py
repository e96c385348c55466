"""Colours, markers and lines of every figure, each as matplotlib, plotly and SVG call it."""

from typing import Any, NamedTuple


class Marker(NamedTuple):
    """A shape at a point.

    Attributes:
        svg: the shape around the origin; empty: no swatch of the page shows it.
        size: pixels on the page; a file has it smaller.
        filled: the shape has an inside, so that it needs no outline.
    """

    matplotlib: str
    plotly: str
    svg: str = ""
    size: int = 8
    filled: bool = True


class Line(NamedTuple):
    """A pattern of dashes; `svg` is a `stroke-dasharray`."""

    matplotlib: Any
    plotly: str
    svg: str


# Okabe and Ito chose these colours: colour-blind readers tell them apart. Shapes tell runs apart in grey print.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# The colour of what belongs to no cell.
GREY = "#777777"
# The colour of a filled area, behind lines and points. It is seen on light and on dark pages.
BAND = "rgba(119, 119, 119, 0.35)"
MARKERS = (
    Marker("o", "circle", '<circle r="4.5"/>'),
    Marker("s", "square", '<rect x="-4" y="-4" width="8" height="8"/>'),
    Marker("D", "diamond", '<path d="M0-5.5 5.5 0 0 5.5-5.5 0z"/>'),
    Marker("^", "triangle-up", '<path d="M0-5 5 4h-10z"/>'),
    Marker("v", "triangle-down", '<path d="M0 5 5-4h-10z"/>'),
    Marker("P", "cross", '<path d="M-2-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z"/>'),
    Marker("X", "x", '<path transform="rotate(45)" d="M-2-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z"/>'),
)
# Markers of events and of means look the same for every cell.
SIGNS = {
    "x": Marker("x", "x-thin", size=9, filled=False),
    "|": Marker("|", "line-ns", size=7, filled=False),
    "bar": Marker("|", "line-ns", size=20, filled=False),
}
# The runs of a cell take these lines one after the other.
DASHES = (
    Line("-", "solid", ""),
    Line("--", "dash", "4 3"),
    Line("-.", "dashdot", "6 2 1 2"),
    Line((0, (7, 2, 1, 2)), "longdashdot", "8 2 1 2"),
)
# These lines have a meaning, which does not depend on the run.
LINES = {"dotted": Line(":", "dot", "1 2"), "dashed": DASHES[1], "long dashes": Line((0, (10, 4)), "longdash", "8 3")}


def style_of(cell: int | None) -> tuple[str, Marker]:
    """Colour and marker of the runs of a cell, the same in every figure; 49 different ones. Grey circles belong to no cell."""
    if cell is None:
        return GREY, MARKERS[0]
    return COLORS[cell % len(COLORS)], MARKERS[(cell + cell // len(COLORS)) % len(MARKERS)]


def line_of(name: str, turn: int = 0) -> Line:
    """The line of this name in `LINES`; every other name takes the line of the run's turn in its cell."""
    return LINES.get(name) or DASHES[turn % len(DASHES)]


def ink_on(value: float | None) -> str:
    """The colour of text on a cell of a heat map, for a value between 0 and 1; the lightness of cividis rises evenly with the value."""
    return "#ffffff" if value is not None and value < 0.5 else "#000000"
