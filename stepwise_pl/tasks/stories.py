"""Stories that grow phrase by phrase, with their equations."""

from collections.abc import Mapping, Sequence
from functools import cache
from operator import add, floordiv, mul, sub
from random import Random
from typing import NamedTuple, TypeVar

from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.story_phrases import COMPARISON, LEADS, SCENES, WORDS, Holder, Phrase, Scene

SMALLEST, LARGEST = 2, 999  # bounds of all numbers; `1 apple` would need other words
LARGEST_FACTOR = 12  # the largest factor or divisor in a text
TRIES = 10  # draws of a phrase's numbers before another phrase is drawn
T = TypeVar("T")
OPERATORS = {"+": add, "-": sub, "*": mul, "/": floordiv}


class World(NamedTuple):
    """The stock of words and numbers that stories are made of.

    Attributes:
        scenes: of which a story has one.
        largest: the largest number.
        distractors: phrases with a number that nothing depends on; a story has one of them, or none if there are none.
    """

    scenes: tuple[Scene, ...] = SCENES
    largest: int = LARGEST
    distractors: tuple[Phrase, ...] = ()


USUAL = World()


class Story:
    """A story that grows phrase by phrase.

    Attributes:
        one, other: the main character and the other character.
        known: numbers by name: v, what the main character has; w, what the other character has,
            once the two were compared; r, the last result; 2, 3 and 4 themselves.
        used: all numbers of the text, and all results.
        distracted: whether a sentence of `World.distractors` has been told.
    """

    def __init__(self, seed: int, world: World = USUAL) -> None:
        self.world = world
        # Only `random()` is used: it gives the same numbers in every version of Python.
        self.rng = Random(seed)
        self.scene = self.pick(world.scenes)
        one, other = self.pick((self.scene.cast, self.scene.cast[::-1]))
        self.one, self.other = self.pick(one), self.pick(other)
        self.things = self.pick(self.scene.things)
        self.known = {"2": 2, "3": 3, "4": 4, "v": 0}
        self.used: set[int] = set()
        self.compared = False
        self.distracted = False
        self.crowded = False  # whether the last phrase is crowded (`Phrase.crowded`)
        self.text: list[str] = []
        self.steps: list[str] = []

    def tell(self, fewest: int, most: int) -> Example:
        """Return a whole story of `fewest` to `most` equations."""
        total = self.between(fewest, most)
        while not self.go_on(self.scene.opening, 0, total):
            pass
        leads: set[str] = set()  # no lead occurs twice
        asked = False
        while not asked:
            left = total - len(self.steps)
            if self.world.distractors and not self.distracted and (left < 2 or self.rng.random() < 0.5):
                self.distracted = self.go_on(self.world.distractors, 0, 0)
            elif left == 0 or (left == 1 and self.rng.random() < 0.5):
                asked = self.go_on(self.scene.ending, left, left)
            elif not self.compared and self.rng.random() < 0.25:
                self.compare(left)
            else:
                lead = self.pick(LEADS)
                if self.go_on(self.scene.middle, 1, left, "" if lead in leads else lead):
                    leads.add(lead)
        return Example.of_steps(" ".join(self.text), self.steps, spelt(self.known["v"]))

    def compare(self, left: int) -> None:
        """Add a phrase that compares the two characters; then the other one becomes the main character."""
        v = self.known["v"]
        if self.go_on(COMPARISON, 1, left):
            self.known["w"] = v
            self.one, self.other, self.compared = self.other, self.one, True

    def go_on(self, choice: Sequence[Phrase], fewest: int, most: int, lead: str = "") -> bool:
        """Add a phrase of `fewest` to `most` equations. Return whether the phrase drawn, and some of its numbers, did fit."""
        phrase = self.pick(choice)
        if not (fewest <= phrase.equations <= most and phrase.fits[self.compared]):
            return False
        for _ in range(TRIES if phrase.numbers else 1):
            numbers = {name: self.number(factor) for name, factor in phrase.numbers}
            known, used = self.known | numbers, self.used.union(numbers.values())
            equations = solve(phrase.program, known, used, self.world.largest)
            if equations is not None:
                break
        else:
            return False
        self.steps += equations
        self.used, self.known["v"] = used, known["r"]
        slots = {name: self.pick(WORDS[name]) for name in phrase.words}
        slots |= {name: spelt(number) for name, number in numbers.items()}
        one = self.one._replace(they=self.one.name) if self.crowded else self.one
        self.text.append(sentences(phrase.text, lead, one, self.other, self.things, slots))
        self.crowded = phrase.crowded
        return True

    def number(self, factor: bool) -> int:
        """Draw a number for the text; its size goes with that of v."""
        v, largest = self.known["v"], self.world.largest
        first = largest // 10  # the bound of a story's first number
        return self.between(SMALLEST, LARGEST_FACTOR if factor else first if v == 0 else min(max(20, 2 * v), largest))

    def between(self, low: int, high: int) -> int:
        return low + int(self.rng.random() * (high - low + 1))

    def pick(self, choice: Sequence[T]) -> T:
        return choice[int(self.rng.random() * len(choice))]


def solve(
    program: Sequence[Sequence[str]], known: dict[str, int], used: set[int], largest: int = LARGEST
) -> list[str] | None:
    """Return the equations of a program as text; None if a result is out of range, no integer, or used already.

    The last result is stored in `known["r"]`; all results are added to `used`.
    """
    equations = []
    for part in program:
        if len(part) == 1:
            known["r"] = known[part[0]]
            continue
        x, operator, y = known[part[0]], part[1], known[part[2]]
        result = OPERATORS[operator](x, y)
        if not SMALLEST <= result <= largest or result in used or (operator == "/" and x % y):
            return None
        known["r"] = result
        used.add(result)
        equations.append(f"<< {spelt(x)} {operator} {spelt(y)} = {spelt(result)} >>")
    return equations


def spelt(number: int) -> str:
    """Return a number digit by digit, the most significant first."""
    return " ".join(str(number))


def sentences(text: str, lead: str, one: Holder, other: Holder, things: str, slots: Mapping[str, str]) -> str:
    """Return a phrase with its slots filled. Every sentence begins with a capital."""
    text = text.format(N=one.name, they=one.they, his=one.his, O=other.name, T=things, **slots)
    parts = f"{lead} {text}".strip().split(" . ")
    return " . ".join(part[0].upper() + part[1:] for part in parts)


@cache
def vocabulary() -> tuple[str, ...]:
    """Return every word that a story can hold, sorted."""
    out = set("0123456789+-*/=") | {"<<", ">>"}
    for scene in SCENES:
        holders = [*scene.cast[0], *scene.cast[1]]
        for i in range(max(map(len, (holders, scene.things, LEADS, *WORDS.values())))):
            one, things, lead = holders[i % len(holders)], scene.things[i % len(scene.things)], LEADS[i % len(LEADS)]
            slots = {name: words[i % len(words)] for name, words in WORDS.items()} | {"a": "0", "b": "0"}
            for phrase in (*scene.opening, *scene.middle, *COMPARISON, *scene.ending):
                out |= set(sentences(phrase.text, "", one, one, things, slots).split())
            for phrase in scene.middle:
                out |= set(sentences(phrase.text, lead, one, one, things, slots).split())
    return tuple(sorted(out))
