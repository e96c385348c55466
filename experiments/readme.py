"""Tables of an experiment's README, between two markers, made from the csv files beside it.

    <!-- table: accuracy -->
    | run | test accuracy |
    |---|---|
    <!-- end -->

A folder's `tables.py` has a function `tables()`: the text of each table by its name. Everything outside the markers is
written by people.
"""

import argparse
import contextlib
import csv
import io
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.statistics import over_seeds
from stepwise_pl.common.text import percent, percents

Row = dict[str, str]


class _NamedRow(Row):
    """A row of a csv file. A column that is asked for and not there is an error that names the file."""

    def __init__(self, cells: Mapping[str, str], path: Path) -> None:
        super().__init__(cells)
        self.path = path

    def __missing__(self, column: str) -> str:
        raise UserError(f"{self.path}: has no column {column}")


NAME = "README.md"
NONE = "–"
MARKED = re.compile(r"^<!-- table: (?P<name>.+?) -->\n(?P<text>.*?)^<!-- end -->$", re.S | re.M)


def read_rows(path: Path) -> list[Row]:
    """The rows of a csv file.

    Raises:
        UserError: the file cannot be read, or is cut off.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if text and not text.endswith("\n"):
        raise UserError(f"{path}: is cut off, for its last line has no end; restore the file")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[Row] = []
    for cells in reader:
        if None in cells or None in cells.values():
            raise UserError(f"{path}: line {reader.line_num} has more or fewer cells than the first line")
        rows.append(_NamedRow(cells, path))
    return rows


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a csv file. Floats get six digits; a column that a row lacks stays empty."""
    lines: list[list[object]] = [list(columns)]
    for row in rows:
        values = [row.get(column, "") for column in columns]
        lines.append([f"{value:.6g}" if isinstance(value, float) else value for value in values])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    # In one go: a run may be gone, so a file that is cut off could not be made again.
    write_text(path, file.getvalue())


def replaced(
    rows: Iterable[Row], fresh: Sequence[Mapping[str, object]], key: Sequence[str]
) -> list[Mapping[str, object]]:
    """All rows, in which fresh rows stand in place of those with the same key. Fresh rows of a new key come last.

    Args:
        key: the columns that tell whose rows they are, such as run and seed.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault(_key(row, key), []).append(row)
    for mine in dict.fromkeys(_key(row, key) for row in fresh):
        groups[mine] = [row for row in fresh if _key(row, key) == mine]
    return [row for group in groups.values() for row in group]


def _key(row: Mapping[str, object], columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in columns)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table.

    Raises:
        ValueError: a row has more or fewer cells than the head.
    """
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    if any(len(line) != len(head) for line in lines):
        raise ValueError(f"a row of the table of {', '.join(head)} has too many or too few cells")
    rule = "|" + "---|" * len(head)
    return "".join(f"{rule if number == 1 else '| ' + ' | '.join(line) + ' |'}\n" for number, line in enumerate(lines))


def mean_cell(accuracies: Sequence[float], examples: int) -> str:
    """`99.6% [99.4%, 99.7%] t`: the mean over seeds, its 95% interval, and the kind of the interval."""
    low, high, kind = over_seeds(accuracies, examples)
    return f"{percent(fmean(accuracies))} {percents((low, high))} {kind}"


def span(values: Sequence[float], form: str) -> str:
    """`1,950 to 2,350`, or one number if all are written alike; `–` if there is none."""
    if not values:
        return NONE
    ends = dict.fromkeys(format(value, form) for value in (min(values), max(values)))
    return " to ".join(ends)


def alike(cells: Sequence[str]) -> str:
    """`8, 8, 5`: the cells of the seeds; `8` where all are the same."""
    return cells[0] if len(set(cells)) == 1 else ", ".join(cells)


def differences(folder: Path, tables: Mapping[str, str]) -> list[str]:
    """A line for each table of the README that is not what the csv files give, or has no marker, or no csv rows."""
    shown = {found["name"]: found["text"] for found in MARKED.finditer(_text(folder))}
    return [
        *(f"{folder.name}: {name}: README.md has no `<!-- table: {name} -->`" for name in tables if name not in shown),
        *(f"{folder.name}: {name}: no such table" for name in shown if name not in tables),
        *(f"{folder.name}: {name}" for name, text in tables.items() if shown.get(name, text) != text),
    ]


def made(folder: Path, tables: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    """Make the tables of a folder.

    Raises:
        UserError: a csv file lacks what they need, or has something else in its place.
    """
    try:
        return tables()
    except (ValueError, LookupError, ZeroDivisionError, statistics.StatisticsError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{folder}: no table can be made of its csv files ({reason}); look for a damaged cell"
        ) from error


def rewrite(folder: Path, tables: Mapping[str, str]) -> None:
    """Put the tables between the markers of the README."""

    def fresh(found: re.Match[str]) -> str:
        text = tables.get(found["name"], found["text"])
        return f"<!-- table: {found['name']} -->\n{text}<!-- end -->"

    write_text(folder / NAME, MARKED.sub(fresh, _text(folder)))


def _text(folder: Path) -> str:
    return (folder / NAME).read_text(encoding="utf-8")


@contextlib.contextmanager
def told() -> Iterator[None]:
    """End a script with one line, and status 2, at an error that its user can put right."""
    try:
        yield
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def command(tables_of: Mapping[Path, Callable[[], Mapping[str, str]]]) -> int:
    """Rewrite the tables, or with `--check` only compare them. Return the exit code: 1 if a table differs.

    Args:
        tables_of: makes the tables of each folder.
    """
    parser = argparse.ArgumentParser(description="Write the tables of the README from the csv files beside it.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table differs")
    is_check = parser.parse_args().check
    with told():
        found = {folder: made(folder, tables) for folder, tables in tables_of.items()}
    if not is_check:
        for folder, tables in found.items():
            rewrite(folder, tables)
    lines = [line for folder, tables in found.items() for line in differences(folder, tables)]
    print("\n".join(lines or ["every table is what its csv files give"]))
    if lines:
        print(
            "these tables of README.md are not what the csv files give: without --check this command writes them; a marker that is "
            "missing (or too many) is put in (or taken out) by hand", file=sys.stderr,
        )  # fmt: skip
    return 1 if lines else 0
