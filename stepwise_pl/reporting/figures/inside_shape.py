"""Figures of how the model is built inside: attention, the geometry of digits, and how alike the states of stages are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from stepwise_pl.common.text import percent
from stepwise_pl.reporting.figures.data import Cells, HeatMap, Menu
from stepwise_pl.reporting.figures.inside_grid import Cell, is_empty, names, number, panel, ranges, share
from stepwise_pl.reporting.figures.inside_menu import MOST_CELLS, Choice, menu_of
from stepwise_pl.reporting.figures.inside_places import Spot, Stage, grouped, in_order, kept_rows, stage_of, stages_of
from stepwise_pl.reporting.figures.inside_probes import REMOVED
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.inside import Attention, Fourier, Similarity

MEAN = "all, mean over heads"
# All tokens that have no row of their own.
REST = "rest"
# Of so few digits there are at most 12 orders that differ, so that the best of them is the 95% quantile of all.
FEW_DIGITS = 5
# More rows than these are parted into several figures.
MOST_ROWS = 24


@dataclass
class Heads:
    """A figure of attention: panels by their titles, with the rows of each.

    Attributes:
        spread: the weight that an even spread gives each place that a place looks at, by place.
        high: the largest weight of all figures, of places that can look at several.
        has_hover: whether the page has room for a text for each cell.
    """

    name: str
    panels: dict[str, list[Attention]]
    removed_tokens: int
    spread: Mapping[str, float]
    high: float
    has_hover: bool


def attention_menu(run: History, slug: str) -> Menu | None:
    """From place to place, at the last stage: the mean over the heads of each layer, and for each layer its heads."""
    rows = kept_rows(run.inside.attention)
    last = max(map(stage_of, rows), default=Stage(0, 0))
    rows = [row for row in rows if stage_of(row) == last]
    looks_at = {
        place: {row.to for row in found} - {REST} for place, found in grouped(rows, lambda row: row.place).items()
    }
    spread = {place: 1 / max(1, len(others)) for place, others in looks_at.items()}
    # A place that can look at itself alone has a weight of 1, which says nothing.
    high = max((row.weight for row in rows if spread[row.place] < 1), default=0.0) or 1.0
    by_layer = sorted(grouped(rows, lambda row: row.layer).items())
    panels = {MEAN: {f"layer {layer}": found for layer, found in by_layer}}
    for layer, found in by_layer:
        heads = sorted(grouped(found, lambda row: row.head).items())
        panels[f"{layer}, each head"] = {f"head {head}": of_head for head, of_head in heads}
    has_hover = len(rows) <= MOST_CELLS
    figures: dict[Choice, Heads] = {
        (name,): Heads(name, found, last.removed_tokens, spread, high, has_hover)
        for name, found in panels.items()
        if found
    }
    return menu_of(slug, ("layer",), figures, _attention_map, (MEAN,), 10 * MOST_CELLS)


def _attention_map(heads: Heads, slug: str) -> HeatMap:
    rows = [row for found in heads.panels.values() for row in found]
    places, keys = names(reversed(in_order(row.place for row in rows))), names(in_order(row.to for row in rows))

    def cells(title: str, found: Sequence[Attention]) -> Cells:
        by_pair = grouped(found, lambda row: (row.to, row.place))
        weights = {pair: fmean(row.weight for row in of_pair) for pair, of_pair in by_pair.items()}

        def cell(to: str, place: str) -> Cell | None:
            if (weight := weights.get((to, place))) is None:
                return None
            times = weight / heads.spread[place]
            return share(weight, f"{title}, from {place} to {to}\n{percent(weight)}, {times:.1f} times an even spread")

        made = panel(keys, places, cell, title)
        return made if heads.has_hover else replace(made, hover=[])

    panels = [cells(title, found) for title, found in heads.panels.items()]
    what = "mean over the heads of each layer" if heads.name == MEAN else f"layer {heads.name}"
    low, most = min(heads.spread.values()), max(heads.spread.values())
    caption = (
        f"Weight of each place (row) on the places that it looks at (column), the mean over problems, {heads.removed_tokens} CoT tokens removed. "
        f"Control: an even spread over the places shown gives {percent(low)} in the longest row, {percent(most)} in the shortest."
    )
    return HeatMap(
        slug, f"Attention: {what}", caption, f"Heat maps by place. {ranges(panels)}.", "looked at", "from", panels, label="attention",
        high=heads.high,
    )  # fmt: skip


def fourier_menu(run: History, slug: str) -> Menu | None:
    """Vectors by stage: the Fourier fit of the digits, beside that of random and of shuffled vectors; for each set of functions and place."""
    rows = kept_rows(run.inside.fourier)
    stages = stages_of(rows)
    # The states of a place are called `<place>, layer <l>`. The embeddings stand in each figure.
    places = in_order(row.what.partition(", layer ")[0] for row in rows if ", layer " in row.what)
    is_long = len({row.what for row in rows}) > MOST_ROWS
    found: dict[Choice, list[Fourier]] = {}
    for basis, of_basis in grouped(rows, lambda row: row.basis).items():
        for place in places if is_long else [""]:
            shown = [
                row
                for row in of_basis
                if ", layer " not in row.what or row.what.startswith(f"{place}, " if place else "")
            ]
            found[basis or "all", place or "all"] = shown
    # More functions say more, and the last place is the one from which the answer comes.
    first = max(
        found, key=lambda choice: (found[choice][0].num_basis, places.index(choice[1]) if is_long else 0), default=None
    )
    return menu_of(slug, ("functions", "vectors"), found, lambda rows, slug: _fourier_map(rows, stages, slug), first)


def _fourier_map(rows: Sequence[Fourier], stages: Mapping[Stage, str], slug: str) -> HeatMap:
    at = {(stage_of(row), row.what): row for row in rows}
    one = rows[0]
    # The first vectors stand above the others.
    vectors = names(reversed(list(dict.fromkeys(row.what for row in rows))))

    def cells(title: str, value: str) -> Cells:
        def cell(stage: Stage, what: str) -> Cell | None:
            row = at.get((stage, what))
            return None if row is None else number(getattr(row, value), _fourier_text(row))

        return panel(stages, vectors, cell, title)

    panels = [
        cells("trained model", "fit"), cells("random vectors: mean", "random_mean"), cells("random: 95% quantile", "random_high"),
        cells("shuffled: 95% quantile", "shuffled_high"),
    ]  # fmt: skip
    panels = [cells for cells in panels if not is_empty([cells])]
    basis = f" ({one.basis})" if one.basis else ""
    caption = (
        f"R² of a fit of the vectors of {one.num_digits} digits by {one.num_basis} functions, 1 and cosines and sines of k turns{basis}: 1 if they "
        "lie on circles. Controls: random vectors, and the same vectors with their digits in random order, which the functions explain in part by chance."
        + f" With {one.num_digits} digits no fit can be above the second control."
        * (one.num_digits <= FEW_DIGITS)
    )
    return HeatMap(
        slug, "Do the digits lie on circles?", caption, f"Heat maps by vectors and stage. {ranges(panels, percents=False)}.", REMOVED, "", panels,
        label="R²", percent=False,
    )  # fmt: skip


def _fourier_text(row: Fourier) -> str:
    shuffled = f"; shuffled: 95% quantile {row.shuffled_high:.3f}" if row.shuffled_high == row.shuffled_high else ""
    return (
        f"{row.what}\nR² {row.fit:.3f}; random: mean {row.random_mean:.3f}, 95% quantile {row.random_high:.3f}{shuffled}\n"
        f"{row.num_basis} functions, {row.num_digits} digits\n{row.checkpoint}, {row.removed_tokens} CoT tokens removed"
    )


def similarity_menu(run: History, slug: str) -> Menu | None:
    """Stage by stage: how alike the states are, a panel for each layer; for each place."""
    by_place = grouped(kept_rows(run.inside.similarity), lambda row: row.place)
    found: dict[Choice, list[Similarity]] = {(place,): by_place[place] for place in in_order(by_place)}
    return menu_of(slug, ("place",), found, _similarity_map)


def _similarity_map(rows: Sequence[Similarity], slug: str) -> HeatMap:
    at = {(stage_of(row), row.layer, row.other): row for row in rows}
    others = {row.other for row in rows}
    of_run = sorted((other for other in others if Spot.of(other).part == "stage"), key=Spot.of)
    # The floor stands at the bottom, the stages of the same run above all.
    floor = ["random"] * ("random" in others)
    below = {
        other: "random weights" if other == "random" else other
        for other in [*floor, *sorted(others - {*of_run, *floor}), *of_run]
    }
    stages = stages_of(rows)

    def cells(layer: int) -> Cells:
        def cell(stage: Stage, other: str) -> Cell | None:
            row = at.get((stage, layer, other))
            return None if row is None else number(row.cka, _similarity_text(row))

        return panel(stages, below, cell, f"layer {layer}")

    panels = [cells(layer) for layer in sorted({row.layer for row in rows})]
    caption = (
        "Linear CKA of the states with those of another stage or model on the same problems: 1 if they are the same up to rotation and scale. "
        "The floor is the row of random weights: what any model of this shape has in common."
    )
    return HeatMap(
        slug, f"How alike are the states? At {rows[0].place}", caption, f"Heat maps by stage and compared model. {ranges(panels, percents=False)}.",
        REMOVED, "compared with", panels, label="CKA", percent=False,
    )  # fmt: skip


def _similarity_text(row: Similarity) -> str:
    return f"layer {row.layer}, place {row.place}\n{row.removed_tokens} CoT tokens removed, with {row.other}: CKA {row.cka:.3f}, n={row.problems}"
