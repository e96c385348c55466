"""The words of the word problems: phrases, scenes, holders, questions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Phrase(NamedTuple):
    """A wording of one event of a story, or of its question.

    Attributes:
        text: the wording. `{a}` and `{b}` are numbers, `{N}` is the main character (`{they}` and
            `{his}` its pronouns), `{O}` the other character, `{T}` the things that they have.
            Another name stands for one of its words in `WORDS`.
        program: the equations of the event, each (operand, operator, operand). An operand is a
            number of the text, a number that a word of the text names, or a value of
            `Story.known`. A part that is a single name copies that value without an equation.
        equations: the count of equations.
        numbers: the names (of a and b) that occur, each with whether it is a factor or divisor.
        words: the names of `WORDS` that occur.
        fits: whether the phrase can stand before the comparison, and whether after it.
        crowded: whether the phrase names people that a later pronoun might mean.
    """

    text: str
    program: tuple[tuple[str, ...], ...]
    equations: int
    numbers: tuple[tuple[str, bool], ...]
    words: tuple[str, ...]
    fits: tuple[bool, bool]
    crowded: bool

    @classmethod
    def of(cls, program: str, text: str) -> "Phrase":
        parts = tuple(tuple(part.split()) for part in program.split(" ; "))
        factors = {name for part in parts if "*" in part for name in part} | {part[-1] for part in parts if "/" in part}
        numbers = tuple((name, name in factors) for name in "ab" if f"{{{name}}}" in text)
        words = tuple(name for name in WORDS if f"{{{name}}}" in text)
        compares = any("w" in part for part in parts)
        fits = (not compares, compares or "{O}" not in text)
        crowded = any(word in text for word in ("{F}", "friends", "aunt", "children"))
        return cls(text, parts, sum(len(part) == 3 for part in parts), numbers, words, fits, crowded)


def phrases(table: Mapping[str, Sequence[str]]) -> tuple[Phrase, ...]:
    """Return the phrases of a table `{program: texts}`."""
    return tuple(Phrase.of(program, text) for program, texts in table.items() for text in texts)


class Holder(NamedTuple):
    """A character that has something: a child or a shop."""

    name: str
    they: str
    his: str


class Scene(NamedTuple):
    """The phrases for stories about things, about money, or about shops.

    A story is an opening, then `middle` phrases with at most one comparison among them, and
    an ending that asks the question. Its two characters are from different groups of `cast`,
    so that a pronoun can mean only one of them.
    """

    cast: tuple[tuple[Holder, ...], tuple[Holder, ...]]
    things: tuple[str, ...]
    opening: tuple[Phrase, ...]
    middle: tuple[Phrase, ...]
    ending: tuple[Phrase, ...]


LEADS = ("", "", "", "then", "later", "after that", "soon", "the next day", "a week later")

WORDS = {
    "C": ("boxes", "bags", "baskets", "packs"),
    "F": ("a friend", "a cousin", "a neighbor", "a classmate"),
    "G": ("books", "games", "lamps", "shirts", "puzzles"),  # bought and sold
}

GIRLS = ("Mia", "Anna", "Lily", "Emma", "Nora", "Ruth", "Clara", "Maya", "Zoe", "Rosa")

BOYS = ("Tom", "Ben", "Sam", "Leo", "Max", "Omar", "Hugo", "Ivan", "Noah", "Paul")

CHILDREN = (tuple(Holder(name, "she", "her") for name in GIRLS), tuple(Holder(name, "he", "his") for name in BOYS))

SHOPS = (
    tuple(Holder(name, "it", "its") for name in ("the kiosk", "the bakery", "the village shop")),
    tuple(Holder(name, "it", "its") for name in ("the cafe", "the supermarket", "the farm shop")),
)

COMPARISON = phrases({
    "v + a": (
        "{O} has {a} more {T} than {N} .",
        "{N} has {a} fewer {T} than {O} .",
        "with {a} fewer {T} , {O} would have as many as {N} .",
        "{N} would need {a} more {T} to have as many as {O} .",
    ),
    "v - a": (
        "{O} has {a} fewer {T} than {N} .",
        "{N} has {a} more {T} than {O} .",
        "with {a} more {T} , {O} would have as many as {N} .",
    ),
    "v * a": ("{O} has {a} times as many {T} as {N} .",),
    "v / a": ("{N} has {a} times as many {T} as {O} .",),
    "v * 2": ("{O} has twice as many {T} as {N} .", "{N} has half as many {T} as {O} ."),
    "v / 2": ("{O} has half as many {T} as {N} .", "{N} has twice as many {T} as {O} ."),
})  # fmt: skip

QUESTIONS = {
    "v": (
        "how many {T} does {N} have now ?",
        "how many {T} belong to {N} now ?",
        "what is the number of {T} that {N} has now ?",
    ),
    "v + w": (
        "how many {T} do {N} and {O} have together ?",
        "what is the total number of {T} that {O} and {N} have ?",
    ),
    "v - w": (
        "how many more {T} than {O} does {N} have ?",
        "how many fewer {T} than {N} does {O} have ?",
    ),
    "w - v": (
        "how many more {T} than {N} does {O} have ?",
        "how many more {T} does {N} need to have as many as {O} ?",
    ),
    "v + a": (
        "{O} has {a} {T} . how many {T} do {N} and {O} have together ?",
        "how many {T} would {N} have with {a} more {T} ?",
    ),
    "v - a": (
        "{O} has {a} {T} . how many more {T} than {O} does {N} have ?",
        "how many {T} would {N} have with {a} fewer {T} ?",
    ),
    "a - v": (
        "{O} has {a} {T} . how many more {T} than {N} does {O} have ?",
        "how many more {T} does {N} need to have {a} {T} ?",
    ),
}  # fmt: skip

PEOPLE = Scene(
    CHILDREN,
    ("apples", "pears", "marbles", "stickers", "shells", "buttons", "pencils", "stamps", "cookies", "balloons"),
    opening=phrases({
        "a": (
            "{N} has {a} {T} .",
            "{N} counts {his} {T} and finds that there are {a} of them .",
            "there are {a} {T} in a drawer , and all of them belong to {N} .",
            "{N} owns {a} {T} .",
        ),
        "a + b": ("{N} has {a} large {T} and {b} small {T} .", "{N} has {a} {T} at home and {b} {T} at school ."),
        "a - b": ("{N} had {a} {T} , but {b} of them got lost .", "{N} had {a} {T} and gave {b} of them to {F} ."),
        "a * b": ("{N} has {a} {C} with {b} {T} in each .",),
        "b * a": ("{N} has {a} {T} in each of {b} {C} .",),
        "a / b": ("{a} {T} are shared equally among {b} children , and all that {N} has is {his} share .",),
        "b / a": ("{a} children , {N} among them , share {b} {T} equally . {N} had none before .",),
    }),
    middle=phrases({
        "v + a": (
            "{they} finds {a} {T} .",
            "{they} gets {a} {T} from {F} .",
            "{F} gives {N} {a} more {T} .",
            "{they} buys {a} {T} .",
            "{N} wins {a} {T} in a game .",
        ),
        "v - a": (
            "{they} loses {a} {T} .",
            "{F} gets {a} {T} from {N} .",
            "{they} gives {a} {T} to {F} .",
            "{F} buys {a} {T} from {N} .",
            "{N} loses {a} of the {T} in a game .",
        ),
        "v * a": (
            "{they} buys enough to have {a} times as many {T} as before .",
            "the number of {T} that {N} has grows to {a} times what it was .",
        ),
        "v * 2": ("{they} buys enough to have twice as many {T} as before .", "the number of {T} that {N} has doubles ."),
        "v * 3": ("the number of {T} that {N} has triples .",),
        "v / 2": (
            "{they} gives half of the {T} to {F} .",
            "half of the {T} that {N} has get lost .",
            "{F} buys half of the {T} from {N} .",
        ),
        "v / 3": ("{they} gives {T} away until only a third of them are left .",),
        "v / 4": ("{they} loses so many {T} that only a quarter of them are left .",),
        "v / 3 ; v - r": ("{they} gives a third of the {T} to {F} .", "{F} buys a third of the {T} from {N} ."),
        "v / 4 ; v - r": ("a quarter of the {T} that {N} has get lost .", "{F} gets a quarter of the {T} from {N} ."),
        "v / a": (
            "{they} divides the {T} into {a} equal parts and keeps only one part .",
            "{they} puts the {T} equally into {a} {C} and gives all {C} but one away .",
        ),
        "a * b ; v + r": (
            "{they} buys {a} {C} with {b} {T} in each .",
            "each of {a} friends gives {N} {b} {T} .",
            "{they} wins {a} games and gets {b} {T} for each of them .",
        ),
        "a * b ; v - r": (
            "{they} gives away {a} {C} with {b} {T} in each .",
            "each of {a} friends gets {b} {T} from {N} .",
            "{they} loses {a} games and gives away {b} {T} for each of them .",
        ),
        "a + b ; v + r": ("{they} finds {a} {T} in the morning and {b} {T} in the evening .",),
        "a + b ; v - r": ("{they} gives {a} {T} to {F} and {b} {T} to an aunt .",),
        "a - b ; v + r": ("{they} buys {a} {T} but gives {b} of them away .",),
    }),
    ending=phrases(QUESTIONS) + phrases({
        "v / a": (
            "{they} packs all of the {T} into {C} of {a} . how many {C} does {N} fill ?",
            "{N} shares all of the {T} equally among {a} friends . how many {T} does each friend get ?",
            "{N} gives away {a} {T} a day . after how many days are all of them gone ?",
        ),
        "v * a": ("{N} sells all of the {T} for {a} dollars each . how many dollars does {N} get ?",),
    }),
)  # fmt: skip

MONEY = Scene(
    CHILDREN,
    ("dollars",),
    opening=phrases({
        "a": (
            "{N} has {a} dollars .",
            "{N} has saved {a} dollars .",
            "there are {a} dollars in a purse , and all of them belong to {N} .",
        ),
        "a + b": ("{N} has {a} dollars at home and {b} dollars in a bank .",),
        "a - b": ("{N} had {a} dollars and spent {b} of them .", "{N} had {a} dollars and gave {b} of them to {F} ."),
        "a * b": (
            "{N} has no money . {they} sells {a} {G} for {b} dollars each .",
            "{N} has no money . {they} works {a} hours for {b} dollars an hour .",
        ),
        "a / b": ("{a} dollars are shared equally among {b} children , and all that {N} has is {his} share .",),
    }),
    middle=phrases({
        "v + a": (
            "{they} earns {a} dollars .",
            "{they} gets {a} dollars from {F} .",
            "{F} gives {N} {a} dollars .",
            "{they} sells a bike for {a} dollars .",
        ),
        "v - a": (
            "{they} spends {a} dollars .",
            "{F} gets {a} dollars from {N} .",
            "{they} gives {a} dollars to {F} .",
            "{they} buys a bike for {a} dollars .",
        ),
        "v * a": ("the money of {N} grows to {a} times what it was .",),
        "v * 2": ("{they} doubles {his} money .",),
        "v * 3": ("{they} triples {his} money .",),
        "v / 2": (
            "{they} spends half of the money .",
            "{they} gives half of the money to {F} .",
            "{F} gets half of the money from {N} .",
        ),
        "v / 3": ("{they} spends money until only a third of it is left .",),
        "v / 4": ("{they} spends so much money that only a quarter of it is left .",),
        "v / 3 ; v - r": ("{they} spends a third of the money .", "{F} gets a third of the money from {N} ."),
        "v / 4 ; v - r": ("{they} gives a quarter of the money to {F} .",),
        "v / a": ("{they} divides the money into {a} equal parts and keeps only one part .",),
        "a * b ; v + r": (
            "{they} sells {a} {G} for {b} dollars each .",
            "{they} works {a} hours for {b} dollars an hour .",
            "each of {a} friends gives {N} {b} dollars .",
        ),
        "a * b ; v - r": (
            "{they} buys {a} {G} for {b} dollars each .",
            "each of {a} friends gets {b} dollars from {N} .",
        ),
        "b * a ; v - r": ("{they} pays {a} dollars for each of {b} {G} .",),
        "a + b ; v + r": ("{they} earns {a} dollars in the morning and {b} dollars in the evening .",),
        "a + b ; v - r": ("{they} pays {a} dollars for a bike and {b} dollars for a tent .",),
        "a - b ; v + r": ("{they} earns {a} dollars but spends {b} of them .",),
    }),
    ending=phrases(QUESTIONS) + phrases({
        "v / a": (
            "a ticket costs {a} dollars . how many tickets can {N} buy with all of the money ?",
            "{N} spends {a} dollars a day . after how many days is all of the money gone ?",
        ),
        "a - v": ("a tent costs {a} dollars . how many more dollars does {N} need to buy it ?",),
        "v - a": ("how many dollars are left if {N} buys a tent for {a} dollars ?",),
    }),
)  # fmt: skip

STOCK = Scene(
    SHOPS,
    ("rolls", "eggs", "lemons", "cups", "candles", "muffins"),
    opening=phrases({
        "a": ("{N} has {a} {T} .", "there are {a} {T} in {N} .", "in the morning {N} has {a} {T} ."),
        "a + b": ("{N} has {a} {T} on a table and {b} {T} on a shelf .", "{N} has {a} large {T} and {b} small {T} ."),
        "a - b": ("of the {a} {T} that {N} had , {b} are already sold .",),
        "a * b": ("{N} has {a} shelves with {b} {T} on each .", "on each of {a} shelves in {N} there are {b} {T} ."),
        "a / b": ("{a} {T} are shared equally among {b} shops , and all that {N} has is its share .",),
    }),
    middle=phrases({
        "v + a": (
            "a truck brings {a} {T} to {N} .",
            "{N} buys {a} {T} .",
            "{N} gets {a} more {T} from a supplier .",
        ),
        "v - a": (
            "{N} sells {a} {T} .",
            "a hotel buys {a} {T} from {N} .",
            "a truck takes {a} {T} from {N} to a hotel .",
        ),
        "v * a": ("{N} buys enough to have {a} times as many {T} as before .",),
        "v * 2": ("{N} doubles its stock of {T} .", "{N} buys enough to have twice as many {T} as before ."),
        "v * 3": ("{N} triples its stock of {T} .",),
        "v / 2": ("{N} sells half of the {T} .", "a hotel buys half of the {T} from {N} ."),
        "v / 3": ("{N} sells {T} until only a third of them are left .",),
        "v / 4": ("{N} sells so many {T} that only a quarter of them are left .",),
        "v / 3 ; v - r": ("{N} sells a third of the {T} .",),
        "v / 4 ; v - r": ("a hotel buys a quarter of the {T} from {N} .",),
        "v / a": ("{N} divides the {T} into {a} equal parts and sells all parts but one .",),
        "a * b ; v + r": (
            "a truck brings {a} {C} with {b} {T} in each to {N} .",
            "each of {a} suppliers brings {b} {T} to {N} .",
        ),
        "a * b ; v - r": (
            "each of {a} customers buys {b} {T} from {N} .",
            "a truck takes {a} {C} with {b} {T} in each from {N} to a hotel .",
        ),
        "a + b ; v + r": ("one truck brings {a} {T} to {N} , and another one brings {b} {T} .",),
        "a + b ; v - r": ("one customer buys {a} {T} from {N} , and another one buys {b} {T} .",),
        "a - b ; v + r": ("a truck brings {a} {T} to {N} , but {b} of them are broken and thrown away .",),
    }),
    ending=phrases(QUESTIONS) + phrases({
        "v / a": (
            "the {T} in {N} are put equally on {a} shelves . how many {T} are there on each shelf ?",
            "{N} sells {a} {T} a day . after how many days are all of them sold ?",
        ),
        "v * a": ("{N} sells all of the {T} for {a} dollars each . how many dollars does it get ?",),
    }),
)  # fmt: skip

SCENES = (PEOPLE, MONEY, STOCK)
