"""Problems as people type them: numbers in their usual order, signs and words between them."""

import re
from collections.abc import Sequence

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks.thousands import without_thousands_separators

# Words before a problem (`what is`, `how much is`) and marks behind it. A sign there would belong to a number.
_BEFORE, _BEHIND = r"[A-Za-z\s:,']*?", r"[\s=?.!]*"
# A number written digit by digit, as the texts of tasks have it.
_SPACED = re.compile(r"(?<!\S)[0-9](?: [0-9])*(?!\S)")


def numbers_between(text: str, signs: Sequence[str], example: str) -> list[str]:
    """Return the numbers of a text such as `what is 38 times 57?`, most significant digit first.

    Args:
        signs: signs and words that may stand between two numbers.
        example: a problem of the task, for the message.

    Raises:
        UserError: the text is not two or more numbers with one of the signs between them.
    """
    plain = without_thousands_separators(" ".join(text.split()))
    between = "|".join(rf"\b{sign}\b" if sign.isalpha() and len(sign) > 1 else re.escape(sign) for sign in signs)
    sign = rf"\s*(?:{between})\s*"
    found = re.fullmatch(rf"{_BEFORE}([0-9]+(?:{sign}[0-9]+)+){_BEHIND}", plain, re.IGNORECASE)
    if found is None:
        raise UserError(f"{printed(text)}: is no problem of this task; write one such as {example}")
    return re.findall("[0-9]+", found[1])


def digits_in(text: str, example: str) -> tuple[list[str], int | None]:
    """Return the digits of a text such as `3 4 1 2`, `3412`, `3, 4, 1, 2` or `3 + 4 + 1 + 2 mod 5`, and its modulus.

    Returns:
        The digits in their order; the number behind `mod`, None if there is none.

    Raises:
        UserError: the text is something else, or a term of a sum has several digits.
    """
    plain = " ".join(text.split())
    modulus = r"(?:,?\s*\(?(?:modulo|mod|%)\s*([0-9]+)\)?)?"
    found = re.fullmatch(rf"{_BEFORE}([0-9](?:[0-9\s,+]*[0-9])?){modulus}{_BEHIND}", plain, re.IGNORECASE)
    if found is None:
        raise UserError(f"{printed(text)}: is no problem of this task; write its digits, such as {example}")
    terms = re.findall("[0-9]+", found[1])
    if len(terms) > 1 and (longer := next((term for term in terms if len(term) > 1), None)):
        raise UserError(f"{longer}: has several digits, and each term of this task is one digit; write {example}")
    return list("".join(terms)), int(found[2]) if found[2] else None


def least_first(number: str) -> str:
    """Return a number's digits with the least significant first and spaces between them: `38` becomes `8 3`."""
    return " ".join(reversed(number))


def in_usual_order(text: str) -> str:
    """Return a text with each number of digits, least significant first, written as usual: `8 3 * 7 5` becomes `38 * 57`.

    Zeros at the front of a number are left out.
    """
    return _SPACED.sub(lambda found: found[0].replace(" ", "")[::-1].lstrip("0") or "0", text)


def joined_digits(text: str) -> str:
    """Return a text in which each number's digits stand together: `9 6 dollars` becomes `96 dollars`."""
    return _SPACED.sub(lambda found: found[0].replace(" ", ""), text)


def printed(text: str, most: int = 60) -> str:
    """Return a question for a message: in one line, and not too long."""
    line = " ".join(text.split())
    return repr(line if len(line) <= most else f"{line[:most]}...")
