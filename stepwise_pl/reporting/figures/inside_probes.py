"""Figures of probes: which tokens and quantities can be read from the states, where, and from which stage on."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from stepwise_pl.common.text import percent, percents
from stepwise_pl.reporting.figures.data import Cells, HeatMap, Menu
from stepwise_pl.reporting.figures.inside_grid import (
    Cell,
    decimals,
    is_empty,
    names,
    number,
    panel,
    ranges,
    share,
    stairs,
    upright,
)
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
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.inside import CONSTANT, RANDOM, RAW, SHUFFLED, TRAINED, Probe

NAMES = {TRAINED: "trained model", RANDOM: "random weights", RAW: "raw input", SHUFFLED: "shuffled labels"}
FAIR = "Left out: places where the target has been read, or a word that holds it, which would give it away."
CONTROLS = (
    "Controls have the same choice: random weights were never trained, raw input is the tokens without a model, shuffled "
    "labels leave nothing to learn."
)
REMOVED = "CoT tokens removed"
LEAVES = "line: the token leaves"


@dataclass
class Probes:
    """The linear probes of a run, at places where neither the target nor a word that holds it has been read (`Probe.given`).

    Attributes:
        rows: the probes, constants included.
        best: the best one of a target, stage and source: the one that was chosen on problems held back from the fit, if there is one.
        best_of_layer: the best one of a target, stage, source and layer.
    """

    rows: list[Probe]
    stages: dict[Stage, str]
    removal: Removal
    best: dict[tuple[str, Stage, str], Probe]
    best_of_layer: dict[tuple[str, Stage, str, int], Probe]

    @classmethod
    def of(cls, run: History) -> "Probes":
        """The probes of a run; of others than linear ones if it has no linear ones."""
        rows = [row for row in kept_rows(run.inside.probes) if not math.isnan(row.score)]
        kind = "linear" if any(row.probe == "linear" for row in rows) else "mlp"
        fair = [row for row in rows if not row.given and (row.source == CONSTANT or row.probe == kind)]
        removal = Removal.of(run, (row.target for row in rows))
        by_source = grouped(fair, lambda row: (row.target, stage_of(row), row.source))
        by_layer = grouped(fair, lambda row: (row.target, stage_of(row), row.source, row.layer))
        return cls(
            fair, stages_of(rows), removal, {key: _chosen(found) for key, found in by_source.items()},
            {key: _best(found) for key, found in by_layer.items()},
        )  # fmt: skip

    @property
    def kinds(self) -> dict[str, str]:
        """`class` or `number`, by target, in the order of reading."""
        found = {row.target: row.kind for row in self.rows}
        return {target: found[target] for target in in_order(found)}

    def sources(self, targets: Iterable[str]) -> dict[str, str]:
        """The sources that the probes of the targets read, with names: the model, then its controls. The constant is no panel."""
        wanted = set(targets)
        found = {row.source for row in self.rows if row.target in wanted} - {CONSTANT}
        return {
            source: NAMES.get(source, source) for source in [*NAMES, *sorted(found - NAMES.keys())] if source in found
        }

    def at_layer(self, target: str, stage: Stage, source: str, layer: int) -> Probe | None:
        """The best probe at a layer. A source that has only one layer, as the raw input, stands at each layer."""
        found = self.best_of_layer.get((target, stage, source, layer))
        has_layers = len(self._layers_by_source.get(source, ())) > 1
        return found if found is not None or has_layers else self.best.get((target, stage, source))

    @cached_property
    def _layers_by_source(self) -> dict[str, set[int]]:
        """The layers of each source."""
        return {
            source: {row.layer for row in rows} for source, rows in grouped(self.rows, lambda row: row.source).items()
        }

    def lead(self, target: str) -> float:
        """How far the model's probe of a target lies above each control at the last stage."""
        last = {
            source: row
            for (name, stage, source), row in self.best.items()
            if name == target and stage == max(self.stages)
        }
        controls = [row.score for source, row in last.items() if source != TRAINED]
        return last[TRAINED].score - max(controls, default=0.0) if TRAINED in last else -math.inf

    def leaves(self, target: str) -> float | None:
        """The x of the line before the first stage at which the target has left; None if it does not leave."""
        gone = (column for column, stage in enumerate(self.stages) if self.removal.is_gone(Spot.of(target), stage))
        first = next(gone, None)
        return None if first is None else first - 0.5


def _best(rows: Sequence[Probe]) -> Probe:
    return max(rows, key=lambda row: row.score)


def _chosen(rows: Sequence[Probe]) -> Probe:
    """The probe that was chosen on problems held back from the fit; the best one if a table has none such."""
    return _best([row for row in rows if row.chosen] or rows)


def probe_maps(run: History, slug: str) -> list[HeatMap]:
    """Target by stage: the best probe over layers and places, beside its controls; a figure for each family of targets."""
    probes = Probes.of(run)
    families = grouped(probes.kinds, lambda target: (Spot.of(target).part, probes.kinds[target]))
    figures = [
        _family(probes, f"{slug}-{place}", part, kind, targets)
        for place, ((part, kind), targets) in enumerate(families.items(), start=1)
    ]
    return [figure for figure in figures if not is_empty(figure.panels)]


def _family(probes: Probes, slug: str, part: str, kind: str, targets: list[str]) -> HeatMap:
    # The first target stands above the others.
    rows = names(reversed(targets))
    places = [probes.leaves(target) for target in rows]
    lines = stairs(places, len(probes.stages) - 0.5) if any(place is not None for place in places) else []

    def cells(source: str, title: str) -> Cells:
        def cell(stage: Stage, target: str) -> Cell | None:
            return _cell(probes.best.get((target, stage, source)))

        return panel(probes.stages, rows, cell, title, lines)

    panels = [cells(source, title) for source, title in probes.sources(targets).items()]
    what = {"cot": "tokens of the CoT", "answer": "tokens of the answer"}.get(part, part.replace("_", " "))
    is_chosen = all(row.chosen for key, row in probes.best.items() if key[0] in targets and key[2] != CONSTANT)
    held_back = ", chosen on problems that are not scored" if is_chosen else ""
    caption = (
        f"{_measure(kind)}, at the best layer and place{held_back}. {FAIR} {CONTROLS}{_constant(probes, targets, kind)}"
    )
    return HeatMap(
        slug, f"What can be read from the states: {what}", caption, f"Heat maps by target and stage. {ranges(panels, kind == 'class')}.",
        REMOVED, "", panels, label=_label(kind), percent=kind == "class", line=LEAVES if lines else "",
    )  # fmt: skip


def layer_menu(run: History, slug: str) -> Menu | None:
    """Layer by stage: the best probe over places, beside its controls; a figure for each target. None if there are none."""
    probes = Probes.of(run)
    layers = sorted({row.layer for row in probes.rows if row.source == TRAINED}) or sorted(
        {row.layer for row in probes.rows}
    )
    found: dict[Choice, str] = {(target,): target for target in probes.kinds}
    # Of the first family, the target that stands out most from its controls at the last stage is shown first.
    family = [target for target in probes.kinds if Spot.of(target).part == Spot.of(next(iter(probes.kinds))).part]
    first = (max(family, key=probes.lead),) if family else None
    return menu_of(slug, ("target",), found, lambda target, slug: _layers(probes, slug, target, layers), first)


def _layers(probes: Probes, slug: str, target: str, layers: list[int]) -> HeatMap:
    kind, lines = probes.kinds[target], upright(probes.leaves(target), len(layers))

    def cells(source: str, title: str) -> Cells:
        def cell(stage: Stage, layer: int) -> Cell | None:
            return _cell(probes.at_layer(target, stage, source, layer))

        return panel(probes.stages, names(layers), cell, title, lines)

    panels = [cells(source, title) for source, title in probes.sources([target]).items()]
    caption = f"{_measure(kind)}, at the best place of each layer. {FAIR} {CONTROLS}{_constant(probes, [target], kind)}"
    return HeatMap(
        slug, f"In which layer: {target}", caption, f"Heat maps of {target} by layer and stage. {ranges(panels, kind == 'class')}.",
        REMOVED, "layer", panels, label=_label(kind), percent=kind == "class", line=LEAVES if lines else "",
    )  # fmt: skip


def _measure(kind: str) -> str:
    if kind == "class":
        return "Share of unseen problems in which a linear probe reads the target"
    return "R² of a linear probe of the target on unseen problems (1: exact, 0 or less: no better than the mean)"


def _label(kind: str) -> str:
    return "probe accuracy" if kind == "class" else "R²"


def _constant(probes: Probes, targets: Sequence[str], kind: str) -> str:
    """A sentence on the constant guess; empty if there is none."""
    scores = [row.score for row in probes.rows if row.source == CONSTANT and row.target in targets]
    if not scores:
        return ""
    low, high = (percent(end) if kind == "class" else decimals(end) for end in (min(scores), max(scores)))
    return f" A constant guess: {low}." if low == high else f" A constant guess: {low} to {high}."


def _cell(row: Probe | None) -> Cell | None:
    if row is None:
        return None
    is_class = row.kind == "class"
    score = (
        f"{percent(row.score)} {percents((row.low, row.high))}"
        if is_class
        else f"R² {row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"
    )
    error = "" if is_class else f"\nmean error: {row.error:.3g}"
    hover = (
        f"{row.target}, {NAMES.get(row.source, row.source)}\n{score}, n={row.num_scored}{error}\n"
        f"{row.probe} probe at layer {row.layer}, place {row.place}\n{row.checkpoint}, {row.removed_tokens} CoT tokens removed"
    )
    return (share if is_class else number)(row.score, hover)
