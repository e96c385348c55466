"""Figures of the logit lens: whether the model would say a token that is gone, if it stopped after a layer."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Cells, HeatMap, Menu
from stepwise_pl.reporting.figures.inside_grid import Cell, is_empty, names, panel, ranges, share, stairs
from stepwise_pl.reporting.figures.inside_menu import Choice, menu_of
from stepwise_pl.reporting.figures.inside_places import (
    Removal,
    Spot,
    Stage,
    grouped,
    in_order,
    kept_rows,
    stage_of,
    stages_of,
)
from stepwise_pl.reporting.figures.inside_probes import LEAVES, REMOVED
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.inside import RANDOM, TRAINED, Lens

K = TypeVar("K")
# Tokens of the menu that are no tokens of the table, or no places.
ANY, NEXT = "any that is gone", "next"
# Places of a panel, at most, that stands beside others. Panels of more stand below each other.
MOST_ABREAST = 12
CONTROLS = (
    "Controls: random weights; and chance, the share in which the word said in one problem is the token of another."
)
COPIES = "A token that also stands in the prompt or in the answer is bright without any reasoning, at its copy or one place before."


def lens_map(run: History, slug: str) -> HeatMap | None:
    """Token by stage: the largest share of problems in which it is the most probable word, over layers and places; None without rows."""
    rows = [row for row in kept_rows(run.inside.lens) if Spot.of(row.token).part == "cot"]
    removal, stages = _removal(run, rows), stages_of(rows)
    fair = [row for row in rows if not removal.gives_away(Spot.of(row.place), Spot.of(row.token), stage_of(row))]
    # The first token stands above the others.
    tokens = names(reversed(in_order(row.token for row in rows)))
    leaves = [
        next((x - 0.5 for x, stage in enumerate(stages) if removal.is_gone(Spot.of(token), stage)), None)
        for token in tokens
    ]
    lines = stairs(leaves, len(stages) - 0.5) if any(place is not None for place in leaves) else []
    best = _best(fair, lambda row: (stage_of(row), row.token))

    def cells(source: str, value: str, title: str) -> Cells:
        def cell(stage: Stage, token: str) -> Cell | None:
            row = best.get((source, (stage, token)))
            return None if row is None else share(getattr(row, value), _text(row))

        return panel(stages, tokens, cell, title, lines)

    panels = _panels(cells)
    if not panels:
        return None
    caption = (
        "The state after a layer is turned into words as if the model stopped there: share of problems in which the token is the most "
        "probable word, at the best layer and place that has read neither the token nor one after it. "
        f"{CONTROLS} {COPIES}"
    )
    return HeatMap(
        slug, "Would the model say a token that is gone?", caption, f"Heat maps by token and stage. {ranges(panels)}.", REMOVED, "", panels,
        label="share of problems", columns=3, line=LEAVES if lines else "",
    )  # fmt: skip


def lens_menu(run: History, slug: str) -> Menu | None:
    """Layer by place: share of problems in which a token is the most probable word; for each stage and token."""
    rows = kept_rows(run.inside.lens)
    removal, stages = _removal(run, rows), stages_of(rows)
    found: dict[Choice, tuple[str, list[Lens]]] = {}
    for stage, of_stage in sorted(grouped(rows, stage_of).items()):
        by_token = grouped(of_stage, lambda row: row.token)
        for token in in_order(by_token):
            found[stages[stage], token] = token, by_token[token]
        if gone := [row for row in of_stage if removal.is_gone(Spot.of(row.token), stage)]:
            found[stages[stage], ANY] = ANY, gone
    last = (list(stages.values()) or [""])[-1], ANY
    return menu_of(slug, (REMOVED, "token"), found, _layers, last if last in found else None)


def _layers(found: tuple[str, Sequence[Lens]], slug: str) -> HeatMap:
    token, rows = found
    best = _best(rows, lambda row: (row.place, row.layer))
    columns, layers = names(in_order(row.place for row in rows)), names(sorted({row.layer for row in rows}))

    def cells(source: str, value: str, title: str) -> Cells:
        def cell(place: str, layer: int) -> Cell | None:
            row = best.get((source, (place, layer)))
            return None if row is None else share(getattr(row, value), _text(row), row.token if token == ANY else "")

        return panel(columns, layers, cell, title)

    panels = _panels(cells)
    which = {ANY: "the gone token that is so most often there", NEXT: "the right next one"}.get(token, token)
    caption = (
        f"Share of problems in which {which} is the most probable word, if the model stopped after the layer. {CONTROLS} "
        f"{f'{COPIES} ' if token == ANY else ''}{rows[0].removed_tokens} CoT tokens removed, {rows[0].problems} problems."
    )
    titles = {ANY: "tokens that are gone", NEXT: "the right next token"}
    return HeatMap(
        slug, f"The lens, layer by layer: {titles.get(token, token)}", caption, f"Heat maps by layer and place. {ranges(panels)}.", "place",
        "layer", panels, label="share of problems", columns=3 if len(columns) <= MOST_ABREAST else 1,
    )  # fmt: skip


def _removal(run: History, rows: Iterable[Lens]) -> Removal:
    return Removal.of(run, (name for row in rows for name in (row.token, row.place)))


def _best(rows: Iterable[Lens], key: Callable[[Lens], K]) -> dict[tuple[str, K], Lens]:
    """The row with the largest share, by source and key."""
    found = grouped(rows, lambda row: (row.source, key(row)))
    return {both: max(at, key=lambda row: row.top) for both, at in found.items()}


def _panels(cells: Callable[[str, str, str], Cells]) -> list[Cells]:
    """The model, random weights, and chance; those that are empty are left out. No panel if there is nothing of the model."""
    model, *controls = (
        cells(TRAINED, "top", "trained model"),
        cells(RANDOM, "top", "random weights"),
        cells(TRAINED, "chance", "chance"),
    )
    return [] if is_empty([model]) else [model, *(control for control in controls if not is_empty([control]))]


def _text(row: Lens) -> str:
    chance = f"; by chance {percent(row.chance)}" if row.chance == row.chance else ""
    return (
        f"{row.token} at layer {row.layer}, {row.place}\nmost probable in {percent(row.top)} of {row.problems} problems{chance}\n"
        f"mean probability {percent(row.probability)}"
    )
