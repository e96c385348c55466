"""The findings of `lens`, as small tables for reading."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepwise_pl.common.text import counted, percent, table
from stepwise_pl.runs.inside import PARTS, Fourier, Lens, Similarity

TRAINED, RANDOM = "trained", "random"
MOST_PLACES = 24  # in a table of similarity
# The bases that are printed; fourier.csv has all. Six functions on ten digits are published (arXiv 2510.00184).
BASES = ("k 1", "k 2", "k 1-2", "k 1-2, (-1)^n")

Clearest = Mapping[tuple[str, str, str], Lens]  # by checkpoint, token and source


def lens_lines(
    lens: Sequence[Lens], fourier: Sequence[Fourier], similarity: Sequence[Similarity], facts: Mapping[str, Any]
) -> list[str]:
    """Return the lines about the tables of one run; `facts` is the content of lens.json."""
    parts = [gone_lines(lens, facts), fourier_lines(fourier, facts), similarity_lines(similarity, facts)]
    return [line for part in parts if part for line in [*part, ""]][:-1]


def gone_lines(lens: Sequence[Lens], facts: Mapping[str, Any]) -> list[str]:
    """Return where tokens that are gone appear in the lens: the clearest at each checkpoint, and all of them at the last one.

    The best of many layers, places and tokens is high by chance. So the best of as many with random weights stands beside it.
    """
    if not lens:
        return []
    clearest = _clearest(lens, facts["copies"])
    each = []
    for checkpoint in facts["checkpoints"]:
        copies = _copies(checkpoint, facts)
        tokens = [token for token in checkpoint["gone"] if token not in copies]
        if cells := _cells(clearest, checkpoint["checkpoint"], tokens):
            each.append([checkpoint["checkpoint"], str(len(checkpoint["gone"])), str(len(copies)), *cells])
    last = facts["checkpoints"][-1]
    copies = _copies(last, facts)
    every = [
        [*(_cells(clearest, last["checkpoint"], [token]) or [token, *["-"] * 4]), ", ".join(copies.get(token, []))]
        for token in last["gone"]
    ]
    if not every:
        return ["The lens: no token that it looks for is gone."]
    head = ("at best", "top", "by chance", "random weights")
    lines = [
        "The lens: share of the problems in which a gone token is the most probable word, at its best layer and place."
    ]
    if each:
        lines += [
            "The clearest at each checkpoint:",
            *table(("checkpoint", "gone", "copies", "clearest", *head), each),
            "",
        ]
    return [
        *lines,
        f"All at {last['checkpoint']}:",
        *table(("gone token", *head, "also stands at"), every),
        "by chance: if the word said had nothing to do with the problem; random weights: their share, at best as well;",
        "also stands at: this place holds the same token in every problem. Only places before it are looked at. Such copies are gone, too,",
        "but are never the clearest.",
    ]


def _clearest(lens: Iterable[Lens], copies: Mapping[str, Sequence[str]]) -> Clearest:
    """Return the layer and place at which each token is furthest above chance, of the places that have read no copy of it."""
    first_copy = {token: min(map(_order, places)) for token, places in copies.items()}
    best: dict[tuple[str, str, str], Lens] = {}
    for row in lens:
        key = (row.checkpoint, row.token, row.source)
        has_read = row.token in first_copy and _order(row.place) >= first_copy[row.token]
        if not has_read and (key not in best or _excess(row) > _excess(best[key])):
            best[key] = row
    return best


def _order(place: str) -> tuple[int, int]:
    """Return a key that sorts places as they are read."""
    part, _, number = place.rpartition(" ")
    return PARTS.index(part), int(number)


def _excess(row: Lens) -> float:
    return row.top - row.chance


def _cells(clearest: Clearest, checkpoint: str, tokens: Sequence[str]) -> list[str]:
    """Return the clearest of some tokens, and that of the same ones with random weights, as cells of a table; empty if there is none."""
    found, floor = (
        max(
            (clearest[checkpoint, token, source] for token in tokens if (checkpoint, token, source) in clearest),
            key=_excess,
            default=None,
        )
        for source in (TRAINED, RANDOM)
    )
    if found is None or floor is None:
        return []
    shares = (found.top, found.chance, floor.top)
    return [found.token, f"layer {found.layer}, {found.place}", *map(percent, shares)]


def _copies(checkpoint: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the gone tokens that also stand at places that are not gone, with these places."""
    found = {
        token: [place for place in facts["copies"].get(token, []) if place not in checkpoint["gone"]]
        for token in checkpoint["gone"]
    }
    return {token: places for token, places in found.items() if places}


def fourier_lines(fourier: Sequence[Fourier], facts: Mapping[str, Any]) -> list[str]:
    """Return the fits of the embeddings, and of the states that are furthest above the controls, at the first and the last checkpoint."""
    rows = []
    for checkpoint in _ends(facts):
        found = [row for row in fourier if row.checkpoint == checkpoint]
        shown = [row.what for row in found if row.what in ("embedding", "output")]
        states = [row for row in found if row.what not in shown]
        if states:
            shown.append(max(states, key=lambda row: row.fit - max(row.random_high, row.shuffled_high)).what)
        rows += [
            [
                checkpoint, row.what, row.basis, f"{row.num_basis} on {row.num_digits}",
                *(f"{value:.2f}" for value in (row.fit, row.random_mean, row.random_high, row.shuffled_high)),
            ]
            for row in found
            if row.what in shown and row.basis in BASES
        ]  # fmt: skip
    if not rows:
        return []
    return [
        "Fourier fit of the digits' vectors, and of the mean states by the next digit where it stands out most:",
        *table(("checkpoint", "vectors", "basis", "functions", "R²", "random", "95%", "shuffled 95%"), rows),
        "random: mean and 95% quantile of random vectors; shuffled: the same vectors with their digits in random order.",
    ]


def similarity_lines(similarity: Sequence[Similarity], facts: Mapping[str, Any]) -> list[str]:
    """Return CKA of the last checkpoint with the first and with other runs, by place and layer; in brackets with random weights."""
    last = _ends(facts)[-1]
    rows = [row for row in similarity if row.checkpoint == last]
    floor = {(row.place, row.layer): row.cka for row in rows if row.other == RANDOM}
    lines: list[str] = []
    for other in dict.fromkeys(row.other for row in rows if row.other != RANDOM):
        found = {(row.place, row.layer): row.cka for row in rows if row.other == other}
        layers, places = sorted({layer for _, layer in found}), list(dict.fromkeys(place for place, _ in found))
        cells = [
            [place, *(_beside(found.get((place, layer)), floor.get((place, layer))) for layer in layers)]
            for place in places[-MOST_PLACES:]
        ]
        lines += [
            f"Linear CKA of the states of {last} with those of {other}; in brackets with random weights:",
            *table(("place", *(f"layer {layer}" for layer in layers)), cells),
        ]
        if len(places) > MOST_PLACES:
            lines.append(f"{counted(len(places) - MOST_PLACES, 'place')} before these: in {Similarity.file}")
        lines.append("")
    return lines[:-1]


def _beside(cka: float | None, floor: float | None) -> str:
    return " ".join(["-" if cka is None else f"{cka:.2f}", "(-)" if floor is None else f"({floor:.2f})"])


def _ends(facts: Mapping[str, Any]) -> list[str]:
    """Return the names of the first and the last checkpoint; one if they are the same."""
    return list(dict.fromkeys(facts["checkpoints"][end]["checkpoint"] for end in (0, -1)))
