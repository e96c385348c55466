"""A map over two swept keys with its numbers, and laws, in a sweep folder: `sweep x= y= value= fit=`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.text import counted
from stepwise_pl.reporting.figures.maps import map_slug, sweep_map
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.reporting.sweep_laws import law_lines, law_rows, laws_of, require_numbers
from stepwise_pl.runs.cells import Cell, SweepRun, csv_of
from stepwise_pl.runs.measures import MEASURES, MeasuredRun, measured
from stepwise_pl.runs.sweep_folder import alone


@dataclass(frozen=True)
class Question:
    """A question to a sweep that its table does not answer.

    Attributes:
        value: the name of a measure.
        x, y: swept keys of a map; both or none.
        fit: the swept key of laws; None: no law is fitted.
    """

    value: str
    x: str | None = None
    y: str | None = None
    fit: str | None = None


def answer(folder: Path, cells: Sequence[Cell[SweepRun]], question: Question) -> str:
    """Write the map and the laws into the sweep folder, and return the lines that tell of them. The sweep may still be running.

    Raises:
        UserError: a key was not swept, or is no number in the case of `fit`; or a file of a run is damaged.
    """
    runs = measured(folder, cells, MEASURES[question.value])
    x, y, fit = (
        named and swept_key(name, named, cells)
        for name, named in (("x", question.x), ("y", question.y), ("fit", question.fit))
    )
    if fit:
        require_numbers(runs, fit)
    sections: list[tuple[str, list[str]]] = []
    with alone(folder):
        if x and y:
            sections.append(("map", _draw(folder, runs, question.value, x, y)))
        if fit:
            sections.append(("laws", _fit(folder, runs, question.value, fit)))
    lines = [f"{'' if i else name:16}{line}" for name, texts in sections for i, line in enumerate(texts)]
    return "\n".join([*lines, ""])


def swept_key(setting: str, named: str, cells: Sequence[Cell[SweepRun]]) -> str:
    """The key that a setting names, as it stands in the sweep, where it may begin with `+`.

    Raises:
        UserError: it was not swept, or is the seed.
    """
    keys = {key.lstrip("+"): key for cell in cells for key in cell.config}
    if (found := keys.get(named.lstrip("+"))) is not None:
        return found
    there = f"the swept keys are {', '.join(keys)}" if keys else "no key besides the seed was swept"
    if named == "seed":
        raise UserError(f"{setting}=seed: maps and laws are about all seeds together; {there}")
    raise UserError(f"{setting}={named}: was not swept; {there}")


def _draw(folder: Path, runs: Sequence[MeasuredRun], value: str, x: str, y: str) -> list[str]:
    """Write the map and its numbers; return lines about them."""
    slug = map_slug(value, x, y)
    # Jobs that have not ended have a row as well, so the numbers are written even if there is no map yet.
    write_text(folder / f"{slug}.csv", csv_of(run_rows(runs, value)))
    drawn = sweep_map(runs, value, x, y, folder.resolve().name)
    if drawn is None:
        return ["not drawn, because no run with both keys has ended", str(folder / f"{slug}.csv")]
    write_figure(drawn, [], folder)
    lines = [f"{value}: {MEASURES[value].meaning}", f"{folder / slug}.png, .svg, .csv"]
    if out := sum(x not in run.config or y not in run.config for run in runs):
        lines.append(f"{counted(out, 'job')} of another command did not sweep both keys and left out")
    return lines


def run_rows(runs: Sequence[MeasuredRun], value: str) -> list[dict[str, Any]]:
    """A row for each run: swept keys, seed, folder, outcome and number. The map can be drawn again from them."""
    marks = MEASURES[value].marks
    return [
        {
            **run.config,
            "seed": run.seed,
            "run": run.run,
            "outcome": run.outcome,
            value: run.value,
            **({"never_at_95": "yes" if run.never_at_95 else "no"} if marks and run.has_ended else {}),
        }
        for run in runs
    ]


def _fit(folder: Path, runs: Sequence[MeasuredRun], value: str, key: str) -> list[str]:
    """Write the laws; return lines about them."""
    laws = laws_of(runs, key)
    write_text(folder / "fits.csv", csv_of(law_rows(laws, value, key)))
    head = f"{value} = a · {key.lstrip('+')}^b, by least squares of the logarithms over all seeds, b with its 95% interval (t)"
    return [head, *law_lines(laws, key), str(folder / "fits.csv")]
