"""The types of figures, which two painters draw: `interactive` for the page, `static` for files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from stepwise_pl.reporting.style import SIGNS, Line, Marker, line_of, style_of

# The text for readers who do not see a figure tells of at most this many runs.
LISTED = 8
# A legend of more cells would take the room of the figure.
LEGEND = 12
# A heat map of more cells has no room for text in them.
MANY_CELLS = 400
# At most so many figures of a menu become files. The page has the others.
FILES = 8


@dataclass
class Series:
    """Points of one run, or of several, in the colour of their cell.

    Attributes:
        x, y: the coordinates of each point; a `y` of None: no point.
        runs: numbers of the runs; the series is shown as long as one of them is. Empty: always.
        cell: number of the runs' cell, which decides colour and shape. None: the series belongs to no cell and is grey.
        hover: a text for each point.
        low, high: interval of each y; empty: none.
        line: solid, dotted, dashed, long dashes, steps, none, or `band`: the area between low and high is filled.
        marker: `run` for the shape of the cell's runs, `x`, `|`, `bar`, or none.
        labels: a text at each point; empty: none.
        label_side: where the labels stand: left or right of their points and above, `below left`, or center.
        turn: the run's place in its cell; the runs of a cell differ in their dashes.
        thin: the series goes with another line of its run.
        key: what the legend calls the cell; empty: the cell's own label.
        meaning: what the line or marker stands for. The legend of a file says it; the caption does on the page.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    runs: list[int]
    cell: int | None
    name: str
    hover: list[str] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    line: str = "solid"
    marker: str = "none"
    labels: list[str] = field(default_factory=list)
    label_side: str = "right"
    turn: int = 0
    thin: bool = False
    key: str = ""
    meaning: str = ""

    @property
    def errors(self) -> tuple[list[float | None], list[float | None]]:
        """The reach of each interval below and above its y. An old evaluation may end a rounding step short of y."""
        below = [None if y is None else max(0.0, y - low) for y, low in zip(self.y, self.low, strict=True)]
        above = [None if y is None else max(0.0, high - y) for y, high in zip(self.y, self.high, strict=True)]
        return below, above

    @property
    def color(self) -> str:
        """As HTML writes it."""
        return style_of(self.cell)[0]

    @property
    def shape(self) -> Marker | None:
        """The marker at the points, if they have one."""
        return None if self.marker == "none" else SIGNS.get(self.marker) or style_of(self.cell)[1]

    @property
    def dashes(self) -> Line | None:
        """The line through the points, if they have one."""
        return None if self.line in ("none", "band") else line_of(self.line, self.turn)


@dataclass
class Panel:
    """Axes that share x with the other axes of their chart.

    Attributes:
        whole: y is counted.
        share: of the chart's height, relative to the other panels (of its width, where the chart has rows).
    """

    y_label: str
    series: list[Series]
    y_range: tuple[float, float] | None = None
    percent: bool = False
    log: bool = False
    whole: bool = False
    share: float = 1.0


@dataclass
class Chart:
    """Panels one below the other.

    Attributes:
        slug: the name of its files, without their ending.
        alt: what the chart shows, for readers who do not see it.
        whole_x: x is counted.
        rows: names of x = 0, 1, ... Such a chart lies on its side: a row for each name, from above, and the panels side by
            side. Only `static` draws rows.
    """

    slug: str
    title: str
    caption: str
    alt: str
    x_label: str
    panels: list[Panel]
    log_x: bool = False
    whole_x: bool = False
    rows: list[str] = field(default_factory=list)

    def legend(self, labels: Sequence[str]) -> dict[int, str]:
        """The names of the chart's cells by number; empty for one cell, or for too many.

        Args:
            labels: the labels of all cells.
        """
        shown: dict[int, str] = {}
        for series in self.panels[0].series:
            if series.cell is not None and not self.rows:
                shown.setdefault(series.cell, series.key or labels[series.cell])
        return shown if 1 < len(shown) <= LEGEND else {}

    def meanings(self) -> dict[str, list[Series]]:
        """The series of each meaning, in the order of the panels."""
        found: dict[str, list[Series]] = {}
        for panel in self.panels:
            for series in panel.series:
                if series.meaning:
                    found.setdefault(series.meaning, []).append(series)
        return found


@dataclass
class Cells:
    """One panel of a heat map. Rows begin at the bottom.

    Attributes:
        x, y: names of the columns and rows, each once. All panels of a heat map have the same.
        values: numbers, [y][x]; None: not known.
        texts: what stands in the cells, [y][x].
        hover: a text for each cell, [y][x]; empty: names and number of the cell.
        title: what the panel shows, where a heat map has several.
        lines: (x0, y0, x1, y1), drawn over the cells. The middle of the first cell is (0, 0), its upper right corner (0.5, 0.5).
    """

    x: list[str]
    y: list[str]
    values: list[list[float | None]]
    texts: list[list[str]]
    hover: list[list[str]]
    title: str = ""
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass
class HeatMap:
    """Numbers from 0 on by two quantities: one panel, or several side by side with one scale of colours.

    Attributes:
        slug: the name of its files, without their ending.
        alt: what the figure shows, for readers who do not see it.
        run: the number of the run that the figure is about, if it is about one.
        label: what the numbers are, beside the scale of colours.
        columns: panels in a row, at most.
        percent: the numbers are shares, written as percentages.
        high: the number of the brightest colour.
        line: what the lines over the cells mean, in words such as `line: the token leaves`.
    """

    slug: str
    title: str
    caption: str
    alt: str
    x_label: str
    y_label: str
    panels: list[Cells]
    run: int | None = None
    label: str = "accuracy"
    columns: int = 4
    percent: bool = True
    high: float = 1.0
    line: str = ""

    @property
    def x(self) -> list[str]:
        """The names of the columns of each panel."""
        return self.panels[0].x

    @property
    def y(self) -> list[str]:
        """The names of the rows of each panel."""
        return self.panels[0].y

    @property
    def across(self) -> int:
        """Panels side by side, where there is room."""
        return min(self.columns, len(self.panels))

    @property
    def down(self) -> int:
        """Rows of panels."""
        return -(-len(self.panels) // self.across)

    @property
    def has_room(self) -> bool:
        """Whether the cells are large enough for their texts."""
        return len(self.panels) * len(self.x) * len(self.y) <= MANY_CELLS

    @property
    def text_size(self) -> tuple[int, int]:
        """Characters of the longest line of text in a cell, and lines of the deepest text; (0, 1) if there is no room for text."""
        texts = (
            [text.split("\n") for panel in self.panels for row in panel.texts for text in row]
            if self.has_room
            else [[""]]
        )
        return max(len(line) for lines in texts for line in lines), max(map(len, texts))


@dataclass
class Menu:
    """Figures of one kind. The page shows one of them, which the reader chooses.

    Attributes:
        slug: the name of the menu on the page.
        keys: what is chosen.
        figures: the figures by their choice, a text for each key.
        first: the choice that is shown first.
        note: a sentence about the menu.
    """

    slug: str
    keys: tuple[str, ...]
    figures: dict[tuple[str, ...], Chart | HeatMap]
    first: tuple[str, ...]
    note: str = ""

    def values(self, key: int) -> list[str]:
        """The values of a key, each once, in the order of the figures."""
        return list(dict.fromkeys(choice[key] for choice in self.figures))

    def files(self) -> list[Chart | HeatMap]:
        """The figures that become files: the one that is shown first; if there is one key, others of its values as well."""
        first = self.figures[self.first]
        others = [figure for figure in self.figures.values() if figure is not first] if len(self.keys) == 1 else []
        return [first, *others[: FILES - 1]]


def log_ticks(values: Sequence[float]) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten; 2 and 5 times them as well, or all multiples, where powers of ten are few."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    steps = range(1, 10) if max(positive) < 4 * min(positive) else (1, 2, 5) if high - low <= 2 else (1,)
    return [float(f"{step}e{power}") for power in range(low, high + 1) for step in steps]


def listed(lines: Sequence[str]) -> str:
    """A sentence about runs. It names only as many as one can listen to."""
    more = f"; and {len(lines) - LISTED} more, which the tables have" if len(lines) > LISTED else ""
    return "; ".join(lines[:LISTED]) + more


def short(share: float) -> str:
    """As many digits of a percentage as fit into a cell. Only a share of 1 is written as 100."""
    return "100" if share == 1 else f"{min(99.9, 100 * share):.3g}" if share > 0.99 else f"{100 * share:.0f}"
