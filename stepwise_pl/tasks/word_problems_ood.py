"""Stories unlike those trained on, in named parts: the suite of `evaluate suite=ood` for word problems."""

import re
from collections.abc import Callable

import numpy as np

from stepwise_pl.tasks.base import Example, ExampleList, Examples
from stepwise_pl.tasks.stories import LARGEST, Story, World
from stepwise_pl.tasks.story_phrases import PEOPLE, SCENES, STOCK, Holder, Scene, phrases

MOST_STEPS = 12  # stories with more equations hardly find numbers that are all different
_NUMBER = re.compile(r"[0-9](?: [0-9])*")
TRIES = 50  # stories told for each one that is kept, at most

OTHER_GIRLS = ("Ada", "Inga", "Olga", "Tara", "Yuki", "Greta", "Paula", "Wanda")
OTHER_BOYS = ("Abel", "Emil", "Finn", "Igor", "Kofi", "Lars", "Otto", "Yann")
OTHER_SHOPS = (("the market", "the pharmacy"), ("the diner", "the butcher shop"))

# Wordings that fit every scene. Their words are those of the task, so that its small tokenizer knows them.
OTHER_OPENINGS = phrases({
    "a": ("the number of {T} that {N} has is {a} .", "{a} {T} belong to {N} ."),
    "a + b": ("{a} {T} and {b} more {T} belong to {N} .",),
    "a - b": ("of {a} {T} that belong to {N} , {b} get lost .",),
    "a * b": ("in each of {a} {C} there are {b} {T} , and all of them belong to {N} .",),
})  # fmt: skip
OTHER_MIDDLE = phrases({
    "v + a": ("{N} has {a} more {T} than before .", "{F} has {a} {T} and gives all of them to {N} ."),
    "v - a": ("{N} has {a} fewer {T} than before .", "{a} of the {T} that {N} has get lost ."),
    "v * a": ("{N} has {a} times as many {T} as before .",),
    "v * 2": ("{N} has twice as many {T} as before .",),
    "v / 2": ("{N} has half as many {T} as before .",),
    "a * b ; v + r": ("{N} gets {b} {T} from each of {a} friends .",),
    "a * b ; v - r": ("{N} gives {b} {T} to each of {a} friends .",),
    "a + b ; v + r": ("{F} gives {N} {a} {T} in the morning and {b} {T} in the evening .",),
})  # fmt: skip
DISTRACTORS = phrases({
    "v": (
        "{F} has {a} {T} .",
        "{F} buys {a} {G} .",
        "{N} has {a} {G} .",
        "there are {a} {G} on a table .",
    )
})  # fmt: skip


def suite(fewest: int, most: int, seed: int, size: int) -> dict[str, Examples]:
    """Return stories that cannot have been trained on, up to `size` for each part.

    fewer_steps        one equation fewer than the shortest trained on
    more_steps         one or two equations more than the longest trained on
    twice_the_steps    twice as many equations as the longest trained on; missing above 12
    other_names        children and shops of other names
    other_things       children have the things of shops, shops those of children
    other_templates    other wordings of the openings and of the events, in words of the task
    distractor         one sentence with a number that nothing depends on
    more_digits        at least one number of the text has four digits

    Args:
        fewest, most: the equations trained on.
        seed: the seed of the draws.
        size: the most stories of a part.
    """
    usual, anyone = (World(), fewest, most), lambda _: True
    templates = tuple(scene._replace(opening=OTHER_OPENINGS, middle=OTHER_MIDDLE) for scene in SCENES)
    things = (PEOPLE._replace(things=STOCK.things), STOCK._replace(things=PEOPLE.things))
    rules: dict[str, tuple[tuple[World, int, int], Callable[[Example], bool]]] = {
        "fewer_steps": ((World(), fewest - 1, fewest - 1), anyone),
        "more_steps": ((World(), most + 1, most + 2), anyone),
        "twice_the_steps": ((World(), 2 * most, 2 * most), anyone),
        "other_names": ((World(_with_other_names()), *usual[1:]), anyone),
        "other_things": ((World(things), *usual[1:]), anyone),
        "other_templates": ((World(templates), *usual[1:]), anyone),
        "distractor": ((World(distractors=DISTRACTORS), *usual[1:]), _has_one_spare_number),
        "more_digits": ((World(largest=10 * LARGEST + 9), *usual[1:]), _has_four_digits),
    }
    # Parts are numbered from 1. The generator of [seed, 0] is that of seed, so a part 0 would have the seeds of the training
    # stories, and most of its stories would begin as those do.
    return {
        name: _part(*rule, np.random.default_rng([seed, number]), size)
        for number, (name, rule) in enumerate(rules.items(), start=1)
        if 1 <= rule[0][1] <= rule[0][2] <= MOST_STEPS
    }


def _part(
    told: tuple[World, int, int], belongs: Callable[[Example], bool], rng: np.random.Generator, size: int
) -> ExampleList:
    """Return stories with different prompts; `told`: the world, and the fewest and the most equations."""
    world, fewest, most = told
    found: dict[str, Example] = {}
    for seed in rng.integers(0, 2**63, TRIES * size, dtype=np.uint64).tolist():
        example = Story(seed, world).tell(fewest, most)
        if belongs(example):
            found.setdefault(example.prompt, example)
        if len(found) == size:
            break
    return ExampleList(found.values())


def _has_one_spare_number(example: Example) -> bool:
    """Whether one number of the text, and no other, is in no equation. A spare number may be equal to one that is used."""
    used = {text for left in re.findall(r"<< (.+?) =", example.cot) for text in _NUMBER.findall(left)}
    return sum(text not in used for text in _NUMBER.findall(example.prompt)) == 1


def _has_four_digits(example: Example) -> bool:
    return re.search(r"[0-9] [0-9] [0-9] [0-9]", example.prompt) is not None


def _with_other_names() -> tuple[Scene, ...]:
    """Return all scenes with other children and other shops."""
    children = (
        tuple(Holder(name, "she", "her") for name in OTHER_GIRLS),
        tuple(Holder(name, "he", "his") for name in OTHER_BOYS),
    )
    shops = (
        tuple(Holder(name, "it", "its") for name in OTHER_SHOPS[0]),
        tuple(Holder(name, "it", "its") for name in OTHER_SHOPS[1]),
    )
    return tuple(scene._replace(cast=shops if scene is STOCK else children) for scene in SCENES)
