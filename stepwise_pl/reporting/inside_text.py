"""The findings of `patch`, for reading: a small table each for patches, ablations and swaps."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from stepwise_pl.common.statistics import wilson
from stepwise_pl.common.text import percent, percents, table
from stepwise_pl.runs.inside import Ablation, Patch, Swap


class Spot(NamedTuple):
    """A place and layer, with the patches there of all words together."""

    place: str
    layer: int
    moved: float
    effect: float
    pairs: int


def spots(patches: Iterable[Patch]) -> list[Spot]:
    """Return places and layers in the order of the patches; shares are over the pairs of all changed words."""
    parts: dict[tuple[str, int], list[Patch]] = defaultdict(list)
    for patch in patches:
        parts[patch.place, patch.layer].append(patch)
    out = []
    for (place, layer), here in parts.items():
        pairs = sum(patch.pairs for patch in here)
        moved, effect = (
            sum(getattr(patch, name) * patch.pairs for patch in here) / pairs for name in ("moved", "effect")
        )
        out.append(Spot(place, layer, moved, effect, pairs))
    return out


def patch_lines(patches: Sequence[Patch], checkpoints: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the place and layer at which patching moves the answer most, from the end of the prompt on, at each checkpoint.

    Args:
        checkpoints: facts about each (`patch.json`).
    """
    if not patches:
        return []
    rows = []
    for facts in checkpoints:
        late = (
            patch
            for patch in patches
            if patch.checkpoint == facts["checkpoint"]
            if patch.place == "prompt -1" or not patch.place.startswith("prompt")
        )
        # A place that few pairs reach must not win by chance.
        best = max(spots(late), key=lambda spot: (wilson(spot.moved, spot.pairs)[0], spot.effect), default=None)
        where = ["-"] * 4
        if best is not None:
            moved = f"{percent(best.moved)} {percents(wilson(best.moved, best.pairs))}"
            where = [best.place, str(best.layer), moved, f"{best.effect:.2f}"]
        count = f"{facts['right_pairs']} of {facts['pairs']}"
        rows.append([facts["checkpoint"], str(facts["removed_tokens"]), count, *where])
    head = ("patches", "removed tokens", "pairs right", "best place", "layer", "moved [95% Wilson]", "effect")
    lines = [
        *table(head, rows),
        "The place from the end of the prompt on at which most pairs move: the answer becomes that of the other problem.",
    ]
    if any(row[3].startswith("cot") for row in rows):
        lines.append(
            "A place of the CoT is best where the answer copies a token that is left: token=written asks where that token comes from."
        )
    return lines


def ablation_lines(ablations: Sequence[Ablation]) -> list[str]:
    """Return the ablations of the last checkpoint; where a target has several, the one that takes most from the answer."""
    found: dict[str, Ablation] = {}
    for ablation in ablations:
        if ablation.checkpoint == ablations[-1].checkpoint:
            worst = found.setdefault(ablation.target, ablation)
            if ablation.accuracy < worst.accuracy:
                found[ablation.target] = ablation
    if not found:
        return []
    rows = [
        [
            each.target,
            percent(each.decoded),
            percent(each.constant),
            each.place,
            str(each.layer),
            str(each.dimensions),
            percent(each.whole),
            percent(each.accuracy),
            f"{percent(each.random_mean)} {percents((each.random_low, each.random_high))}",
        ]
        for each in found.values()
    ]
    head = (
        "ablations",
        "decoded",
        "constant",
        "place",
        "layer",
        "directions",
        "whole",
        "without",
        "random change [least, most]",
    )
    last = ablations[-1]
    of_answer = all(each.scored.startswith("answer") for each in found.values())
    what = "the answer's tokens" if of_answer else "the target, or of all that is written if the target is gone"
    return [
        *table(head, rows),
        f"{last.checkpoint}; whole, without: accuracy of {what}, teacher-forced, n={last.num_scored}.",
        "without below the least random change: the model needs there what the probe reads. decoded no better than a constant guess: "
        "the probe reads nothing there.",
    ]


def swap_lines(swaps: Sequence[Swap]) -> list[str]:
    """Return the swaps of the last checkpoint: for each word the distance at every token, and means over the tokens."""
    if not swaps:
        return []
    last = [swap for swap in swaps if swap.checkpoint == swaps[-1].checkpoint]
    tokens = list(dict.fromkeys(swap.target for swap in last))
    rows = []
    for word in dict.fromkeys(swap.changed for swap in last):
        here = {swap.target: swap for swap in last if swap.changed == word}
        distances = [f"{here[token].distance:.2f}" if token in here else "" for token in tokens]
        means = [
            percent(fmean(getattr(swap, name) for swap in here.values())) for name in ("should_move", "moved", "right")
        ]
        rows.append([word, *distances, *means])
    head = ("swaps", *tokens, "should move", "moves", "right twice")
    return [
        *table(head, rows),
        f"{last[0].checkpoint}; total variation distance at each token of the answer; shares: means over them.",
    ]
