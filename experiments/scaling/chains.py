"""How long is the carry chain into each token of a multiplication's CoT and answer? Means over problems of training: chains.csv.

    python experiments/scaling/chains.py

The chain into a digit is 0 if no carry comes in, and else 1 + the chain into the digit before it. A digit of a row takes the carries
of that row alone, a digit of a running sum or of the answer those of its last addition: what stands in the CoT before it counts as
given. Signs, brackets and padding zeros have 0.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from experiments.readme import write_rows
from stepwise_pl.tasks import Multiplication
from stepwise_pl.tasks.base import Example
from stepwise_pl.tasks.long_multiplication import read_prompt

HERE = Path(__file__).resolve().parent
PROBLEMS = 2000
# Digits of the two operands of each task.
SIZES = {"2x2": (2, 2), "3x2": (3, 2), "3x3": (3, 3)}
COT, ANSWER = "cot", "answer"
# Between the name of a number and its digit, in the name of a token.
DIGIT = ", digit "
COLUMNS = ("task", "part", "number", "name", "varies", "mean_chain", "problems")


class Link(NamedTuple):
    """A token and the carry chain into it.

    Attributes:
        name: the token in words, such as `row 2, digit 1`.
        varies: false for what is the same in every problem: signs, brackets, and zeros that shift a row.
        chain: see the top of this file.
    """

    name: str
    varies: bool
    chain: int


def settled(sums: Sequence[int]) -> tuple[list[int], list[int]]:
    """The digits that the sums of places come to once carries have moved, and the chain into each; least significant first.

    Raises:
        ValueError: a carry leaves the last place.
    """
    digits, chains = [], []
    carry = chain = 0
    for value in sums:
        chains.append(chain)
        digits.append((value + carry) % 10)
        carry = (value + carry) // 10
        chain = chain + 1 if carry else 0
    if carry:
        raise ValueError("a carry leaves the last place")
    return digits, chains


def links_of(example: Example) -> tuple[list[Link], list[Link]]:
    """The tokens of the CoT and of the answer of a multiplication, with their chains.

    Raises:
        ValueError: the texts are not those of a long multiplication.
    """
    first, second = ([int(text) for text in operand] for operand in read_prompt(example.prompt) or ("", ""))
    cot: list[Link] = []
    total: list[int] = []
    into_total: list[int] = []
    sign, rows = "", 0
    for is_digits, group in groupby(example.cot.split(), str.isdigit):
        texts = list(group)
        if not is_digits:
            cot += [Link(text, False, 0) for text in texts]
            sign = texts[-1]
            continue
        if sign == "(":
            name, shift, digits, chains = f"sum {rows}", 0, total, into_total
        else:
            name, shift = f"row {rows + 1}", rows
            digits, chains = settled([0] * rows + [digit * second[rows] for digit in first] + [0])
            total, into_total = settled(
                [old + new for old, new in zip(_padded(total, len(digits)), digits, strict=True)]
            )
            rows += 1
        _require_same(texts, digits, name)
        cot += [Link(f"{name}{DIGIT}{i + 1}", i >= shift, chain) for i, chain in enumerate(chains)]
    _require_same(example.answer.split(), total, ANSWER)
    return cot, [Link(f"{ANSWER}{DIGIT}{i + 1}", True, chain) for i, chain in enumerate(into_total)]


def _padded(digits: list[int], width: int) -> list[int]:
    return digits + [0] * (width - len(digits))


def _require_same(texts: Sequence[str], digits: Sequence[int], name: str) -> None:
    if texts != [str(digit) for digit in digits]:
        raise ValueError(f"{name}: {' '.join(texts)} is written, where {' '.join(map(str, digits))} is meant")


def chain_rows(task: str, examples: Sequence[Example]) -> Iterator[dict[str, object]]:
    """A row for each token: its number in CoT or answer, from 1 on, its name, and the mean chain over the examples.

    Raises:
        ValueError: the CoTs are not alike in their tokens.
    """
    found = [links_of(example) for example in examples]
    for part, of_part in zip((COT, ANSWER), zip(*found, strict=True), strict=True):
        for number, links in enumerate(zip(*of_part, strict=True), start=1):
            ((name, varies),) = {(link.name, link.varies) for link in links}
            yield {
                "task": task, "part": part, "number": number, "name": name, "varies": "yes" if varies else "no",
                "mean_chain": fmean(link.chain for link in links), "problems": len(links),
            }  # fmt: skip


def main() -> None:
    """Write chains.csv."""
    rows: list[dict[str, object]] = []
    for task, (digits, second) in SIZES.items():
        problems = Multiplication(digits=digits, second_digits=second, split="unordered").load()["train"]
        rows += chain_rows(task, problems.slice(0, PROBLEMS))
    write_rows(HERE / "chains.csv", COLUMNS, rows)


if __name__ == "__main__":
    main()
