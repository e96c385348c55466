"""Menus of a look inside, with no more figures than a page has room for."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from stepwise_pl.reporting.figures.data import HeatMap, Menu
from stepwise_pl.reporting.figures.inside_grid import is_empty

T = TypeVar("T")
Choice = tuple[str, ...]
# Cells of all figures of a menu, at most: about 3 MB of the page.
MOST_CELLS = 20_000


def menu_of(
    slug: str,
    keys: Sequence[str],
    found: Mapping[Choice, T],
    draw: Callable[[T, str], HeatMap],
    first: Choice | None = None,
    most: int = MOST_CELLS,
) -> Menu | None:
    """A menu of heat maps.

    Args:
        found: what each figure is drawn from, by its choice, in the order of the menu.
        draw: draws a figure from this and its slug.
        first: the choice that is shown first; None: the first one at the last value of the first key, which is the last stage.
        most: cells of all figures; see `thinned`.

    Returns:
        The menu; None if there is no figure. A figure without a number is left out.
    """
    if not found:
        return None
    choices = list(found)
    first = first or next(choice for choice in choices if choice[0] == choices[-1][0])
    drawn = {first: draw(found[first], f"{slug}-{choices.index(first) + 1}")}
    kept = thinned(choices, sum(len(panel.x) * len(panel.y) for panel in drawn[first].panels), most)
    for choice in [choice for choice in kept if choice != first]:
        drawn[choice] = draw(found[choice], f"{slug}-{choices.index(choice) + 1}")
    figures = {choice: drawn[choice] for choice in choices if choice in drawn and not is_empty(drawn[choice].panels)}
    if not figures:
        return None
    left_out = len(choices) - len(kept)
    note = (
        f"The menu leaves out {left_out} of {len(choices)} figures, for which the page has no room." if left_out else ""
    )
    return Menu(slug, tuple(keys), dict(figures), first if first in figures else next(iter(figures)), note)


def thinned(choices: Sequence[Choice], cells: int, most: int = MOST_CELLS) -> list[Choice]:
    """The choices for which there is room: every second value of the key with the most values goes, again and again; last values stay.

    Args:
        cells: of a figure.
        most: cells of all figures.
    """
    kept = list(choices)
    while len(kept) * cells > most:
        values = [list(dict.fromkeys(of_key)) for of_key in zip(*kept, strict=True)]
        longest = max(range(len(values)), key=lambda key: len(values[key]))
        if len(values[longest]) == 1:
            break
        left = values[longest][::-1][::2]
        kept = [choice for choice in kept if choice[longest] in left]
    return kept
