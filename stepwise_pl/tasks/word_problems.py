"""Arithmetic stories in plain English. The chain of thought is their equations."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import add, floordiv, mul, sub
from random import Random
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.equations import step_results
from stepwise_pl.tasks.questions import joined_digits
from stepwise_pl.tasks.sampling import Keys, Problems, SampledTask
from stepwise_pl.tasks.story_phrases import COMPARISON, LEADS, SCENES, WORDS, Holder, Phrase

SMALLEST, LARGEST = 2, 999  # bounds of all numbers; `1 apple` would need other words
LARGEST_FACTOR = 12  # the largest factor or divisor in a text
CHUNK = 1 << 12  # stories made at a time; a larger chunk would take long
TRIES = 10  # draws of a phrase's numbers before another phrase is drawn
T = TypeVar("T")
OPERATORS = {"+": add, "-": sub, "*": mul, "/": floordiv}


@register("task")
@dataclass
class WordProblems(SampledTask):
    """Stories of `min_steps` to `max_steps` calculations about people, their money, and shops.

    Example line for `min_steps=2, max_steps=2`:
    `Omar has 9 6 dollars . He pays 4 dollars for each of 7 puzzles . How many dollars belong to Omar now ?||<< 7 * 4 = 2 8 >> << 9 6 - 2 8 = 6 8 >> #### 6 8`

    Numbers are written most significant digit first, as in any English text, with spaces
    between the digits. A reasoning step is one equation. Its operands are numbers of the
    prompt, results of earlier equations, or numbers that a word names: 2 (half, twice,
    doubles), 3 (third, triples) and 4 (quarter). Every number of the prompt is used, all
    numbers are between 2 and 999, and divisions are exact. No result occurs in the prompt
    or in an earlier equation, so that no answer can be read off the prompt.

    The tables of `story_phrases.py` hold the events: gains and losses, goods at a price,
    wages, equal shares, fractions, growth, comparisons. Each event has several wordings. The
    same words (`gets`, `buys`, `more`, `times as many`) stand in steps that add or multiply
    and in steps that subtract or divide.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = "word_problems"
    # Equations of a problem at least; every number of them is equally likely.
    min_steps: int = 2
    # Equations of a problem at most; 1 to 8.
    max_steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.max_steps <= 8, "task.max_steps", self.max_steps, "must be between 1 and 8")
        require(1 <= self.min_steps <= self.max_steps, "task.min_steps", self.min_steps,
                f"must be between 1 and task.max_steps={self.max_steps}")  # fmt: skip

    def symbols(self) -> tuple[str, ...]:
        return vocabulary()

    def prompt_of(self, text: str) -> str:
        """Return the prompt of a story as people write it: digits and marks become words of their own."""
        return super().prompt_of(" ".join(re.findall(r"[0-9]|[A-Za-z'-]+|[^\sA-Za-z0-9]", text)))

    def readable(self, text: str) -> str:
        return re.sub(r" (?=[.,?])", "", joined_digits(text))

    def results(self, examples: Sequence[Example]) -> dict[str, list[npt.NDArray[np.float64]]]:
        """Return the right side of each equation as `result`."""
        return {"result": [step_results(example) for example in examples]}

    def draw(self, rng: np.random.Generator) -> Problems:
        """Return a seed for each problem; its story follows from it; [CHUNK]."""
        return rng.integers(0, 2**63, CHUNK, dtype=np.uint64)

    def keys(self, problems: Problems) -> Keys:
        hashes = [hashlib.blake2b(example.prompt.encode(), digest_size=8).digest() for example in self.render(problems)]
        return np.frombuffer(b"".join(hashes), np.uint64)

    def render(self, problems: Problems) -> list[Example]:
        return [Story(seed).tell(self.min_steps, self.max_steps) for seed in problems.tolist()]


class Story:
    """A story that grows phrase by phrase.

    Attributes:
        one, other: the main character and the other character.
        known: numbers by name: v, what the main character has; w, what the other character has,
            once the two were compared; r, the last result; 2, 3 and 4 themselves.
        used: all numbers of the text, and all results.
    """

    def __init__(self, seed: int) -> None:
        # Only `random()` is used: it gives the same numbers in every version of Python.
        self.rng = Random(seed)
        self.scene = self.pick(SCENES)
        one, other = self.pick((self.scene.cast, self.scene.cast[::-1]))
        self.one, self.other = self.pick(one), self.pick(other)
        self.things = self.pick(self.scene.things)
        self.known = {"2": 2, "3": 3, "4": 4, "v": 0}
        self.used: set[int] = set()
        self.compared = False
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
            if left == 0 or (left == 1 and self.rng.random() < 0.5):
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
            equations = solve(phrase.program, known, used)
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
        v = self.known["v"]
        return self.between(SMALLEST, LARGEST_FACTOR if factor else 99 if v == 0 else min(max(20, 2 * v), LARGEST))

    def between(self, low: int, high: int) -> int:
        return low + int(self.rng.random() * (high - low + 1))

    def pick(self, choice: Sequence[T]) -> T:
        return choice[int(self.rng.random() * len(choice))]


def solve(program: Sequence[Sequence[str]], known: dict[str, int], used: set[int]) -> list[str] | None:
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
        if not SMALLEST <= result <= LARGEST or result in used or (operator == "/" and x % y):
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
