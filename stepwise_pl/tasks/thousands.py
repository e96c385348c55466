"""Commas that group the digits of a number."""

import re

# A number whose commas stand between groups of exactly three digits: 1,000 and -$12,345.6, but not 1,2 or 0,123
# or 1,2,300. A comma behind a bracket separates the items of a list or the arguments of a function: [1,200] is two numbers.
_THOUSANDS = re.compile(r"(?<![0-9.,(\[{])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9]|\.[0-9]+,[0-9])")
# The same number written digit by digit: 1 , 0 0 0.
_THOUSANDS_SPACED = re.compile(
    r"(?<!\S)(?<![0-9.,(\[{] )[1-9](?: [0-9]){0,2}(?: ,(?: [0-9]){3})+(?!\S| [0-9]| , [0-9]| \.(?: [0-9])+ , [0-9])"
)


def without_thousands_separators(text: str) -> str:
    """Return the text without the commas that only group the digits of one number: `1,000, 2,000.5` becomes `1000, 2000.5`.

    Every other comma stays, because it separates two things: `1,2` is not `12`.
    """
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    return _THOUSANDS_SPACED.sub(lambda number: number[0].replace(" ,", ""), text)
