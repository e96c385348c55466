"""The targets of probes: tokens of CoT and answer, quantities behind the answer, and results of reasoning steps."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError, one_of
from stepwise_pl.data.encoding import EncodedExamples, Ints, answer_frame
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.problems import FEWEST_FIT, FEWEST_SCORED, Sides
from stepwise_pl.inside.subject import Subject
from stepwise_pl.tasks import Task

CLASS, NUMBER = "class", "number"
MOST_CLASSES = 64
# The least problems held back that have a target: on a single one nothing can be chosen.
FEWEST_HELD = 2
# Squares of larger numbers cannot be summed in float64, so that they have no R².
LARGEST = 1e100

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """A token or a number that each problem has, and that a probe looks for.

    Attributes:
        name: `cot 3` and `answer 2` are tokens, by place; `<quantity> 0` is a number behind word 0 of the answer, and
            `<result> 0` one behind reasoning step 0.
        kind: `class` or `number`.
        values: the number of the class, or the quantity, [problems]; nan for a problem that lacks it.
        place: where it is written: its token in the whole text, the word of the answer that a quantity stands behind, or the
            first token of the CoT for the result of a step.
        num_classes: 0 for a number.
        is_result: whether it is the result of a reasoning step.
    """

    name: str
    kind: str
    values: Values
    place: Place
    num_classes: int = 0
    is_result: bool = False

    @property
    def has(self) -> npt.NDArray[np.bool_]:
        """Whether a problem has it, [problems]."""
        return np.asarray(~np.isnan(self.values))

    def given_from(self, in_view: Collection[int], answer: Place) -> Place:
        """Return the first place at which a token has been read that holds the target, or may hold it.

        Args:
            in_view: the numbers of the CoT tokens that are in the view.
            answer: the first word of the answer.
        """
        if self.place.part == "answer":
            return self.place
        if self.is_result:
            return Place("cot", min(in_view)) if in_view else answer
        later = [number for number in in_view if number >= self.place.number]
        return Place("cot", min(later)) if later else answer


def is_given(place: Place, given_from: Place) -> bool:
    """Whether a state at a place has read the token `given_from`."""
    return place.rank >= given_from.rank


def targets_of(task: Task, subject: Subject, num_fit: int, wanted: Sequence[str] = ()) -> tuple[list[Target], Place]:
    """Return the targets that all problems of a subject have, or enough of them, and the place of the first word of the answer.

    A constant target is left out, and so is a token with more than `MOST_CLASSES` values, and one that too few problems have of
    those to fit, held back or scored.

    Args:
        num_fit: the first problems are those to fit.
        wanted: names (`cot 3`) or the first words of names (`cot`); empty: all.

    Raises:
        UserError: there is no target, or none of those that are wanted.
    """
    encoded = subject.encoded
    first = encoded.tokens[encoded.start[0] + encoded.answer_start[0] : encoded.start[1]].tolist()
    before, after = answer_frame(first, subject.tokenizer)
    found = [
        *_tokens("cot", encoded.cot_start, encoded, range(int(encoded.cot_length.min()))),
        *_tokens("answer", encoded.answer_start, encoded, range(before, int(encoded.answer_length.min()) - after)),
        *_quantities(task, subject, before, after),
        *_results(task, subject),
    ]
    found = [target for target in found if _can_be_probed(target, num_fit)]
    if not found:
        raise UserError(
            f"nothing to probe: task={task.kind} names no quantities or results, and every token of CoT and answer is "
            f"always the same or has more than {MOST_CLASSES} values (the tokenizer may join digits)"
        )
    known = [target.name for target in found]
    for name in wanted:
        one_of("targets", name, (*dict.fromkeys(each.rpartition(" ")[0] for each in known), *known))
    chosen = [
        target for target in found if not wanted or target.name in wanted or target.name.rpartition(" ")[0] in wanted
    ]
    return chosen, Place("answer", before)


def _can_be_probed(target: Target, num_fit: int) -> bool:
    sides = Sides.of(num_fit, len(target.values) - num_fit).where(target.has)
    fewest = ((sides.whole, FEWEST_FIT), (sides.held, FEWEST_HELD), (sides.scored, FEWEST_SCORED))
    if any(len(rows) < least for rows, least in fewest) or len(np.unique(target.values[sides.whole])) < 2:
        return False
    # R² on problems that all have the same number means nothing.
    return (
        target.num_classes <= MOST_CLASSES if target.kind == CLASS else len(np.unique(target.values[sides.scored])) > 1
    )


def _tokens(part: str, start: Ints, encoded: EncodedExamples, numbers: Collection[int]) -> Iterator[Target]:
    for number in numbers:
        tokens = encoded.tokens[encoded.start[:-1] + start + number]
        classes, values = np.unique(tokens, return_inverse=True)
        place = Place(part, number)
        yield Target(str(place), CLASS, values.astype(np.float64), place, len(classes))


def _quantities(task: Task, subject: Subject, before: int, after: int) -> Iterator[Target]:
    words = subject.encoded.answer_length - before - after
    for name in task.quantities():
        numbers = task.values(name, subject.texts)
        # A tokenizer that joins digits leaves open in which token a word ends. No word counts as unread then.
        is_word_a_token = all(len(each) == count for each, count in zip(numbers, words, strict=True))
        for number, values in enumerate(_columns(numbers)):
            place = Place("answer", before + number * is_word_a_token)
            yield Target(f"{name} {number}", NUMBER, values, place)


def _results(task: Task, subject: Subject) -> Iterator[Target]:
    for name, numbers in task.results(subject.texts).items():
        for number, values in enumerate(_columns(numbers)):
            yield Target(f"{name} {number}", NUMBER, values, Place("cot", 0), is_result=True)


def _columns(numbers: Sequence[Values]) -> list[Values]:
    """Return number k of every problem for each k, [problems]; nan for a problem that has fewer, or a number that is too large."""
    out = np.full((len(numbers), max(map(len, numbers), default=0)), np.nan)
    for row, values in enumerate(numbers):
        out[row, : len(values)] = values
    return list(np.where(np.abs(out) <= LARGEST, out, np.nan).T)


def shuffled(target: Target, rng: np.random.Generator) -> Values:
    """Return a random label for each problem that has the target, drawn from its labels (Hewitt and Liang, arXiv 1909.03368)."""
    drawn = rng.choice(target.values[target.has], len(target.values))
    return np.where(target.has, drawn, np.nan)
