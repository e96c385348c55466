"""Other forms of a prompt that ask for the same: spacing, operator signs, numbers in words."""

import re
from collections.abc import Callable, Mapping

from stepwise_pl.tasks.questions import joined_digits

Form = Callable[[str], str]

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# A whole number that is no part of a longer word, amount, fraction, time or percentage.
_WHOLE = re.compile(r"(?<![\w.,$€£/:%-])[0-9]+(?![\w/:%-]|[.,][0-9])")


def in_words(number: int) -> str:
    """Return a number from 0 to 999,999 in English words: `forty-two`, `one hundred five`.

    Raises:
        ValueError: the number is out of range.
    """
    if not 0 <= number < 1_000_000:
        raise ValueError(f"{number}: must be between 0 and 999,999")
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    high, low = divmod(number, unit)
    return f"{in_words(high)} {name}" + (f" {in_words(low)}" if low else "")


def numbers_in_words(text: str) -> str:
    """Return a text with its whole numbers below a million in words; digits that stand alone become words one by one."""

    def word(found: re.Match[str]) -> str:
        digits = found[0]
        is_plain = len(digits) <= 6 and (digits == "0" or digits[0] != "0")
        return in_words(int(digits)) if is_plain else digits

    return _WHOLE.sub(word, text)


def with_sign(sign: str, other: str) -> Form:
    """Return the form that writes `other` for the operator `sign` between two digits."""
    between = re.compile(rf"(?<=[0-9])( ?){re.escape(sign)}( ?)(?=[0-9])")
    blank = " " if other.isalpha() and len(other) > 1 else ""

    def form(text: str) -> str:
        return between.sub(lambda found: f"{found[1] or blank}{other}{found[2] or blank}", text)

    return form


def two_spaces(text: str) -> str:
    """Return a text with two spaces in the place of one."""
    return text.replace(" ", "  ")


def no_spaces_at_signs(text: str) -> str:
    """Return a text without spaces around the operators between digits."""
    return re.sub(r"(?<=[0-9]) ([*+/-]) (?=[0-9])", r"\1", text)


def digits_apart(text: str) -> str:
    """Return a text with a space between the digits of each whole number."""
    return _WHOLE.sub(lambda found: " ".join(found[0]), text)


def without_stops(text: str) -> str:
    """Return a text without the full stops at the ends of its sentences."""
    return re.sub(r" ?\.(?= |$)", "", text)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    # A title or an abbreviation ends no sentence, also at the very beginning of the text.
    return re.split(r"(?<!\b(?:Mr|Ms|Dr|St|vs)\.)(?<!\bMrs\.)(?<=[.?!]) (?=\S)", " ".join(text.split()))


def question_first(text: str) -> str:
    """Return a text whose last sentence, if it is the only question, stands at its beginning."""
    *facts, question = sentences(text)
    if not facts or not question.endswith("?") or "?" in "".join(facts):
        return text
    return " ".join([question, *facts])


# The forms for prompts of several sentences.
SENTENCE_FORMS: Mapping[str, Form] = {"no_stops": without_stops, "question_first": question_first}
# The forms for the prompts of every task. A form that changes no prompt of a task has no part in its suite.
FORMS: Mapping[str, Form] = {
    "two_spaces": two_spaces,
    "no_spaces_at_signs": no_spaces_at_signs,
    "digits_joined": joined_digits,
    "digits_apart": digits_apart,
    "sign_x": with_sign("*", "x"),
    "sign_cross": with_sign("*", "×"),
    "sign_times": with_sign("*", "times"),
    "sign_plus": with_sign("+", "plus"),
    "numbers_in_words": numbers_in_words,
    "lower_case": str.lower,
}
