"""Your own data, from files or from the Hub: nothing dropped, nothing leaked, unless it is said."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from stepwise_pl.errors import UserError, printable, require
from stepwise_pl.registry import register
from stepwise_pl.tasks.base import SPLITS, Example, ExampleList, Examples, Splits, Task, chunks, parse_line
from stepwise_pl.tasks.reading import Record, Source, field_steps, field_text

log = logging.getLogger(__name__)

HELD_OUT = ("test", "validation")  # test first, so that it does not depend on validation
SHOWN = 100  # malformed lines listed before a run is refused; check_data lists all


@dataclass
class FileTask(Task):
    """Examples from a file or Hub data set for each split (`Source`). What a record means, a subclass decides.

    Where `validation` (or `test`) is not set, `validation_size` (`test_size`) prompts of
    the training set are held out. Which ones depends on their text alone, not on the
    order of the file; all examples with the same prompt go together.

    Raises:
        UserError: a file cannot be read; lines are malformed, unless `skip_malformed`; a
            prompt occurs in two splits, unless `allow_overlap`; a split is empty.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    # Prompts held out of train where no file is given.
    validation_size: int = 500
    test_size: int = 0
    # Leave malformed lines out, and say how many.
    skip_malformed: bool = False
    # Allow the same prompt in two splits, and say how many there are.
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        for key in ("validation_size", "test_size"):
            require(getattr(self, key) >= 0, f"task.{key}", getattr(self, key), "must be at least 0")
        self._opened: list[tuple[str, Source]] = []
        self._read: dict[tuple[str, ...], dict[str, ExampleList]] = {}  # files are read once for all that ask

    def columns(self) -> tuple[str, ...]:
        """The columns of a table that `example` reads."""
        raise NotImplementedError

    def example(self, record: Record) -> Example:
        """What a line of text or a row of a table says. Raises `ValueError` with the reason if it cannot be used."""
        raise NotImplementedError

    def load(self, reserved: tuple[str, ...] = ()) -> Splits:
        notes = []
        found = self._found(reserved)
        for split, examples in found.items():
            if examples.malformed and not self.skip_malformed:
                raise refused(examples, f"task.{split}", "mend them, or leave them out with task.skip_malformed=true")
            if examples.malformed:
                notes.append(f"{examples.source}: skipped {len(examples.malformed)} malformed {examples.unit}s")
            if not examples:
                raise UserError(f"task.{split}={examples.source}: no example in it")
        if (problem := self.too_few(reserved)) is not None:
            raise UserError(problem)
        splits = self.read(reserved)
        notes += splits.notes
        for one, other, shared in overlaps(splits):
            if not self.allow_overlap:
                raise UserError(
                    f"task.{other}: {len(shared)} of its prompts are also in {one} (first: {shared[0][:60]!r}); take them out, or "
                    "set task.allow_overlap=true"
                )
            notes.append(f"{len(shared)} prompts are in both {one} and {other}")
        return Splits(splits, notes)

    def read(self, reserved: tuple[str, ...] = ()) -> Splits:
        """What is there, however little: malformed lines are listed in each `ExampleList`, not refused.

        Raises:
            UserError: a file cannot be read at all.
        """
        found = dict(self._found(reserved))
        notes = []
        for split in (split for split in HELD_OUT if split not in found):
            size = min(getattr(self, f"{split}_size"), len(prompts(found["train"])) // 2)
            found["train"], found[split] = hold_out(found["train"], size, split)
            notes.append(f"{split}: {len(found[split])} examples held out of {found['train'].source}")
        return Splits({split: found[split] for split in SPLITS}, notes)

    def too_few(self, reserved: tuple[str, ...] = ()) -> str | None:
        """What to say if train has too few prompts to hold out as many as asked for."""
        found = self._found(reserved)
        there = len(prompts(found["train"]))
        for split in (split for split in HELD_OUT if split not in found):
            size = getattr(self, f"{split}_size")
            if 2 * size > there:
                return (
                    f"task.{split}_size={size}: must be at most half of the {there} prompts of {found['train'].source} "
                    f"that it is taken from, or give a file with task.{split}="
                )
            there -= size
        return None

    def read_other(self, name: str, key: str, reserved: tuple[str, ...] = ()) -> ExampleList:
        """All examples of another file or data set (`Source`), which `key` names, with the columns of this task.

        Raises:
            UserError: it cannot be read, is malformed (`skip_malformed` does not count here), or has no example.
        """
        examples = self._read_file(Source(name, key, self.columns()), reserved)
        if examples.malformed:
            raise refused(examples, key, "mend them")
        if not examples:
            raise UserError(f"{key}={name}: no example in it")
        return examples

    def _found(self, reserved: tuple[str, ...]) -> dict[str, ExampleList]:
        """The examples of the splits that have a source of their own."""
        if reserved not in self._read:
            self._read = {reserved: {name: self._read_file(source, reserved) for name, source in self._sources()}}
        for split in HELD_OUT:
            if getattr(self, split) is None and not getattr(self, f"{split}_size"):
                raise UserError(
                    f"task.{split} is not set: give a file, or task.{split}_size=N to hold N prompts of train out"
                )
        return self._read[reserved]

    def _sources(self) -> list[tuple[str, Source]]:
        """The splits that have a source of their own; opened once."""
        if self._opened:
            return self._opened
        if self.train is None:
            raise UserError(
                "task.train is not set: give a .txt, .jsonl, .csv, .tsv or .parquet file, or hub:<data set>:<split>"
            )
        named = [(split, getattr(self, split)) for split in SPLITS]
        self._opened = [
            (split, Source(name, f"task.{split}", self.columns())) for split, name in named if name is not None
        ]
        return self._opened

    def _read_file(self, source: Source, reserved: tuple[str, ...]) -> ExampleList:
        examples = ExampleList(source=source.name, unit=source.unit)
        for number, record in source.records():
            try:
                if isinstance(record, ValueError):
                    raise record
                example = self.example(record)
                _check(example, reserved)
            except ValueError as error:
                examples.malformed.append(printable(f"{source.unit} {number}: {error}"))
            else:
                examples.append(example)
                examples.numbers.append(number)
        return examples

    def fingerprint(self) -> tuple[str, ...]:
        return tuple(source.digest() for _, source in self._sources())

    def symbols(self) -> tuple[str, ...]:
        """The words of the training set, so that the small tokenizer fits any data of few distinct words."""
        if not self.read()["train"]:
            self.load()  # says why
        return tuple(
            sorted(
                {
                    word
                    for chunk in chunks(self.read()["train"])
                    for e in chunk
                    for text in e[:3]
                    for word in text.split()
                }
            )
        )


@register("task")
@dataclass
class Files(FileTask):
    """Your own examples: lines `prompt||cot #### answer` in a .txt file, or a table with a column for each part.

    In a JSONL file the CoT is one text, or a list of reasoning steps:
    `{"question": "2 * 3 + 4", "steps": ["2 * 3 = 6", "6 + 4 = 10"], "answer": "10"}`
    """

    kind: str = "file"
    # Columns of a table, or fields of a JSON object.
    prompt_field: str = "question"
    cot_field: str = "steps"
    answer_field: str = "answer"
    # The text that a reasoning step begins with, where the CoT is one text (`<<` for equations).
    step_start: str | None = None

    def columns(self) -> tuple[str, ...]:
        return (self.prompt_field, self.cot_field, self.answer_field)

    def example(self, record: Record) -> Example:
        if isinstance(record, str):
            return with_steps(parse_line(record), self.step_start)
        assert not isinstance(record, ValueError)
        prompt, answer = (field_text(record, name).strip() for name in (self.prompt_field, self.answer_field))
        cot = field_steps(record, self.cot_field)
        if isinstance(cot, list):
            return Example.of_steps(prompt, cot, answer)
        return with_steps(Example(prompt, cot.strip(), answer), self.step_start)


def refused(examples: ExampleList, key: str, advice: str) -> UserError:
    """Log the malformed lines; return the error that names the first of them."""
    for line in examples.malformed[:SHOWN]:
        log.error("%s", line)
    if len(examples.malformed) > SHOWN:
        log.error("... and %d more", len(examples.malformed) - SHOWN)
    return UserError(
        f"{key}={examples.source}: {len(examples.malformed)} malformed {examples.unit}s, the first is "
        f"{examples.malformed[0]}; {advice}"
    )


def with_steps(example: Example, start: str | None) -> Example:
    """The example with a reasoning step beginning wherever `start` stands in the CoT, and at its beginning.

    Where it stands nowhere, nothing is known of steps.
    """
    if not start or start not in example.cot:
        return example
    found, place = {0}, example.cot.find(start)
    while place >= 0:
        found.add(place)
        place = example.cot.find(start, place + len(start))
    return example._replace(steps=tuple(sorted(found)))


def normal(prompt: str) -> str:
    """A prompt for comparisons: spaces and line breaks do not count."""
    return " ".join(prompt.split())


def prompts(examples: Examples) -> dict[str, None]:
    """The distinct prompts of a split, in order."""
    return dict.fromkeys(normal(example.prompt) for chunk in chunks(examples) for example in chunk)


def hold_out(examples: ExampleList, size: int, salt: str) -> tuple[ExampleList, ExampleList]:
    """What is kept, and the examples of `size` distinct prompts, chosen by a hash of their text."""

    def rank(prompt: str) -> bytes:
        return hashlib.blake2b(prompt.encode(), key=salt.encode()).digest()

    chosen = set(sorted(prompts(examples), key=rank)[:size])
    inside = [normal(example.prompt) in chosen for example in examples]
    kept, held = examples.where([not here for here in inside]), examples.where(inside)
    kept.malformed = examples.malformed
    return kept, held


def overlaps(splits: Splits) -> Iterable[tuple[str, str, list[str]]]:
    """Every two splits that share prompts, and which."""
    of = {split: prompts(examples) for split, examples in splits.items()}
    for one, other in combinations(SPLITS, 2):
        if shared := [prompt for prompt in of[other] if prompt in of[one]]:
            yield one, other, shared


def _check(example: Example, reserved: tuple[str, ...]) -> None:
    """Raise `ValueError` with the reason if the example cannot be trained on."""
    if not example.prompt:
        raise ValueError("the prompt is empty")
    if not example.answer:
        raise ValueError("the answer is empty")
    text = "\n".join(example[:3])
    for token in reserved:
        if token in text:
            raise ValueError(f"the end token {token!r} occurs in the text")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("half of a surrogate pair, which is no character")
