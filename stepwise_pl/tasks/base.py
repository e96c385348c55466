"""The interface of a task: three splits of (prompt, cot, answer) texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

SPLITS = ("train", "validation", "test")


class Example(NamedTuple):
    """One problem as text: x, z and y of the paper. The CoT may be empty."""

    prompt: str
    cot: str
    answer: str

    def line(self) -> str:
        """The interchange format `prompt||cot #### answer`, without a newline."""
        return f"{self.prompt}||{self.cot} #### {self.answer}"


class Examples(Protocol):
    """A split. Texts are made when asked for, so that 808,000 examples need little memory."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> list[Example]:
        """The examples `start` .. `stop` - 1."""
        ...


class ExampleList(list[Example]):
    """Examples that are simply kept in memory."""

    def slice(self, start: int, stop: int) -> list[Example]:
        return self[start:stop]


@dataclass
class Task:
    """A source of examples. Subclasses are dataclasses whose fields are the config group `task`."""

    kind: str = ""

    def load(self) -> dict[str, Examples]:
        """The splits, by the names in `SPLITS`. The same config gives the same examples.

        Raises:
            UserError: a file is missing or a line cannot be read.
        """
        raise NotImplementedError

    def symbols(self) -> tuple[str, ...]:
        """The words of the task's texts, for the small tokenizer; empty if they are not known."""
        return ()

    def cot_length_known(self) -> bool:
        """Whether the CoT's length follows from the task alone, as keep_position needs to generate."""
        return False


def chunks(examples: Examples, size: int = 10_000) -> Iterator[list[Example]]:
    """All examples in order, `size` at a time."""
    for start in range(0, len(examples), size):
        yield examples.slice(start, min(start + size, len(examples)))


def write_lines(examples: Examples, path: Path) -> None:
    """Write a split in the format `prompt||cot #### answer`, which other implementations read."""
    with path.open("w", encoding="utf-8") as file:
        for chunk in chunks(examples):
            file.writelines(example.line() + "\n" for example in chunk)
