"""The page: one HTML file, which a browser shows without any other file."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from stepwise_pl import __version__
from stepwise_pl.common.errors import first_line
from stepwise_pl.common.text import percent, percents
from stepwise_pl.reporting import tables
from stepwise_pl.reporting.figures.accuracy import accuracy_chart, mean_accuracy_chart
from stepwise_pl.reporting.figures.budget import budget_chart, examples_chart
from stepwise_pl.reporting.figures.data import Chart, HeatMap, listed
from stepwise_pl.reporting.figures.digits import digits_map
from stepwise_pl.reporting.figures.inside import PARTS, Figure, draw
from stepwise_pl.reporting.figures.loss import loss_chart
from stepwise_pl.reporting.figures.speed import speed_charts, speeds
from stepwise_pl.reporting.figures.sweeps import delta_smoothing_maps
from stepwise_pl.reporting.history import History, labelled_cells
from stepwise_pl.reporting.inside_section import figures_of, files_of, section
from stepwise_pl.reporting.interactive import frame_height, frame_width, spec
from stepwise_pl.reporting.style import line_of, style_of
from stepwise_pl.runs.cells import Cell

F = TypeVar("F", bound=Figure)

HERE = Path(__file__).parent
# Columns of words.
WIDE = ("task", "model", "schedule", "95% Wilson interval")
# These two figures stand side by side on a wide screen.
BESIDE = ("accuracy", "accuracy-examples")


@dataclass
class Figures:
    """Every figure of a report; empty where there is nothing to show.

    Attributes:
        specs: what plotly draws, by slug.
        inside: the look inside each run.
        notes: figures that cannot be drawn, and why; they are left out.
    """

    means: list[Chart]
    accuracy: list[Chart]
    loss: list[Chart]
    speed: list[Chart]
    sweeps: list[HeatMap]
    digits: list[HeatMap]
    inside: list[list[Figure]]
    specs: dict[str, dict[str, Any]]
    notes: list[str]

    @classmethod
    def of(cls, runs: Sequence[History]) -> "Figures":
        """The figures of the runs. A figure that fails costs the report nothing else."""
        specs: dict[str, dict[str, Any]] = {}
        notes: list[str] = []

        def drawn(what: str, make: Callable[[], Sequence[F | None] | F | None]) -> list[F]:
            try:
                made = make()
                found = [figure for figure in (made if isinstance(made, Sequence) else [made]) if figure is not None]
                specs.update({figure.slug: spec(figure) for figure in figures_of(found)})
            except Exception as error:
                notes.append(f"the figure of {what} cannot be drawn ({type(error).__name__}: {first_line(error)})")
                return []
            return found

        by_digit = [
            drawn(f"digits of {run.label}", partial(digits_map, run, number)) for number, run in enumerate(runs)
        ]
        inside = [
            [
                figure
                for part in PARTS
                for figure in drawn(f"inside/{part} of {run.label}", partial(draw, part, run, number))
            ]
            for number, run in enumerate(runs)
        ]
        return cls(
            drawn("mean accuracy", lambda: mean_accuracy_chart(runs)),
            [
                *drawn("accuracy", lambda: accuracy_chart(runs)),
                *drawn("accuracy over examples", lambda: examples_chart(runs)),
                *drawn("accuracy over tokens read", lambda: budget_chart(runs)),
            ],
            drawn("loss", lambda: loss_chart(runs)), drawn("speed", lambda: speed_charts(runs)),
            drawn("the sweep", lambda: delta_smoothing_maps(runs)), [figure for found in by_digit for figure in found],
            inside, specs, notes,
        )  # fmt: skip

    def all(self) -> list[Chart | HeatMap]:
        """Every figure that becomes a file, in the order of the page. Menus have more figures."""
        inside = [figure for parts in self.inside for figure in files_of(parts)]
        return [*self.means, *self.accuracy, *self.loss, *self.speed, *self.sweeps, *self.digits, *inside]


def render(
    runs: Sequence[History], drawn: Figures, notes: Sequence[str], written: str, command: str, *, sweep: str = "",
    every: float | None = None,
) -> str:  # fmt: skip
    """The HTML of the whole file.

    Args:
        notes: further notes, shown before those of the figures and of the runs.
        written: when the page is written.
        command: the command that writes the page.
        sweep: the name of the sweep that the page is about, if it is about one.
        every: seconds after which the page loads itself again; None: it does not.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    # Autoescape keeps all that comes from a run plain text: none of it is read as HTML.
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters["breakable"] = lambda text: Markup("<wbr>").join(re.split(r"(?<=[/+,=._-])", text))
    cells = labelled_cells(runs)
    figure = partial(_figure, labels=[cell.label for cell in cells])
    shown = [_shown(number, run) for number, run in enumerate(runs)]
    measured = {point.run for points in speeds(runs).values() for point in points}
    title, lead = heading(runs, sweep)
    texts = [dict(zip(tables.HEAD, run["texts"], strict=True)) for run in shown]
    same = [name for name in tables.SAID_ABOVE if len({of_run[name] for of_run in texts}) == 1]
    same += [tables.RECIPE] * all(of_run[tables.RECIPE] == tables.NONE for of_run in texts)
    columns = [place for place, name in enumerate(tables.HEAD) if name not in same]
    head = [tables.HEAD[place] for place in columns]
    several = any(len(cell.runs) > 1 for cell in cells)
    context: dict[str, Any] = {
        "title": title, "kicker": kicker(runs), "lead": lead, "every": every, "tiles": tiles(runs), "head": head, "columns": columns, "wide": WIDE, "runs": shown,
        "notes": [*notes, *drawn.notes, *_noted(runs)],
        "cell_head": tables.CELL_HEAD, "cells": list(map(_shown_cell, cells)) if several else [],
        **{name: list(map(figure, getattr(drawn, name))) for name in ("means", "accuracy", "loss", "speed", "sweeps", "digits")},
        "beside": BESIDE, "shortened": {run.label: run.full_label for run in runs if run.full_label != run.label},
        "inside": section(runs, drawn.inside, figure),
        "stages": any(run["stages"] for run in shown), "examples": any(run["examples"] for run in shown),
        "unmeasured": [run.label for number, run in enumerate(runs) if number not in measured],
        "listed": listed,
        "configuration": tables.apart([tables.settings(run) for run in runs]),
        "environment": tables.apart([tables.environment(run) for run in runs]),
        "percent": percent, "percents": percents, "written": written, "command": command, "version": __version__,
        "style": Markup("".join((HERE / name).read_text(encoding="utf-8") for name in ("colors.css", "page.css"))),
        "script": Markup("".join((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "inside.js", "live.js"))),
        "plotly": Markup(get_plotlyjs().replace("</script", "<\\/script")),
        # Without this character, no text can end the script element.
        "figures": Markup(json.dumps(drawn.specs).replace("<", "\\u003c")),
    }  # fmt: skip
    context["sections"] = _sections(context)
    return environment.get_template("page.html").render(context)


def heading(runs: Sequence[History], sweep: str = "") -> tuple[str, str]:
    """The title, which names the sweep if there is one, and a sentence on what was run."""
    what = ", ".join(dict.fromkeys(tables.task_of(run.config) for run in runs))
    if len(runs) == 1:
        (run,) = runs
        name = str(run.summary.get("name") or run.derived.get("name") or run.path.name)
        parts = [what, tables.model_of(run.config), tables.schedule_of(run), f"seed {run.seed}"]
        return name, f"{'; '.join(parts)}. {run.path}"
    title = f"{len(runs)} runs of {what}"
    models = _several("Models", [tables.model_of(run.config) for run in runs])
    schedules = _several("Schedules", [tables.schedule_of(run) for run in runs])
    return f"{sweep}: {title}" if sweep else title, f"{models} {schedules} Seeds: {', '.join(_seeds(runs))}."


def kicker(runs: Sequence[History]) -> str:
    """The words above the title: the methods of the runs."""
    methods = list(dict.fromkeys(run.method for run in runs))
    more = f" and {len(methods) - 6} more" if len(methods) > 6 else ""
    return f"method{'s' * (len(methods) > 1)} {', '.join(methods[:6])}{more}"


def _several(name: str, values: Sequence[str]) -> str:
    first = list(dict.fromkeys(values))
    more = f" and {len(first) - 6} more" if len(first) > 6 else ""
    return f"{name if len(first) > 1 else name[:-1]}: {'; '.join(first[:6])}{more}."


def _seeds(runs: Sequence[History]) -> list[str]:
    return [str(seed) for seed in sorted({run.seed for run in runs})]


def _noted(runs: Sequence[History]) -> list[str]:
    """The notes of the runs. A note that several runs share appears once, behind their labels."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            labels.setdefault(note, []).append(run.label)
    return [f"{', '.join(found)}: {note}" for note, found in labels.items()]


def tiles(runs: Sequence[History]) -> list[dict[str, str]]:
    """The numbers to see first: name, value, and more about the value."""

    def tile(name: str, value: str, more: str = "") -> dict[str, str]:
        return {"name": name, "value": value, "more": more}

    if len(runs) == 1:
        cell = dict(zip(tables.HEAD, tables.key_numbers(runs[0]), strict=True))
        return [
            tile("test accuracy", cell["test accuracy"], _of_test(cell)),
            tile("CoT tokens removed", cell["CoT tokens removed"]),
            tile("steps", cell["steps"], f"{cell['examples']} examples"),
            tile("examples per removed token", cell["examples per removed token"].split()[0], "the paper: 101,000"),
            tile("outcome", cell["outcome"], f"{cell['seconds']} s"),
        ]
    ended = [run for run in runs if "test_accuracy" in run.summary]
    out = [tile("runs", str(len(runs)), f"{len(ended)} ended")]
    # The best mean over seeds is shown. The best seed alone would promise too much.
    cells = [cell for cell in labelled_cells(runs) if cell.ended]
    gone = [[run.summary.get("removed_tokens") == run.max_cot_tokens for run in cell.ended] for cell in cells]
    without = [cell for cell, of_runs in zip(cells, gone, strict=True) if all(of_runs)]
    with_some = [cell for cell, of_runs in zip(cells, gone, strict=True) if not any(of_runs)]
    for name, candidates in (("best without CoT", without), ("best with CoT", with_some)):
        if candidates:
            best = max(candidates, key=lambda cell: cell.accuracy or 0.0)
            row = dict(zip(tables.CELL_HEAD, tables.mean_numbers(best), strict=True))
            what = "seeds" if best.distinct_seeds else "runs"
            seeds = f"mean of {len(best.ended)} {what}" if len(best.ended) > 1 else f"seed {row['seeds']}"
            out.append(
                tile(f"{name}, test", row["test accuracy, mean"], f"{row['95% interval']}, {seeds}, {best.label}")
            )
    collapsed, rollbacks = (
        sum(bool(run.summary.get("collapsed")) for run in ended),
        sum(len(run.rollbacks) for run in runs),
    )
    seconds, steps = (sum(run.summary.get(key, 0) for run in ended) for key in ("seconds", "steps"))
    return [
        *out,
        tile("collapsed", f"{collapsed} of {len(ended)}", f"{rollbacks} rollbacks in all"),
        tile("training", f"{seconds / 60:,.0f} min", f"{steps:,} steps in all"),
    ]


def _of_test(cell: dict[str, str]) -> str:
    """The interval of the test accuracy, and the band that the recipe states."""
    recipe = cell[tables.RECIPE].strip(tables.NONE)
    found = [cell["95% Wilson interval"].strip(tables.NONE), f"{recipe} of the recipe" if recipe else ""]
    return "; ".join(filter(None, found))


def _swatch(cell: int, turn: int = 0) -> dict[str, Any]:
    from markupsafe import Markup

    color, marker = style_of(cell)
    # A black line would be lost on a dark page.
    ink = "var(--ink)" if color == "#000000" else color
    return {"color": ink, "shape": Markup(marker.svg), "dash": line_of("", turn).svg}


def _shown_cell(cell: Cell[History]) -> dict[str, Any]:
    return {"label": cell.label, **_swatch(cell.number), "texts": tables.mean_numbers(cell)}


def _shown(number: int, run: History) -> dict[str, Any]:
    return {
        "number": number, "label": run.label, **_swatch(run.cell, run.turn), "texts": tables.key_numbers(run),
        "stages": run.stages, "differs": any(stage.differs for stage in run.stages),
        "named": any(stage.stage for stage in run.stages), "rollbacks": run.rollbacks,
        "examples": [{**record, "answers": tables.answers(record)} for record in run.last_records if record["samples"]],
    }  # fmt: skip


def _figure(figure: Chart | HeatMap, labels: Sequence[str]) -> dict[str, Any]:
    """The frame of a figure on the page; the height is in pixels."""
    if isinstance(figure, HeatMap):
        keys: dict[int, str] = {}
        height, width, line = frame_height(figure), f"{frame_width(figure)}px", figure.line
    else:
        keys = figure.legend(labels)
        height, width, line = round(142 + max(180, 320 * len(figure.panels) ** 0.6)), "none", ""
    return {
        "slug": figure.slug, "title": figure.title, "caption": figure.caption, "alt": figure.alt, "height": height, "width": width,
        "run": getattr(figure, "run", None), "line": line,
        "legend": [{"label": label, **_swatch(cell)} for cell, label in keys.items()],
    }  # fmt: skip


def _sections(context: dict[str, Any]) -> list[tuple[str, str]]:
    wanted = [
        ("What is missing", "notes", context["notes"]), ("Runs" if len(context["runs"]) > 1 else "Key numbers", "runs", True),
        ("Accuracy", "stages", context["stages"]), ("Loss", "training", context["loss"]), ("Speed", "speed", True),
        ("Sweep", "sweep", context["sweeps"]), ("Digits", "digits", context["digits"]), ("Inside", "inside", context["inside"]), ("Answers", "examples", context["examples"]),
        ("Configuration", "configuration", True), ("Environment", "environment", True),
    ]  # fmt: skip
    return [(name, place) for name, place, there in wanted if there]
