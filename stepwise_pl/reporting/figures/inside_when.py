"""The figure of when each token of the CoT leaves, and when it can be read."""

from collections.abc import Sequence

from stepwise_pl.reporting.figures.data import Chart, Panel, Series, listed
from stepwise_pl.reporting.figures.inside_places import Spot, Stage, grouped, stage_of
from stepwise_pl.reporting.figures.inside_probes import Probes
from stepwise_pl.reporting.history import History
from stepwise_pl.runs.inside import CONSTANT, TRAINED, Probe

# Dots of the two places stand side by side, this far from the middle.
ASIDE = 0.12
WRITTEN, PROMPT = "where it would be written", "at the end of the prompt"


def when_chart(run: History, slug: str) -> Chart | None:
    """When each token of the CoT leaves, and the stages at which a probe beats its controls; None if no token is probed."""
    probes = Probes.of(run)
    tokens = {Spot.of(target).number: target for target in probes.kinds if Spot.of(target).part == "cot"}
    if not tokens or not probes.removal.length:
        return None
    # The interval of the model's probe must lie above those of all controls at the same place.
    rows = grouped(probes.rows, lambda row: (row.target, stage_of(row)))
    leaves = {token: _leaves_at(token, probes) for token in tokens}
    top = max([*leaves.values(), *(stage.removed_tokens for stage in probes.stages)]) + 1
    series = [Series(
        list(tokens), list(leaves.values()), [], None, "leaves", [f"{target} leaves as token {leaves[token]}" for token, target in tokens.items()],
        line="solid", meaning="the token leaves",
    )]  # fmt: skip
    said = []
    for cell, (name, parts) in enumerate(((WRITTEN, ("prompt", "thought", "cot")), (PROMPT, ("prompt", "thought")))):
        read = {
            token: [
                stage.removed_tokens
                for stage in probes.stages
                if is_above(_at_last(rows.get((target, stage), []), parts))
            ]
            for token, target in tokens.items()
        }
        series += _dots(cell, name, read, leaves, top)
        said += [
            f"token {token}, {name}: at {', '.join(map(str, counts)) or 'none'} removed, leaves at {leaves[token]}"
            for token, counts in read.items()
        ]
    caption = (
        "Line: the number of removed tokens at which a token leaves. Dot: a kept stage at which a linear probe reads the token better than "
        "every control at the same place (95% intervals apart): where it is written, or would be, and at the end of the prompt, before "
        "any token of the CoT is read. Dots below the line: before it leaves. Dots on the line or above: it has left, and can be read. "
        "×: at no kept stage."
    )
    return Chart(
        slug, "When a token leaves, and when it can be read", caption, f"Chart by token of the CoT. {listed(said)}.", "token of the CoT",
        [Panel("CoT tokens removed", series, (-0.7, top + 0.7), whole=True)], whole_x=True,
    )  # fmt: skip


def _leaves_at(token: int, probes: Probes) -> int:
    """The number of removed tokens at which a token is gone."""
    counts = range(1, probes.removal.length + 1)
    return next(
        (count for count in counts if probes.removal.is_gone(Spot.of(f"cot {token}"), Stage(count, 0))), len(counts) + 1
    )


def _at_last(rows: Sequence[Probe], parts: Sequence[str]) -> list[Probe]:
    """The probes at the last place of these parts, and the constant."""
    places = {row.place for row in rows if row.source != CONSTANT and Spot.of(row.place).part in parts}
    last = max(places, key=Spot.of, default=None)
    return [row for row in rows if row.source == CONSTANT or row.place == last]


def is_above(rows: Sequence[Probe]) -> bool:
    """Whether the interval of the model's best probe lies above the interval of each control. Without a control, no probe is above."""
    model = max((row for row in rows if row.source == TRAINED), key=lambda row: row.score, default=None)
    controls = [row.high for row in rows if row.source not in (TRAINED, CONSTANT)]
    constants = [row.high for row in rows if row.source == CONSTANT]
    return model is not None and bool(controls) and model.low > max(*controls, *constants, 0.0)


def _dots(cell: int, name: str, read: dict[int, list[int]], leaves: dict[int, int], top: int) -> list[Series]:
    """A dot for each token and stage at which it can be read, and a cross at the top for each token that never can.

    Args:
        read: the removed tokens at these stages, by token.
    """
    found = [(token, count) for token, counts in read.items() for count in counts]
    aside = ASIDE * (2 * cell - 1)
    series = []
    if found:
        hover = [
            f"token {token}, {name}:\ncan be read with {count} removed, {_before(leaves[token] - count)}"
            for token, count in found
        ]
        series.append(Series(
            [token + aside for token, _ in found], [count for _, count in found], [], cell, name, hover, line="none", marker="run", key=name,
        ))  # fmt: skip
    if never := [token for token, counts in read.items() if not counts]:
        hover = [f"token {token}, {name}:\ncan be read at no kept stage" for token in never]
        series.append(Series(
            [token + aside for token in never], [top] * len(never), [], cell, f"{name}: never", hover, line="none", marker="x", key=name,
            meaning="at no kept stage",
        ))  # fmt: skip
    return series


def _before(distance: int) -> str:
    if distance > 0:
        return f"{distance} before it leaves"
    return f"{-distance} after it leaves" if distance else "as it leaves"
