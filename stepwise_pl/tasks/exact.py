"""Arithmetic in exact fractions: the equations of GSM8K, `<<48/2=24>>`."""

import re
from fractions import Fraction

# A number without its sign: 16, 1,200, 0.5 or .5.
NUMBER = re.compile(r"(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)")
_TOKEN = re.compile(r"\s*(?:(" + NUMBER.pattern + r")|([-+*/()%]))")
_EQUATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
MOST_DECIMALS = 4


def numbers_of(text: str) -> list[Fraction]:
    """Return the numbers of a text, without their signs."""
    return [Fraction(found.replace(",", "")) for found in NUMBER.findall(text)]


def value_of(text: str) -> Fraction | None:
    """Return the exact value of an expression of numbers, `+ - * / ( )` and `%` behind a number; None if it has none.

    Dollar signs do not count.
    """
    tokens = _tokens(text.replace("$", ""))
    if tokens is None:
        return None
    reader = _Reader(tokens)
    try:
        value = reader.sum()
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return value if reader.at == len(tokens) else None


def equation_of(text: str) -> tuple[str, Fraction] | None:
    """Return the left side of `<<left=right>>` and the value of its right side; None unless the equation holds exactly."""
    found = _EQUATION.fullmatch(text)
    if found is None:
        return None
    left, right = value_of(found[1]), value_of(found[2])
    return (found[1], right) if right is not None and left == right else None


def number_text(value: Fraction) -> str | None:
    """Return a number as people write it, `24` or `0.25`; None if it has more than `MOST_DECIMALS` decimals."""
    scaled = value * 10**MOST_DECIMALS
    if scaled.denominator != 1:
        return None
    if value.denominator == 1:
        return str(value.numerator)
    sign, digits = "-" * (scaled < 0), str(abs(scaled.numerator)).zfill(MOST_DECIMALS + 1)
    return f"{sign}{digits[:-MOST_DECIMALS]}.{digits[-MOST_DECIMALS:]}".rstrip("0")


def _tokens(text: str) -> list[str] | None:
    out, at, text = [], 0, text.rstrip()
    while at < len(text):
        if (found := _TOKEN.match(text, at)) is None:
            return None
        out.append(found[1] or found[2])
        at = found.end()
    return out


class _Reader:
    """Reads an expression from left to right: sums of products of numbers and brackets."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def next_is(self, signs: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at] in tuple(signs)

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self) -> Fraction:
        value = self.product()
        while self.next_is("+-"):
            value += self.product() if self.take() == "+" else -self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while self.next_is("*/"):
            value = value * self.factor() if self.take() == "*" else value / self.factor()
        return value

    def factor(self) -> Fraction:
        token = self.take()
        if token == "-":
            return -self.factor()
        if token == "(":
            value = self.sum()
            if self.take() != ")":
                raise ValueError("a bracket is not closed")
        else:
            value = Fraction(token.replace(",", ""))
        while self.next_is("%"):
            self.take()
            value /= 100
        return value
