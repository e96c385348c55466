"""Figures of cause: states of another problem put in, directions taken out, words of the prompt replaced."""

import math
from collections.abc import Sequence

from stepwise_pl.common.text import percent, percents
from stepwise_pl.reporting.figures.data import Cells, HeatMap, Menu
from stepwise_pl.reporting.figures.inside_grid import Cell, Line, box, is_empty, names, panel, ranges, share
from stepwise_pl.reporting.figures.inside_menu import Choice, menu_of
from stepwise_pl.reporting.figures.inside_places import Spot, Stage, grouped, in_order, kept_rows, stage_of, stages_of
from stepwise_pl.reporting.figures.inside_probes import REMOVED
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.inside import Ablation, Patch, Swap


def route_menu(run: History, slug: str) -> Menu | None:
    """Changed word by place: answers that follow the state put in, and answers that do not; for each stage and layer.

    The figure shows the ways of all words at once. `patch_menu` has each word by itself, at all layers. None if there is one
    word only.
    """
    rows = kept_rows(run.inside.patches)
    stages = stages_of(rows)
    if len({row.changed for row in rows}) < 2:
        return None
    found = grouped(rows, lambda row: (stage_of(row), row.layer))
    by_choice: dict[Choice, list[Patch]] = {
        (stages[stage], str(layer)): found[stage, layer] for stage, layer in sorted(found)
    }
    # Of the last stage, the layer at which most has left the changed words is shown first.
    last = [choice for choice in by_choice if choice[0] == list(stages.values())[-1]]
    first = max(last, key=lambda choice: _moved_elsewhere(by_choice[choice]))
    return menu_of(slug, (REMOVED, "layer"), by_choice, _route_map, first)


def _moved_elsewhere(rows: Sequence[Patch]) -> float:
    """The number of pairs that move at other places than the changed word, summed over places."""
    return sum(row.moved * row.pairs for row in rows if row.place != row.changed)


def _route_map(rows: Sequence[Patch], slug: str) -> HeatMap:
    one = rows[0]
    columns = names(in_order(row.place for row in rows))
    words = names(reversed(in_order(row.changed for row in rows)))
    at = grouped(rows, lambda row: (row.place, row.changed))
    own = [line for y, word in enumerate(words) if word in columns for line in box(list(columns).index(word), y, y)]

    def cells(title: str, value: str) -> Cells:
        def cell(place: str, changed: str) -> Cell | None:
            here = at.get((place, changed), [])
            if not here:
                return None
            # The pairs of a word may have different targets.
            mean = sum(getattr(row, value) * row.pairs for row in here) / sum(row.pairs for row in here)
            return share(
                mean, "\n".join([f"{changed} replaced", *(f"{row.target}: {_patch_text(row)}" for row in here)])
            )

        return panel(columns, words, cell, title, own)

    panels = [cells("answers as B", "moved"), cells("answers as A", "kept")]
    caption = (
        f"Problem B differs from A in one word (row). The state of B at layer {one.layer} and one place (column) is put into A. Bright on "
        "the left: the answer now follows B, so it comes through this place. Bright on the right: nothing changes, because another place "
        f"still holds the word of A, or because nothing of the word is there. {one.removed_tokens} CoT tokens removed."
    )
    return HeatMap(
        slug, "Through which place does each word reach the answer?", caption,
        f"Heat maps by changed word and place, layer {one.layer}. {ranges(panels)}.", "place", "changed word", panels,
        label="share of pairs", columns=2, line="frame: the changed word itself" if own else "",
    )  # fmt: skip


def patch_menu(run: History, slug: str) -> Menu | None:
    """Layer by place: answers that follow the state put in, and answers that do not; for each stage, changed word and answer token."""
    rows = kept_rows(run.inside.patches)
    stages = stages_of(rows)
    found = grouped(rows, lambda row: (stage_of(row), row.changed, row.target))
    by_choice: dict[Choice, list[Patch]] = {
        (stages[stage], changed, target): at for (stage, changed, target), at in sorted(found.items(), key=_order)
    }
    return menu_of(slug, (REMOVED, "changed word", "answer token"), by_choice, _patch_map)


def _patch_map(rows: Sequence[Patch], slug: str) -> HeatMap:
    one = rows[0]
    columns = names(in_order(row.place for row in rows))
    layers = names(sorted({row.layer for row in rows}))
    at = {(row.place, row.layer): row for row in rows}
    # At the changed word itself, the low layers hold the word, so that the answer must follow.
    own = list(columns).index(one.changed) if one.changed in columns else None
    lines = [] if own is None else box(own, 0, len(layers) - 1)

    def cells(title: str, value: str) -> Cells:
        def cell(place: str, layer: int) -> Cell | None:
            row = at.get((place, layer))
            return None if row is None else share(getattr(row, value), _patch_text(row))

        return panel(columns, layers, cell, title, lines)

    panels = [cells("answers as B", "moved"), cells("answers as A", "kept")]
    caption = (
        f"Problem B differs from A in the word at {one.changed}. The state of B at one layer and place is put into A: bright on the left: "
        f"the answer ({one.target}) now follows B, so the state there decides it; bright on the right: nothing changes. "
        f"{one.removed_tokens} CoT tokens removed, {one.pairs} pairs."
    )
    return HeatMap(
        slug, "Is it used? States of another problem put in", caption, f"Heat maps by layer and place. {ranges(panels)}.",
        "place", "layer", panels, label="share of pairs", columns=2, line="frame: the changed word" if lines else "",
    )  # fmt: skip


def _patch_text(row: Patch) -> str:
    return (
        f"layer {row.layer}, {row.place}\nas B: {percent(row.moved)} {percents((row.low, row.high))}; as A: {percent(row.kept)}\n"
        f"logits go {row.effect:.2f} of the way"
    )


def ablation_map(run: History, slug: str) -> HeatMap | None:
    """Target by stage: what the probe reads; least accuracy without it, after random changes, and with nothing taken out; None if there is nothing."""
    rows = kept_rows(run.inside.ablations)
    targets = names(reversed(in_order(row.target for row in rows)))
    found = grouped(rows, lambda row: (stage_of(row), row.target))

    def cells(title: str, value: str, least: str) -> Cells:
        def cell(stage: Stage, target: str) -> Cell | None:
            at = [row for row in found.get((stage, target), []) if not math.isnan(getattr(row, value))]
            if not at:
                return None
            row = min(at, key=lambda row: float(getattr(row, least)))
            return share(getattr(row, value), _ablation_text(row))

        return panel(stages_of(rows), targets, cell, title)

    panels = [
        cells("its directions taken out", "accuracy", "accuracy"), cells("random directions (least)", "random_low", "random_low"),
        cells("nothing taken out", "whole", "whole"), cells("what the probe reads", "decoded", "accuracy"),
    ]  # fmt: skip
    panels = [cells for cells in panels if not is_empty([cells])]
    if not panels:
        return None
    constants = [row.constant for row in rows if not math.isnan(row.constant)]
    guess = f" (a constant guess: {percent(max(constants))} at most)" if constants else ""
    caption = (
        f"Accuracy of {_scored(rows)} without what linear probes of a target read, at the layer and place where this costs most. "
        "Control: changes of the same size along random directions, the least of all draws, with the same choice of layers and places. "
        f"Dark on the left alone: the model uses what the probe reads. Dark on the right: the probe reads nothing{guess}, so that nothing follows."
    )
    return HeatMap(
        slug, "Is it used? Directions taken out", caption, f"Heat maps by target and stage. {ranges(panels)}.", REMOVED, "", panels,
        columns=4,
    )  # fmt: skip


def ablation_menu(run: History, slug: str) -> Menu | None:
    """Layer by place: accuracy without what the probe reads, and after random changes; for each stage and target.

    None if no target was tried at more than one layer or place.
    """
    rows = kept_rows(run.inside.ablations)
    stages = stages_of(rows)
    found = grouped(rows, lambda row: (stage_of(row), row.target))
    if all(len(at) == 1 for at in found.values()):
        return None
    by_choice: dict[Choice, list[Ablation]] = {
        (stages[stage], target): at for (stage, target), at in sorted(found.items(), key=_order)
    }
    # The target that costs most at the last stage is shown first.
    last = [choice for choice in by_choice if choice[0] == list(stages.values())[-1]]
    first = max(last, key=lambda choice: max(row.random_low - row.accuracy for row in by_choice[choice]))
    return menu_of(slug, (REMOVED, "target"), by_choice, _ablation_layers, first)


def _ablation_layers(rows: Sequence[Ablation], slug: str) -> HeatMap:
    one = rows[0]
    at = {(row.place, row.layer): row for row in rows}

    def cells(title: str, value: str) -> Cells:
        def cell(place: str, layer: int) -> Cell | None:
            row = at.get((place, layer))
            return None if row is None else share(getattr(row, value), _ablation_text(row))

        return panel(
            names(in_order(row.place for row in rows)), names(sorted({row.layer for row in rows})), cell, title
        )

    panels = [cells("its directions taken out", "accuracy"), cells("random directions (mean)", "random_mean")]
    caption = (
        f"Accuracy of {_scored(rows)} without what linear probes of {one.target} read at one layer and place; control: changes of "
        f"the same size along random directions. With nothing taken out: {percent(one.whole)} (n={one.num_scored}, {one.removed_tokens} CoT "
        "tokens removed)."
    )
    return HeatMap(
        slug, f"Where taking {one.target} out costs accuracy", caption, f"Heat maps by layer and place. {ranges(panels)}.", "place", "layer",
        panels, columns=2,
    )  # fmt: skip


def _scored(rows: Sequence[Ablation]) -> str:
    """The tokens that the accuracies are about (`Ablation.scored`)."""
    words = {"answer": "the answer's tokens", "written": "all tokens that are written"}
    return " or ".join(words.get(name, name) for name in sorted({row.scored for row in rows}))


def _ablation_text(row: Ablation) -> str:
    probe = "" if math.isnan(row.decoded) else f"\nthe probe: {percent(row.decoded)}, constant {percent(row.constant)}"
    return (
        f"{row.target}, layer {row.layer}, place {row.place}\nwithout its {row.dimensions} directions: {percent(row.accuracy)}\n"
        f"after random changes of the same size: {percent(row.random_mean)}, {percent(row.random_low)} to {percent(row.random_high)}\n"
        f"nothing taken out: {percent(row.whole)}, n={row.num_scored}" + probe
    )


def swap_menu(run: History, slug: str) -> Menu | None:
    """Changed word by token of the answer: whether the right token moves, the model's, and its probabilities; for each stage."""
    rows = kept_rows(run.inside.swaps)
    stages = stages_of(rows)
    by_choice: dict[Choice, list[Swap]] = {
        (stages[stage],): found for stage, found in sorted(grouped(rows, stage_of).items())
    }
    return menu_of(slug, (REMOVED,), by_choice, _swap_map)


def is_hole(row: Swap) -> bool:
    """Whether the model's token stays where the right one moves: it moves in fewer than half as many pairs."""
    return row.should_move > 0 and row.moved < row.should_move / 2


def _swap_map(rows: Sequence[Swap], slug: str) -> HeatMap:
    one = rows[0]
    columns, words = names(in_order(row.target for row in rows)), names(reversed(in_order(row.changed for row in rows)))
    at = {(row.target, row.changed): row for row in rows}
    holes: list[Line] = []
    for x, target in enumerate(columns):
        for y, changed in enumerate(words):
            if (row := at.get((target, changed))) is not None and is_hole(row):
                holes += box(x, y, y)

    def cells(title: str, value: str, lines: Sequence[Line] = ()) -> Cells:
        def cell(target: str, changed: str) -> Cell | None:
            row = at.get((target, changed))
            return None if row is None else share(getattr(row, value), _swap_text(row))

        return panel(columns, words, cell, title, lines)

    panels = [
        cells("the right token changes", "should_move"), cells("the model's token changes", "moved", holes),
        cells("its probabilities move", "distance", holes),
    ]  # fmt: skip
    count = sum(map(is_hole, rows))
    said = (
        "No hole."
        if not count
        else f"{count} hole{'s' * (count > 1)}: the model's token changes in fewer than half of the pairs in which it must."
    )
    caption = (
        "A word of the prompt is replaced: share of pairs in which the right token of the answer changes, and the model's; and how far the model's "
        f"probabilities move (total variation distance, 0 to 1). {said} {one.removed_tokens} CoT tokens removed, {one.pairs} pairs for each word."
    )
    return HeatMap(
        slug, "Does each word reach the answer?", caption, f"Heat maps by changed word and token of the answer. {ranges(panels)}. {said}",
        "token of the answer", "changed word", panels, label="share, or distance", columns=3, line="frame: a hole, where the right token changes and the model's does not" if holes else "",
    )  # fmt: skip


def _swap_text(row: Swap) -> str:
    return (
        f"{row.changed} replaced, {row.target}\nthe right token changes: {percent(row.should_move)}\nthe model's changes: {percent(row.moved)}\n"
        f"right before and after: {percent(row.right)}\ntotal variation distance: {row.distance:.3f}\n{row.pairs} pairs"
    )


def _order(found: tuple[tuple[Stage, *tuple[str, ...]], object]) -> tuple[Stage, list[Spot]]:
    """Stages ascend, and places and targets come as they are read."""
    stage, *others = found[0]
    return stage, [Spot.of(name) for name in others]
