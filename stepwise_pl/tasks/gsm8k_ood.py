"""GSM8K problems with another number, or with their sentences in another order: the suite of `evaluate suite=ood` for GSM8K."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from random import Random

from stepwise_pl.tasks.base import Example, Examples
from stepwise_pl.tasks.exact import NUMBER, equation_of, number_text, numbers_of, value_of
from stepwise_pl.tasks.formats import Form, in_words, question_first, sentences
from stepwise_pl.tasks.variants import Variants

# Numbers that equations may hold though the text does not say them: of dozens, weeks, hours, percentages, halves.
_WHOLE_CONSTANTS = (2, 3, 4, 5, 7, 8, 10, 12, 24, 30, 50, 52, 60, 100, 365, 1000)
CONSTANTS = {*map(Fraction, _WHOLE_CONSTANTS), Fraction(1, 2), Fraction(1, 4)}
TRIES = 20  # new values tried for a number
# A number of the text that may be replaced: whole, and no part of a fraction, time, percentage, date or longer word.
_REPLACEABLE = re.compile(r"(?<![\w.,:/%-])[0-9]+(?![\w:/%-]|[.,][0-9])(?! (?:percent|per cent|a\.m|p\.m|am|pm)\b)")
# Words of a sentence that lean on the sentence before.
_LEANS = re.compile(
    r"\b(he|she|it|they|him|her|his|hers|its|their|theirs|them|this|that|these|those|then|also|another|other|others|both|"
    r"same|rest|remaining|left|first|second|third|next|after|before|later|again|still|however|but|so)\b|^(each|the|there)\b",
    re.IGNORECASE,
)


def suite(test: Examples, trained: set[str], has_equations: bool, size: int) -> dict[str, Examples]:
    """Return variants of test problems, the first `size` for each part.

    other_number       one number of the text is another one, and all equations and the answer follow from it
    question_first     the last sentence, the only question, stands at the beginning
    sentences_swapped  two sentences that stand side by side change places

    A problem without a variant is left out and counted. `other_number` follows the rules of `with_other_number`;
    `sentences_swapped` takes two statements with a number each and without words that lean on another sentence. No
    person has checked the texts.

    Args:
        trained: the prompts of training, which are left out.
        has_equations: whether the CoT is made of equations. Without them there is no `other_number`.
    """
    makers: dict[str, tuple[Callable[[Example], Example | None], str]] = {
        "other_number": (with_other_number, "no number of them can be replaced without doubt"),
        "question_first": (_with_prompt(question_first), "they do not end with their only question"),
        "sentences_swapped": (
            _with_prompt(sentences_swapped),
            "no two of their sentences can change places without doubt",
        ),
    }
    if not has_equations:
        del makers["other_number"]
    return {name: _variants(test, maker, why, trained, size) for name, (maker, why) in makers.items()}


def _variants(
    test: Examples, maker: Callable[[Example], Example | None], why: str, trained: set[str], size: int
) -> Variants:
    """Return the first `size` variants; `why`: the reason why `maker` makes none of some problems."""
    part, asked = Variants(), 0
    for asked, example in enumerate(test.slice(0, len(test)), start=1):
        variant = maker(example)
        if variant is not None and variant.prompt != example.prompt and variant.prompt not in trained:
            part.add(asked - 1, variant)
        if len(part) == size:
            break
    if missing := asked - len(part):
        part.left_out = f"{missing} of {asked} test problems left out: {why}"
    return part


def _with_prompt(form: Form) -> Callable[[Example], Example]:
    return lambda example: example._replace(prompt=form(example.prompt))


def sentences_swapped(text: str) -> str:
    """Return a text in which the first two sentences side by side that allow it have changed places; the text itself if none do."""
    parts = sentences(text)
    for place, (one, other) in enumerate(pairwise(parts)):
        # The first sentence often names those of whom the others tell, so it keeps its place.
        if place and all(
            each.endswith(".") and re.search("[0-9]", each) and not _LEANS.search(each) for each in (one, other)
        ):
            return " ".join([*parts[:place], other, one, *parts[place + 2 :]])
    return text


def with_other_number(example: Example) -> Example | None:
    """Return the problem with one number of its text replaced in text, equations and answer; None if no number allows it.

    A number n of the text is replaced only if

    - every equation holds exactly, each of its numbers comes from the text (also as a percentage), from a result or from `CONSTANTS`,
      and the last result is the answer;
    - n occurs once in the text, not in words either, is no constant and no result, and some equation holds it;
    - no number of the equations looks as if it were computed from n without a word (n / 100, 1 - n / 100, n + 1, ...);
    - n is no sum, difference, product or quotient of two other numbers of the text;
    - no number that changes is equal to a number of the text, to a constant, or to another result.

    With the new number, whole results stay whole, positive results stay positive, and each result stays on its side of every
    number of the text that no equation holds (`more than 75`). The number and its new value,
    between half and twice the old one, are drawn; the text of the problem is the seed.
    """
    rng = Random(example.prompt)
    steps = _steps_of(example)
    read = [equation_of(step) for step in steps]
    equations = [equation for equation in read if equation is not None]
    if not equations or len(equations) < len(steps) or value_of(example.answer) != equations[-1][1]:
        return None
    found = [match for match in _REPLACEABLE.finditer(example.prompt) if int(match[0]) > 1]
    # Only `random()` is used: it gives the same numbers in every version of Python.
    for match in sorted(found, key=lambda _: rng.random()):
        plan = _Plan.of(example.prompt, int(match[0]), equations)
        if plan is None:
            continue
        old = int(match[0])
        for _ in range(TRIES):
            low = max(2, -(-old // 2))
            new = low + int(rng.random() * (2 * old + 1 - low))
            if new not in plan.taken and (texts := plan.applied(new)) is not None:
                prompt = example.prompt[: match.start()] + str(new) + example.prompt[match.end() :]
                return Example.of_steps(prompt, [f"<<{text}>>" for text in texts], texts[-1].rpartition("=")[2])
    return None


def _steps_of(example: Example) -> list[str]:
    if not example.steps:
        return []
    ends = [*example.steps[1:], len(example.cot)]
    return [example.cot[begin:end].strip() for begin, end in zip(example.steps, ends, strict=True)]


def _is_said_in_words(number: int, text: str) -> bool:
    return number < 1_000_000 and re.search(rf"\b{in_words(number)}\b", text, re.IGNORECASE) is not None


@dataclass
class _Plan:
    """The numbers of the equations that change if a number of the text does.

    Attributes:
        old: the number of the text.
        equations: left side as text, and result, of each equation.
        taken: values that the new number must not have, because they stand for something else.
        bounds: numbers of the text that no equation holds. They may be thresholds, as in `more than 75`.
    """

    old: Fraction
    equations: Sequence[tuple[str, Fraction]]
    taken: set[Fraction]
    bounds: set[Fraction]

    @classmethod
    def of(cls, text: str, old: int, equations: Sequence[tuple[str, Fraction]]) -> "_Plan | None":
        """Return the plan; None if it is in doubt what changes."""
        said, n = numbers_of(text), Fraction(old)
        results = [result for _, result in equations]
        literals = [value for left, _ in equations for value in numbers_of(left)]
        others = {value for value in said if value != n}
        # A number that others add up or multiply to would contradict them once it is replaced.
        implied = {value for a, b in product(others, others) for value in (a + b, a - b, a * b, a / b if b else a)}
        hidden = {n / 100, 1 - n / 100, 1 + n / 100, 100 - n, n + 1, n - 1, 2 * n, n / 2, 1 / n}
        shares = {value for a in others for value in (a / 100, 1 - a / 100, 1 + a / 100)}
        unexplained = {*literals} - {*said, *results}
        if (
            said.count(n) != 1
            or _is_said_in_words(old, text)
            or n in {*CONSTANTS, *results, *implied}
            or n not in literals
            or not unexplained <= CONSTANTS | shares
            or unexplained & hidden
        ):
            return None
        plan = cls(n, equations, {*said, *results, *literals, *CONSTANTS}, {*said} - {*literals})
        changed = [result for result, changes in zip(results, plan._changes(), strict=True) if changes]
        is_clear = all(results.count(value) == 1 and value not in others | CONSTANTS for value in changed)
        return plan if is_clear and plan._changes()[-1] else None

    def _changes(self) -> list[bool]:
        """Whether the result of each equation depends on the number."""
        moving, out = {self.old}, []
        for left, result in self.equations:
            depends = any(value in moving for value in numbers_of(left))
            moving |= {result} if depends else set()
            out.append(depends)
        return out

    def _crosses(self, before: Fraction, after: Fraction) -> bool:
        """Whether a bound lies between two values, or is one of them."""
        return any((before - bound) * (after - bound) <= 0 for bound in self.bounds)

    def applied(self, new: int) -> list[str] | None:
        """Return the equations, `left=result`, with the new number; None if one does not hold or is of another kind."""
        now, out = {self.old: Fraction(new)}, []
        if self._crosses(self.old, Fraction(new)):
            return None
        for (left, result), depends in zip(self.equations, self._changes(), strict=True):
            if not depends:
                out.append(f"{left}={number_text(result)}")
                continue

            def other(found: re.Match[str]) -> str:
                (value,) = numbers_of(found[0])
                return str(number_text(now[value])) if value in now else found[0]

            rewritten = NUMBER.sub(other, left)
            value = value_of(rewritten)
            if value is None or value in now.values() or value in self.taken or (text := number_text(value)) is None:
                return None
            if (
                self._crosses(result, value)
                or (value > 0) != (result > 0)
                or (value.denominator == 1) != (result.denominator == 1)
            ):
                return None
            now[result] = value
            out.append(f"{rewritten}={text}")
        return out
