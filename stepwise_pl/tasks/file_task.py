"""Your own data, from files or from the Hub. A note reports every example that is dropped or occurs in two splits."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError, one_of, printable, require
from stepwise_pl.common.settings import setting
from stepwise_pl.tasks.base import SPLITS, Example, ExampleList, Splits, Task, chunks, place
from stepwise_pl.tasks.equations import step_results
from stepwise_pl.tasks.prompts import COMPARED, has_no_width, hold_out, overlaps, prompts
from stepwise_pl.tasks.reading import (
    BYTE_ORDER_MARK,
    FORMATS,
    HUB,
    MARK_INSIDE,
    QUOTING,
    Record,
    Source,
    below,
    line_end_hint,
    names_in,
)

log = logging.getLogger(__name__)

# Test comes first, so that it does not depend on the size of validation.
HELD_OUT = ("test", "validation")
# A run that is refused lists so many malformed lines; check_data lists all.
SHOWN = 100


@dataclass(frozen=True)
class DataSearch:
    """The places where the data of a run may lie: the old place, or a new one if run and data have moved together.

    Attributes:
        run: the run folder.
        starts: folders in which the run was started, the newest first. Relative paths begin there.
        digests: digests of the run's splits, in order; None if they were not kept.
    """

    run: Path
    starts: Sequence[Path]
    digests: list[str] | None = None

    def roots(self) -> list[Path]:
        """Return the folders to look in: the starts, the current folder, and the folders above the run."""
        run = self.run.resolve()
        return list(dict.fromkeys([*self.starts, Path.cwd(), *run.parents[:-1]]))

    def places(self) -> list[tuple[Path, Callable[[str], str]]]:
        """Return each folder to look in, with a function that turns a configured name into the name to look for there.

        The last two folders are the one of the run and the one above. A file is looked for there by its bare name.
        """
        run = self.run.resolve()
        return [
            *((root, partial(below, root)) for root in self.roots()),
            *((root, _bare) for root in (run.parent, run)),
        ]


def _bare(name: str) -> str:
    """Return the name of a file without its folders."""
    return name if name.startswith(HUB) else Path(name).name


@dataclass
class FileTask(Task):
    """Examples from files or a Hub data set for each split (`Source`). A subclass decides what a record means.

    If `validation` (or `test`) is not set, `validation_size` (`test_size`) prompts of the
    training set are held out. The choice depends on their text alone, not on the order of
    the file. All examples with the same prompt stay in the same split.

    Raises:
        UserError: a file cannot be read; lines are malformed, unless `skip_malformed`; a
            prompt occurs in two splits, unless `allow_overlap`; a split is empty.
    """

    # A file, a pattern such as `data/part-*.jsonl`, a Hub data set, or a list of these.
    train: Any = setting(None, path=True)
    # Validation problems, named as `train` is; null: `validation_size` prompts are held out.
    validation: Any = setting(None, path=True)
    # Test problems, named as `train` is; null: `test_size` prompts are held out.
    test: Any = setting(None, path=True)
    # Whether double quotes stand around text in CSV and TSV (`quotes`), or are characters like others (`none`).
    quoting: str = "quotes"
    # Prompts held out of train for the validation split if no file is given; at least 0.
    validation_size: int = 500
    # Prompts held out of train for the test split if no file is given; at least 0.
    test_size: int = 0
    # Leave malformed lines out; a note counts them.
    skip_malformed: bool = False
    # Allow the same prompt in two splits; a note counts them.
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        for key in ("validation_size", "test_size"):
            require(getattr(self, key) >= 0, f"task.{key}", getattr(self, key), "must be at least 0")
        one_of("task.quoting", self.quoting, QUOTING)
        self._opened: list[tuple[str, Source]] = []
        self._search: DataSearch | None = None
        # The most examples that are read for each split; None: all.
        self._most: int | None = None
        # The examples of each split, by the reserved texts. Files are read once.
        self._read: dict[tuple[str, ...], dict[str, ExampleList]] = {}

    def keep_few(self, train: int, held_out: int) -> None:
        super().keep_few(train, held_out)
        self._most = train

    def columns(self) -> dict[str, str]:
        """Return the columns of a table that `example` reads, each with the config key that gives its name (empty: none does)."""
        raise NotImplementedError

    def example(self, record: Record) -> Example:
        """Return the example on a line of text or in a row of a table. Raise `ValueError` with the reason if there is none."""
        raise NotImplementedError

    def load(self, reserved: tuple[str, ...] = ()) -> Splits:
        notes = []
        found = self._found(reserved)
        for split, examples in found.items():
            if examples.malformed and not self.skip_malformed:
                raise malformed_error(
                    examples, f"task.{split}", "mend them, or leave them out with task.skip_malformed=true"
                )
            if examples.malformed:
                notes.append(f"{examples.source}: skipped {len(examples.malformed)} malformed {examples.unit}s")
            if not examples:
                raise UserError(f"task.{split}={examples.source}: no example in it")
        if problems := self.obstacles(reserved):
            raise UserError(problems[0])
        splits = self.read(reserved)
        notes += splits.notes
        for one, other, shared in overlaps(splits):
            if not self.allow_overlap:
                raise UserError(
                    f"task.{other}: {len(shared)} of its prompts are also in {one} (first: {shared[0][:60]!r}), {COMPARED}; "
                    "take them out, or set task.allow_overlap=true"
                )
            notes.append(f"{len(shared)} prompts are in both {one} and {other} ({COMPARED})")
        return Splits(splits, notes)

    def read(self, reserved: tuple[str, ...] = ()) -> Splits:
        """Return all examples that can be read. Malformed lines are listed in each `ExampleList`, not refused.

        Raises:
            UserError: a file cannot be read at all.
        """
        found = dict(self._found(reserved))
        notes = [
            note for split, examples in found.items() for note in (*examples.notes, *self.cot_notes(split, examples))
        ]
        for split in (split for split in HELD_OUT if split not in found):
            size = min(getattr(self, f"{split}_size"), len(prompts(found["train"])) // 2)
            found["train"], found[split] = hold_out(found["train"], size, split)
            notes.append(f"{split}: {len(found[split])} examples held out of {found['train'].source}")
        return Splits({split: found[split] for split in SPLITS}, notes)

    def obstacles(self, reserved: tuple[str, ...] = ()) -> list[str]:
        """Return the obstacles to training although every line can be read: too few prompts to hold out, no CoT."""
        found = self._found(reserved)
        problems = []
        there = len(prompts(found["train"]))
        for split in (split for split in HELD_OUT if split not in found):
            size = getattr(self, f"{split}_size")
            if 2 * size > there:
                problems.append(
                    f"task.{split}_size={size}: must be at most half of the {there} prompts of {found['train'].source} "
                    f"that it is taken from, or give a file with task.{split}="
                )
                break
            there -= size
        return problems

    def step_mark(self) -> str | None:
        """Return the text that begins a reasoning step if a CoT is one text; None if it is not known."""
        raise NotImplementedError

    # A larger share of empty CoTs, or of CoTs without a step, makes a note.
    odd_share = 0.9
    # The advice for such CoTs.
    cot_advice = ""

    def cot_notes(self, split: str, examples: ExampleList) -> list[str]:
        """Return a note if most CoTs of a split are empty, and one if most have no mark of a step (`odd_share`)."""
        cots = [example for example in examples if example.cot]
        empty = len(examples) - len(cots)
        notes = []
        if empty > max(1, self.odd_share * len(examples)):
            meaning = ", and train as No CoT" if split == "train" else ""
            notes.append(
                f"{split}: {empty} of the {len(examples)} CoTs of {examples.source} are empty{meaning}{self.cot_advice}"
            )
        without = sum(not example.steps for example in cots)
        if (mark := self.step_mark()) and cots and without > self.odd_share * len(cots):
            notes.append(
                f"{split}: {without} of the {len(cots)} CoTs of {examples.source} have no {mark!r}, with which a reasoning step "
                "should begin"
            )
        return notes

    def read_other(self, name: object, key: str, reserved: tuple[str, ...] = ()) -> ExampleList:
        """Return all examples of another file or data set (`Source`) with the columns of this task.

        Args:
            name: the file or data set.
            key: the config key that gives it, for messages.

        Raises:
            UserError: the file cannot be read, is malformed (`skip_malformed` does not count here), or has no example.
        """
        examples = self._read_source(Source(name, key, self.columns(), quoting=self.quoting), reserved)
        if examples.malformed:
            raise malformed_error(examples, key, "mend them")
        if not examples:
            raise UserError(f"{key}={examples.source}: no example in it")
        for note in examples.notes:
            log.warning("%s", note)
        return examples

    def _found(self, reserved: tuple[str, ...]) -> dict[str, ExampleList]:
        """Return the examples of the splits that have their own source, before any are held out."""
        if reserved not in self._read:
            self._read = {
                reserved: {name: self._read_source(source, reserved, self._most) for name, source in self._sources()}
            }
        for split in HELD_OUT:
            if getattr(self, split) is None and not getattr(self, f"{split}_size"):
                raise UserError(
                    f"task.{split} is not set: give a file, or task.{split}_size=N to hold N prompts of train out"
                )
        return self._read[reserved]

    def look_in(self, search: DataSearch) -> None:
        """Read relative paths from the folder of the search that has the data. The fields stay as they are."""
        self._search = search

    def _sources(self) -> list[tuple[str, Source]]:
        """Return the sources of the splits that have their own; opened once."""
        if not self._opened:
            self._opened = self._open() if self._search is None else self._found_in(self._search)
        return self._opened

    def _open(self, root: Path = Path(), rename: Callable[[str], str] = str) -> list[tuple[str, Source]]:
        if self.train is None:
            raise UserError(f"task.train is not set: give {FORMATS}, a pattern, or a list of files")
        opened = []
        for split in SPLITS:
            if (value := getattr(self, split)) is not None:
                key = f"task.{split}"
                if split in HELD_OUT and str(value).isdecimal() and int(value) > 0:
                    raise UserError(
                        f"{key}={value}: is no file; to hold {value} prompts of train out, set {key}_size={value}"
                    )
                name = rename(value) if isinstance(value, str) else list(map(rename, names_in(value, key)))
                opened.append((split, Source(name, key, self.columns(), quoting=self.quoting, root=root)))
        return opened

    def _found_in(self, search: DataSearch) -> list[tuple[str, Source]]:
        """Return the sources in the first place whose data is that of the run (by digest).

        If no place has that data, return the sources in the first place that has all the files.

        Raises:
            UserError: no place has all the files.
        """
        others: list[list[tuple[str, Source]]] = []
        seen: set[tuple[str, ...]] = set()
        unread: UserError | None = None
        for root, rename in search.places():
            try:
                sources = self._open(root, rename)
            except UserError:  # a pattern matches no file here, or two files have the same bare name
                continue
            files = tuple(reader.identity for _, source in sources for reader in source.readers)
            if files in seen or any(source.missing() for _, source in sources):
                continue
            seen.add(files)
            try:
                if search.digests is None or [source.digest() for _, source in sources] == search.digests:
                    return sources
            except UserError as error:
                unread = unread or error
            else:
                others.append(sources)
        if others:
            return others[0]
        if unread is not None:
            raise unread
        names = ", ".join(f"task.{split}={name}" for split in SPLITS if (name := getattr(self, split)) is not None)
        raise UserError(
            f"{search.run}: the data of this run is not there ({names}); looked in "
            f"{', '.join(map(str, search.roots()))}; put it back, or answer another file with evaluate file=<file>"
        )

    def _read_source(self, source: Source, reserved: tuple[str, ...], most: int | None = None) -> ExampleList:
        """Return the examples of a source; `most`: only the first of each of its files."""
        examples = ExampleList(source=source.name)
        several = len(source.readers) > 1
        for reader in source.readers:
            for number, record in islice(reader.records(), most):
                try:
                    if isinstance(record, ValueError):
                        raise record
                    example = self.example(record)
                    _check(example, reserved)
                except ValueError as error:
                    hint = line_end_hint(record) if isinstance(record, str) else ""
                    file = f"{reader.name} " if several else ""
                    examples.malformed.append(printable(f"{file}{reader.unit} {number}: {error}{hint}"))
                else:
                    examples.append(example)
                    examples.numbers.append(number)
            if several:
                examples.files += [(reader.name, reader.unit)] * (len(examples) - len(examples.files))
            examples.notes += reader.notes
        examples.unit = source.unit
        hidden = [index for index, example in enumerate(examples) if any(map(has_no_width, example[:3]))]
        if hidden:
            examples.notes.append(
                f"{len(hidden)} examples hold characters without width, which stay (first: {place(examples, '', hidden[0])})"
            )
        return examples

    def results(self, examples: Sequence[Example]) -> dict[str, list[npt.NDArray[np.float64]]]:
        """Return the number behind the last equals sign of each step as `result`."""
        return {"result": [step_results(example) for example in examples]}

    def fingerprint(self) -> tuple[str, ...]:
        return tuple(source.digest() for _, source in self._sources())

    def symbols(self) -> tuple[str, ...]:
        """Return the words of the training set, so that the small tokenizer fits any data of few distinct words."""
        train = self.read()["train"]
        if not train:
            self.load()  # raises the reason
        texts = (text for chunk in chunks(train) for example in chunk for text in example[:3])
        return tuple(sorted({word for text in texts for word in text.split()}))


def malformed_error(examples: ExampleList, key: str, advice: str) -> UserError:
    """Log the malformed lines; return the error that names the first one."""
    for line in examples.malformed[:SHOWN]:
        log.error("%s", line)
    if len(examples.malformed) > SHOWN:
        log.error("... and %d more", len(examples.malformed) - SHOWN)
    return UserError(
        f"{key}={examples.source}: {len(examples.malformed)} malformed {examples.unit}s, the first is "
        f"{examples.malformed[0]}; {advice}"
    )


def _check(example: Example, reserved: tuple[str, ...]) -> None:
    """Raise `ValueError` with the reason if the example cannot be trained on."""
    if not example.prompt:
        raise ValueError("the prompt is empty")
    if not example.answer:
        raise ValueError("the answer is empty")
    text = "\n".join(example[:3])
    if BYTE_ORDER_MARK in text:
        raise ValueError(MARK_INSIDE)
    for token in reserved:
        if token in text:
            raise ValueError(f"the end token {token!r} occurs in the text")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("half of a surrogate pair, which is no character")
