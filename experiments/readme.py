"""Tables of an experiment's README, between two markers, made from the csv files beside it.

    <!-- table: accuracy -->
    | run | test accuracy |
    |---|---|
    <!-- end -->

A folder's `tables.py` has a function `tables()`: the text of each table by its name. Everything outside the markers is
written by people.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.statistics import over_seeds
from stepwise_pl.common.text import percent, percents

Row = dict[str, str]
NAME = "README.md"
NONE = "–"
MARKED = re.compile(r"^<!-- table: (?P<name>.+?) -->\n(?P<text>.*?)^<!-- end -->$", re.S | re.M)


def read_rows(path: Path) -> list[Row]:
    """The rows of a csv file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a csv file. Floats get six digits; a column that a row lacks stays empty."""
    lines: list[list[object]] = [list(columns)]
    for row in rows:
        values = [row.get(column, "") for column in columns]
        lines.append([f"{value:.6g}" if isinstance(value, float) else value for value in values])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


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


def rewrite(folder: Path, tables: Mapping[str, str]) -> None:
    """Put the tables between the markers of the README."""

    def fresh(found: re.Match[str]) -> str:
        text = tables.get(found["name"], found["text"])
        return f"<!-- table: {found['name']} -->\n{text}<!-- end -->"

    write_text(folder / NAME, MARKED.sub(fresh, _text(folder)))


def _text(folder: Path) -> str:
    return (folder / NAME).read_text(encoding="utf-8")


def command(found: Mapping[Path, Mapping[str, str]]) -> int:
    """Rewrite the tables, or with `--check` only compare them. Return the exit code: 1 if a table differs.

    Args:
        found: the tables of each folder.
    """
    parser = argparse.ArgumentParser(description="Write the tables of the README from the csv files beside it.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table differs")
    if not parser.parse_args().check:
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
