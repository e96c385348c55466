"""The interface of a task: three splits of (prompt, cot, answer) texts."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate, compress
from pathlib import Path
from typing import NamedTuple, Protocol

from stepwise_pl.common.errors import UserError

SPLITS = ("train", "validation", "test")
EASY = "easy"  # examples for the start of training, which a task may have besides (`data.easy_first`)

# A number whose commas stand between groups of exactly three digits: 1,000 and -$12,345.6, but not 1,2 or 0,123
# or 1,2,300. Behind a bracket a comma parts the items of a list or the arguments of a function: [1,200] is two numbers.
_THOUSANDS = re.compile(r"(?<![0-9.,(\[{])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9]|\.[0-9]+,[0-9])")
# The same number written digit by digit: 1 , 0 0 0.
_THOUSANDS_SPACED = re.compile(
    r"(?<!\S)(?<![0-9.,(\[{] )[1-9](?: [0-9]){0,2}(?: ,(?: [0-9]){3})+(?!\S| [0-9]| , [0-9]| \.(?: [0-9])+ , [0-9])"
)


def without_thousands_separators(text: str) -> str:
    """The text without the commas that only group the digits of one number: `1,000, 2,000.5` becomes `1000, 2000.5`.

    Every other comma stays, because it parts things: `1,2` is not `12`.
    """
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    return _THOUSANDS_SPACED.sub(lambda number: number[0].replace(" ,", ""), text)


class Example(NamedTuple):
    """One problem as text: x, z and y of the paper. The CoT may be empty.

    `steps` are the characters of `cot` at which its reasoning steps begin; empty where the
    data does not say.
    """

    prompt: str
    cot: str
    answer: str
    steps: tuple[int, ...] = ()

    @classmethod
    def of_steps(cls, prompt: str, steps: Sequence[str], answer: str) -> "Example":
        """An example whose CoT is the given steps, with a space between them."""
        begins = accumulate((len(step) + 1 for step in steps[:-1]), initial=0) if steps else ()
        return cls(prompt, " ".join(steps), answer, tuple(begins))

    def line(self) -> str:
        """The interchange format `prompt||cot #### answer`, without a newline."""
        return f"{self.prompt}||{self.cot} #### {self.answer}"


def parse_line(line: str) -> Example:
    """Split one line `prompt||cot #### answer` into its parts. Raises `ValueError` with the reason if it cannot be."""
    prompt, bar, rest = line.partition("||")
    if not bar:
        raise ValueError("no '||' between prompt and CoT")
    if "||" in rest:
        raise ValueError("'||' occurs more than once")
    cot, mark, answer = rest.partition("####")
    if not mark:
        raise ValueError("no '####' before the answer")
    if "####" in answer:
        raise ValueError("'####' occurs more than once")
    return Example(prompt.strip(), cot.strip(), answer.strip())


class Examples(Protocol):
    """A split. Texts are made when asked for, so that 808,000 examples need little memory."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> list[Example]:
        """The examples `start` .. `stop` - 1."""
        ...


class ExampleList(list[Example]):
    """Examples that are simply kept in memory, and where they were read.

    Attributes:
        source, unit: what was read, and what it is counted in (line, row or item of an array).
        numbers: the line, row or item of each example; may be empty.
        files: the file of each example and what that is counted in; empty unless there are several files.
        malformed: what could not be read, `line 3: the answer is empty`; with its file if there are several.
        notes: what a person must know of how values became text, one sentence each.
    """

    def __init__(self, examples: Iterable[Example] = (), source: str = "", unit: str = "line") -> None:
        super().__init__(examples)
        self.source, self.unit = source, unit
        self.numbers: list[int] = []
        self.files: list[tuple[str, str]] = []
        self.malformed: list[str] = []
        self.notes: list[str] = []

    def slice(self, start: int, stop: int) -> list[Example]:
        return self[start:stop]

    def where(self, keep: Sequence[bool]) -> "ExampleList":
        """Those examples for which `keep` is true."""
        out = ExampleList(compress(self, keep), self.source, self.unit)
        out.numbers = list(compress(self.numbers, keep))
        out.files = list(compress(self.files, keep))
        return out


def place(examples: Examples, split: str, index: int) -> str:
    """Where example `index` of a split stands, for messages."""
    if isinstance(examples, ExampleList) and examples.numbers:
        file, unit = examples.files[index] if examples.files else (examples.source, examples.unit)
        return f"{file} {unit} {examples.numbers[index]}"
    return f"{split} example {index + 1}"


class Splits(dict[str, Examples]):
    """The splits of a task, by the names in `SPLITS`; and maybe `EASY` ones.

    `notes` say what a person must know of how they came to be, one sentence each: splits
    that came out smaller than asked for, lines that were skipped. They are shown at every start.
    """

    def __init__(self, splits: Mapping[str, Examples], notes: Sequence[str] = ()) -> None:
        super().__init__(splits)
        self.notes = tuple(notes)


@dataclass
class Task:
    """A source of examples. Subclasses are dataclasses whose fields are the config group `task`."""

    kind: str = ""

    def load(self, reserved: tuple[str, ...] = ()) -> Splits:
        """The splits. The same config (and the same files) give the same examples.

        Args:
            reserved: texts that stand between the parts, such as the tokenizer's end
                token; an example that holds one is malformed.

        Raises:
            UserError: a file is missing, or a line cannot be read.
        """
        raise NotImplementedError

    def symbols(self) -> tuple[str, ...]:
        """The words of the task's texts, for the small tokenizer; empty if they are not known."""
        return ()

    def fingerprint(self) -> tuple[str, ...] | None:
        """What `load` reads besides the config, as digests: a change is a change of the data.

        None: not known, and tokenised data is not kept for the next start.
        """
        return None

    def cot_length_known(self) -> bool:
        """Whether the CoT's length follows from the task alone, as keep_position needs to generate."""
        return False

    def strata(self, example: Example) -> dict[str, str]:
        """By which properties of an example accuracy is broken down in an evaluation, and their values; few each."""
        return {}

    def ood(self, train: Examples, size: int) -> dict[str, Examples]:
        """Problems out of the training distribution, for `evaluate suite=ood`: up to `size` in each named part.

        Args:
            train: the training split of `load`, of which no problem may occur.

        Returns:
            No part at all if the task has no such suite.
        """
        return {}


def shortages(splits: Mapping[str, Sized], asked: Mapping[str, int]) -> list[str]:
    """A note for every split of a generated task that has fewer problems than asked for."""
    return [
        f"{name}: {len(splits[name])} of the {asked[name]} problems asked for; there are no more distinct ones"
        for name in SPLITS
        if len(splits[name]) < asked[name]
    ]


def chunks(examples: Examples, size: int = 10_000) -> Iterator[list[Example]]:
    """All examples in order, `size` at a time."""
    for start in range(0, len(examples), size):
        yield examples.slice(start, min(start + size, len(examples)))


def write_lines(examples: Examples, path: Path) -> None:
    """Write a split in the format `prompt||cot #### answer`, which other implementations read.

    Raises:
        UserError: an example holds a separator or a line break, which the format cannot hold.
    """
    done = 0
    temporary = path.with_name(f"{path.name}.tmp")  # no half of a split is left behind
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for chunk in chunks(examples):
                for index, example in enumerate(chunk):
                    line = example.line()
                    if "\n" in line or not _holds(line, example):
                        raise UserError(
                            f"{place(examples, path.stem, done + index)}: holds a line break, '||' or '####', which a line "
                            "of text cannot"
                        )
                    file.write(line + "\n")
                done += len(chunk)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _holds(line: str, example: Example) -> bool:
    """Whether the line is read back as the example, reasoning steps aside."""
    try:
        return parse_line(line) == example._replace(steps=())
    except ValueError:
        return False
