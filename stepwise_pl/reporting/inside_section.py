"""The section of the page about a look inside runs: its figures, menus, and the lens word by word."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from stepwise_pl.reporting.figures.data import Chart, HeatMap, Menu
from stepwise_pl.reporting.figures.inside import Figure
from stepwise_pl.reporting.history import History
from stepwise_pl.reporting.probe_text import conclusions, findings

Frame = Callable[[Chart | HeatMap], dict[str, Any]]


def figures_of(parts: Sequence[Figure]) -> list[Chart | HeatMap]:
    """All figures, those of menus too."""
    return [figure for part in parts for figure in (part.figures.values() if isinstance(part, Menu) else [part])]


def files_of(parts: Sequence[Figure]) -> list[Chart | HeatMap]:
    """The figures that become files."""
    return [figure for part in parts for figure in (part.files() if isinstance(part, Menu) else [part])]


def section(runs: Sequence[History], drawn: Sequence[Sequence[Figure]], frame: Frame) -> list[dict[str, Any]]:
    """Return the part of the page on each run into which somebody has looked.

    Args:
        drawn: the figures of each run.
        frame: makes the frame of a figure.
    """
    return [
        {
            "run": number, "said": conclusions(findings(run.inside.probes)),
            "parts": [_part(part, frame) for part in parts], "words": _words(run, number),
        }
        for number, (run, parts) in enumerate(zip(runs, drawn, strict=True))
        if parts or run.inside.grids
    ]  # fmt: skip


def _part(part: Figure, frame: Frame) -> dict[str, Any]:
    """A figure, or a menu: the values of each key, and the figures with their places in these lists."""
    if not isinstance(part, Menu):
        return {"figures": [{"frame": frame(part), "choice": "", "is_first": True}], "picks": []}
    values = [part.values(key) for key in range(len(part.keys))]

    def numbers(choice: Sequence[str]) -> str:
        return " ".join(str(of_key.index(value)) for of_key, value in zip(values, choice, strict=True))

    return {
        "figures": [
            {"frame": frame(figure), "choice": numbers(choice), "is_first": choice == part.first}
            for choice, figure in part.figures.items()
        ],
        "picks": [
            {"name": name, "options": of_key, "first": of_key.index(first)}
            for name, of_key, first in zip(part.keys, values, part.first, strict=True)
        ],
        "slug": part.slug, "note": part.note,
    }  # fmt: skip


def _words(run: History, number: int) -> dict[str, Any] | None:
    """The lens word by word: what the script of the page reads, and the problems and stages to choose from."""
    from markupsafe import Markup

    grids = run.inside.grids
    if not grids:
        return None
    problems = {grid.problem: grid.prompt for grid in grids}
    stages = sorted({(grid.removed_tokens, grid.stage, grid.checkpoint) for grid in grids})
    numbers = list(problems)
    shown = {
        f"{numbers.index(grid.problem)} {stages.index((grid.removed_tokens, grid.stage, grid.checkpoint))}": {
            key: getattr(grid, key)
            for key in ("cot", "answer", "layers", "places", "read", "next", "words", "probabilities")
        }
        for grid in grids
    }
    return {
        "slug": f"inside-{number + 1}-words", "prompts": list(problems.values()), "last": len(stages) - 1,
        "stages": [f"{removed} removed ({checkpoint})" for removed, _, checkpoint in stages],
        # Without this character, no text can end the script element.
        "data": Markup(json.dumps(shown).replace("<", "\\u003c")),
    }  # fmt: skip
