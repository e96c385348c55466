"""Figures of the logit lens: whether the model would say a token that is gone, if it stopped after a layer."""

from collections.abc import Sequence

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Cells, HeatMap, Menu
from stepwise_pl.reporting.figures.inside_grid import Cell, is_empty, names, panel, ranges, share, stairs
from stepwise_pl.reporting.figures.inside_menu import menu_of
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
from stepwise_pl.reporting.figures.inside_probes import LEAVES
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.inside import Lens

SOURCES = {"trained": "trained model", "random": "random weights"}
ANY = "any that is gone"
REMOVED = "CoT tokens removed"


def _sources(rows: Sequence[Lens]) -> dict[str, str]:
    found = {row.source for row in rows}
    return {
        source: SOURCES.get(source, source) for source in [*SOURCES, *sorted(found - SOURCES.keys())] if source in found
    }


def lens_map(run: History, slug: str) -> HeatMap | None:
    """Token by stage: the largest share of problems in which it is the most probable word, over layers and places; None without rows."""
    rows = kept_rows(run.inside.lens)
    removal = Removal.of(run, (name for row in rows for name in (row.token, row.place)))
    stages = stages_of(rows)
    fair = [row for row in rows if not removal.gives_away(Spot.of(row.place), Spot.of(row.token), stage_of(row))]
    best = {
        key: max(found, key=lambda row: row.top)
        for key, found in grouped(fair, lambda row: (row.token, stage_of(row), row.source)).items()
    }
    tokens = names(reversed(in_order(row.token for row in rows)))
    leaves = [
        next((x - 0.5 for x, stage in enumerate(stages) if removal.is_gone(Spot.of(token), stage)), None)
        for token in tokens
    ]
    lines = stairs(leaves, len(stages) - 0.5) if any(place is not None for place in leaves) else []

    def cells(source: str, title: str) -> Cells:
        def cell(stage: Stage, token: str) -> Cell | None:
            row = best.get((token, stage, source))
            return None if row is None else share(row.top, _text(row))

        return panel(stages, tokens, cell, title, lines)

    panels = [cells(source, title) for source, title in _sources(rows).items()]
    if not panels or is_empty(panels):
        return None
    caption = (
        "The state after a layer is turned into words as if the model stopped there: share of problems in which the token is the most probable word, "
        "at the best layer and place that has read neither the token nor one after it. "
        "Control: random weights, with the same choice of layers and places."
    )
    return HeatMap(
        slug, "Would the model say a token that is gone?", caption, f"Heat maps by token and stage. {ranges(panels)}.", REMOVED, "", panels,
        label="share of problems", columns=2, line=LEAVES if lines else "",
    )  # fmt: skip


def lens_menu(run: History, slug: str) -> Menu | None:
    """Layer by place: share of problems in which a token is the most probable word; for each stage and token."""
    rows = kept_rows(run.inside.lens)
    removal = Removal.of(run, (name for row in rows for name in (row.token, row.place)))
    stages = stages_of(rows)
    found: dict[tuple[str, ...], tuple[str, list[Lens]]] = {}
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
    one = rows[0]
    best = {
        key: max(at, key=lambda row: row.top)
        for key, at in grouped(rows, lambda row: (row.place, row.layer, row.source)).items()
    }
    columns, layers = names(in_order(row.place for row in rows)), names(sorted({row.layer for row in rows}))

    def cells(source: str, title: str) -> Cells:
        def cell(place: str, layer: int) -> Cell | None:
            row = best.get((place, layer, source))
            return None if row is None else share(row.top, _text(row), row.token if token == ANY else "")

        return panel(columns, layers, cell, title)

    panels = [cells(source, title) for source, title in _sources(rows).items()]
    which = "the gone token that is so most often (second line)" if token == ANY else token
    caption = (
        f"Share of problems in which {which} is the most probable word, if the model stopped after the layer. Control: random weights. "
        f"{one.removed_tokens} CoT tokens removed, {one.problems} problems."
    )
    return HeatMap(
        slug, f"The lens, layer by layer: {token if token != ANY else 'tokens that are gone'}", caption,
        f"Heat maps by layer and place. {ranges(panels)}.", "place", "layer", panels, label="share of problems", columns=2,
    )  # fmt: skip


def _text(row: Lens) -> str:
    return (
        f"{row.token} at layer {row.layer}, {row.place}\nmost probable in {percent(row.top)} of {row.problems} problems\n"
        f"mean probability {percent(row.probability)}"
    )
