"""The interface of a task: three splits of (prompt, cot, answer) texts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate, compress
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks.formats import FORMS, Form

SPLITS = ("train", "validation", "test")
# A task may also have a split of easy examples for the start of training (`data.easy_first`).
EASY = "easy"


class Example(NamedTuple):
    """One problem as text: x, z and y of the paper. The CoT may be empty.

    Attributes:
        steps: indices of the characters of `cot` at which its reasoning steps begin; empty if they are not known.
    """

    prompt: str
    cot: str
    answer: str
    steps: tuple[int, ...] = ()

    @classmethod
    def of_steps(cls, prompt: str, steps: Sequence[str], answer: str) -> "Example":
        """Return an example whose CoT is the given steps, with a space between them."""
        begins = accumulate((len(step) + 1 for step in steps[:-1]), initial=0) if steps else ()
        return cls(prompt, " ".join(steps), answer, tuple(begins))

    def line(self) -> str:
        """Return the example in the interchange format `prompt||cot #### answer`, without a newline."""
        return f"{self.prompt}||{self.cot} #### {self.answer}"


def parse_line(line: str) -> Example:
    """Split one line `prompt||cot #### answer` into its parts. Raise `ValueError` with the reason if it has another form."""
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
    """A split. Its texts are made on demand, so that 808,000 examples need little memory."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> list[Example]:
        """Return the examples `start` .. `stop` - 1."""
        ...


class ExampleList(list[Example]):
    """Examples kept in memory, with the places that they were read from.

    Attributes:
        source: the file or data set.
        unit: the name of one record: line, row or item of an array.
        numbers: the number of each example's line, row or item; may be empty.
        files: the file of each example and the unit of that file; empty unless there are several files.
        malformed: a line for each malformed record, `line 3: the answer is empty`; with its file if there are several.
        notes: sentences that tell a person how values became text.
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
        """Return the examples for which `keep` is true."""
        out = ExampleList(compress(self, keep), self.source, self.unit)
        out.numbers = list(compress(self.numbers, keep))
        out.files = list(compress(self.files, keep))
        return out


def place(examples: Examples, split: str, index: int) -> str:
    """Return the place of example `index` of a split, for messages."""
    if isinstance(examples, ExampleList) and examples.numbers:
        file, unit = examples.files[index] if examples.files else (examples.source, examples.unit)
        return f"{file} {unit} {examples.numbers[index]}"
    return f"{split} example {index + 1}"


class Splits(dict[str, Examples]):
    """The splits of a task by name: those of `SPLITS`, and `EASY` if the task has it.

    Attributes:
        notes: sentences shown at every start: a split is smaller than asked for, lines were skipped.
    """

    def __init__(self, splits: Mapping[str, Examples], notes: Sequence[str] = ()) -> None:
        super().__init__(splits)
        self.notes = tuple(notes)


@dataclass
class Task:
    """A source of examples. Subclasses are dataclasses whose fields are the config group `task`."""

    # The most examples of each split, after `keep_few`.
    _few: ClassVar[Mapping[str, int]] = {}

    kind: str = ""

    def splits(self, reserved: tuple[str, ...] = ()) -> Splits:
        """Return the splits of `load`; after `keep_few` only their first examples."""
        found = self.load(reserved)
        for name in self._few.keys() & found.keys():
            examples = found[name]
            found[name] = ExampleList(
                examples.slice(0, min(self._few[name], len(examples))), getattr(examples, "source", "")
            )
        return found

    def load(self, reserved: tuple[str, ...] = ()) -> Splits:
        """Return the splits. The same config (and the same files) give the same examples.

        Args:
            reserved: texts that separate the parts, for example the tokenizer's end token. An
                example that holds one is malformed.

        Raises:
            UserError: a file is missing, or a line cannot be read.
        """
        raise NotImplementedError

    def keep_few(self, train: int, held_out: int) -> None:
        """Let `splits` keep at most `train` training examples, and `held_out` of validation and of test: for `debug=true`."""
        self._few = {"train": train, "easy": train, "validation": held_out, "test": held_out}  # type: ignore[misc]
        for key, most in (("train_size", train), ("validation_size", held_out), ("test_size", held_out)):
            if hasattr(self, key):
                setattr(self, key, min(getattr(self, key), most))

    def symbols(self) -> tuple[str, ...]:
        """Return the words of the task's texts, for the small tokenizer; empty if they are not known."""
        return ()

    def fingerprint(self) -> tuple[str, ...] | None:
        """Return digests of everything that `load` reads besides the config. They change when the data changes.

        None means that they are not known. Tokenised data is then not kept for the next start.
        """
        return None

    def quantities(self) -> tuple[str, ...]:
        """Return the names of the quantities that `values` knows."""
        return ()

    def require_quantity(self, name: str) -> None:
        """Raise `UserError` if the task has no such quantity."""
        if name not in self.quantities():
            known = ", ".join(self.quantities())
            has = f"it has {known}" if known else "it has none"
            raise UserError(f"method.value={name}: task={self.kind} has no such quantity; {has}")

    def values(self, name: str, examples: Sequence[Example]) -> list[npt.NDArray[np.float64]]:
        """Return a quantity behind the answer of each example: one number for each word of the answer, in its order.

        Raises:
            UserError: the task has no such quantity.
        """
        self.require_quantity(name)
        where = f"{type(self).__module__}.{type(self).__qualname__}"
        raise UserError(f"task={self.kind}: {where}.values must give {name}, which its quantities name")

    def results(self, examples: Sequence[Example]) -> dict[str, list[npt.NDArray[np.float64]]]:
        """Return the numbers behind the reasoning steps, by name; none by default. Probes look for them.

        Returns:
            For each name an array for each example: one number for each step in its order, nan for a step that has none.
        """
        return {}

    def operands_of(self, example: Example) -> tuple[str, ...]:
        """Return the operands of a problem, by which probes split problems: no operand is on both sides. By default there are none."""
        return ()

    def solved(self, prompts: Sequence[str]) -> list[Example | None]:
        """Return the problem of each prompt, with its CoT and answer; None for a text that is no prompt of the task.

        `patch` exchanges a word of a prompt and asks for the problem that comes of it. By default no prompt is known.
        """
        return [None] * len(prompts)

    def prompt_of(self, text: str) -> str:
        """Return the prompt of a problem that a person types; by default the text itself, in one line. `ask` uses it.

        Raises:
            UserError: the task cannot read the text.
        """
        prompt = " ".join(text.split())
        if not prompt:
            raise UserError("the question is empty; type a problem")
        try:
            prompt.encode()
        except UnicodeEncodeError:  # bytes that are no UTF-8, or half of a character in JSON
            raise UserError(f"{prompt[:60]!r}: is no text in UTF-8") from None
        return prompt

    def readable(self, text: str) -> str:
        """Return a prompt or an answer of the task as people write it; by default the text itself.

        `prompt_of` gives the prompt back: `prompt_of(readable(prompt)) == prompt`.
        """
        return text

    def cot_length_known(self) -> bool:
        """Whether the CoT's length follows from the task alone. Generation with keep_position needs that."""
        return False

    def strata(self, example: Example) -> dict[str, str]:
        """Return the properties by which an evaluation breaks accuracy down, with their values for this example.

        A property should take few values.
        """
        return {}

    def ood(self, splits: Splits, size: int) -> dict[str, Examples]:
        """Return problems out of the training distribution, for `evaluate suite=ood`.

        Args:
            splits: the splits of `load`. No problem of training may occur.
            size: the most problems of a part.

        Returns:
            The parts by name; empty if the task has no such suite. A part made of test problems is a `variants.Variants`.
        """
        return {}

    def forms(self) -> Mapping[str, Form]:
        """Return other ways to write a prompt, by name, for `evaluate suite=format`. The right answer stays the same."""
        return FORMS


def shortages(splits: Mapping[str, Sized], asked: Mapping[str, int]) -> list[str]:
    """Return a note for every split of a generated task that has fewer problems than asked for."""
    return [
        f"{name}: {len(splits[name])} of the {asked[name]} problems asked for; there are no more distinct ones"
        for name in SPLITS
        if len(splits[name]) < asked[name]
    ]


def chunks(examples: Examples, size: int = 10_000) -> Iterator[list[Example]]:
    """Yield all examples in order, `size` at a time."""
    for start in range(0, len(examples), size):
        yield examples.slice(start, min(start + size, len(examples)))


def write_lines(examples: Examples, path: Path) -> None:
    """Write a split in the format `prompt||cot #### answer`. Other implementations read it too.

    Raises:
        UserError: an example holds a separator or a line break. The format cannot hold either.
    """
    done = 0
    # A split that is only half written never has its final name.
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for chunk in chunks(examples):
                for index, example in enumerate(chunk):
                    line = example.line()
                    if "\n" in line or not _holds(line, example):
                        raise UserError(
                            f"{place(examples, path.stem, done + index)}: holds a line break, '||' or '####', but a line "
                            "of text cannot"
                        )
                    file.write(line + "\n")
                done += len(chunk)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _holds(line: str, example: Example) -> bool:
    """Whether the line is read back as the example. Reasoning steps do not count."""
    try:
        return parse_line(line) == example._replace(steps=())
    except ValueError:
        return False
