"""Your own data, from files or from the Hub: nothing dropped, nothing leaked, unless it is said."""

import hashlib
import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from stepwise_pl.common.errors import UserError, one_of, printable, require
from stepwise_pl.common.registry import register
from stepwise_pl.common.settings import setting
from stepwise_pl.tasks.base import SPLITS, Example, ExampleList, Examples, Splits, Task, chunks, parse_line, place
from stepwise_pl.tasks.reading import (
    BYTE_ORDER_MARK,
    FORMATS,
    HUB,
    MARK_INSIDE,
    QUOTING,
    Record,
    Source,
    below,
    field_steps,
    field_text,
    line_end_hint,
    names_in,
)

log = logging.getLogger(__name__)

HELD_OUT = ("test", "validation")  # test first, so that it does not depend on validation
SHOWN = 100  # malformed lines listed before a run is refused; check_data lists all
COMPARED = "compared without regard to spaces and Unicode forms (NFKC); case counts"
# Characters without width that are no part of the text: soft hyphen, zero-width space, word joiner, byte-order mark.
_NO_WIDTH = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))


@dataclass(frozen=True)
class DataSearch:
    """The places where the data of a run may lie: where it was, or, if a folder has moved with run and data, there.

    Attributes:
        run: the run folder.
        starts: folders in which the run was started, the newest first. Paths were typed from there.
        digests: of its splits, in order; None if they were not kept.
    """

    run: Path
    starts: Sequence[Path]
    digests: list[str] | None = None

    def roots(self) -> list[Path]:
        """The folders to look in: the starts, the current one, and those above the run."""
        run = self.run.resolve()
        return list(dict.fromkeys([*self.starts, Path.cwd(), *run.parents[:-1]]))

    def places(self) -> list[tuple[Path, Callable[[str], str]]]:
        """Each folder, and how a name is to be read in it; at last, files beside the run or in it by their bare names."""
        run = self.run.resolve()
        return [
            *((root, partial(below, root)) for root in self.roots()),
            *((root, _bare) for root in (run.parent, run)),
        ]


def _bare(name: str) -> str:
    return name if name.startswith(HUB) else Path(name).name


@dataclass
class FileTask(Task):
    """Examples from files or a Hub data set for each split (`Source`). What a record means, a subclass decides.

    Where `validation` (or `test`) is not set, `validation_size` (`test_size`) prompts of
    the training set are held out. Which ones depends on their text alone, not on the
    order of the file; all examples with the same prompt go together.

    Raises:
        UserError: a file cannot be read; lines are malformed, unless `skip_malformed`; a
            prompt occurs in two splits, unless `allow_overlap`; a split is empty.
    """

    # A file, a pattern such as `data/part-*.jsonl`, a Hub data set, or a list of these.
    train: Any = setting(None, path=True)
    validation: Any = setting(None, path=True)
    test: Any = setting(None, path=True)
    # Whether double quotes stand around text in CSV and TSV (`quotes`), or are characters like others (`none`).
    quoting: str = "quotes"
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
        one_of("task.quoting", self.quoting, QUOTING)
        self._opened: list[tuple[str, Source]] = []
        self._search: DataSearch | None = None
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
        """What is there, however little: malformed lines are listed in each `ExampleList`, not refused.

        Raises:
            UserError: a file cannot be read at all.
        """
        found = dict(self._found(reserved))
        notes = [
            note for split, examples in found.items() for note in (*examples.notes, *self.about_cots(split, examples))
        ]
        for split in (split for split in HELD_OUT if split not in found):
            size = min(getattr(self, f"{split}_size"), len(prompts(found["train"])) // 2)
            found["train"], found[split] = hold_out(found["train"], size, split)
            notes.append(f"{split}: {len(found[split])} examples held out of {found['train'].source}")
        return Splits({split: found[split] for split in SPLITS}, notes)

    def obstacles(self, reserved: tuple[str, ...] = ()) -> list[str]:
        """The obstacles to training although every line can be read: too few prompts to hold out, no CoT."""
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
        """The text that reasoning steps begin with where a CoT is one text; None if that is not known."""
        raise NotImplementedError

    # The share of empty CoTs, or of CoTs without a step, that is worth a note.
    odd_share = 0.9
    # The advice for such CoTs.
    cot_advice = ""

    def about_cots(self, split: str, examples: ExampleList) -> list[str]:
        """A note if more CoTs of a split are empty, or without the mark of a step, than such data has as a rule."""
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
        """All examples of another file or data set (`Source`), which `key` names, with the columns of this task.

        Raises:
            UserError: it cannot be read, is malformed (`skip_malformed` does not count here), or has no example.
        """
        examples = self._read_source(Source(name, key, self.columns(), quoting=self.quoting), reserved)
        if examples.malformed:
            raise refused(examples, key, "mend them")
        if not examples:
            raise UserError(f"{key}={examples.source}: no example in it")
        for note in examples.notes:
            log.warning("%s", note)
        return examples

    def _found(self, reserved: tuple[str, ...]) -> dict[str, ExampleList]:
        """The examples of the splits that have a source of their own."""
        if reserved not in self._read:
            self._read = {reserved: {name: self._read_source(source, reserved) for name, source in self._sources()}}
        for split in HELD_OUT:
            if getattr(self, split) is None and not getattr(self, f"{split}_size"):
                raise UserError(
                    f"task.{split} is not set: give a file, or task.{split}_size=N to hold N prompts of train out"
                )
        return self._read[reserved]

    def look_in(self, search: DataSearch) -> None:
        """Read relative paths from whichever folder of the search has the data; the fields stay as they are."""
        self._search = search

    def _sources(self) -> list[tuple[str, Source]]:
        """The splits that have a source of their own; opened once."""
        if not self._opened:
            self._opened = self._open() if self._search is None else self._found_in(self._search)
        return self._opened

    def _open(self, root: Path = Path(), rename: Callable[[str], str] = str) -> list[tuple[str, Source]]:
        if self.train is None:
            raise UserError(f"task.train is not set: give {FORMATS}, a pattern, or a list of files")
        opened = []
        for split in SPLITS:
            if (value := getattr(self, split)) is not None:
                name = rename(value) if isinstance(value, str) else list(map(rename, names_in(value, f"task.{split}")))
                opened.append((split, Source(name, f"task.{split}", self.columns(), quoting=self.quoting, root=root)))
        return opened

    def _found_in(self, search: DataSearch) -> list[tuple[str, Source]]:
        """The sources in the first place that has the very data of the run; or else in the first that has such files.

        Raises:
            UserError: no place has them all.
        """
        there: list[list[tuple[str, Source]]] = []
        seen: set[tuple[str, ...]] = set()
        unread: UserError | None = None
        for root, rename in search.places():
            try:
                sources = self._open(root, rename)
            except UserError:  # a pattern matches nothing here, or two files have the same bare name
                continue
            files = tuple(part.identity for _, source in sources for part in source.parts)
            if files in seen or any(source.missing() for _, source in sources):
                continue
            seen.add(files)
            try:
                if search.digests is None or [source.digest() for _, source in sources] == search.digests:
                    return sources
            except UserError as error:
                unread = unread or error
            else:
                there.append(sources)
        if there:
            return there[0]
        if unread is not None:
            raise unread
        names = ", ".join(f"task.{split}={name}" for split in SPLITS if (name := getattr(self, split)) is not None)
        raise UserError(
            f"{search.run}: the data of this run is not there ({names}); looked in "
            f"{', '.join(map(str, search.roots()))}; put it back, or answer another file with evaluate file=<file>"
        )

    def _read_source(self, source: Source, reserved: tuple[str, ...]) -> ExampleList:
        examples = ExampleList(source=source.name)
        several = len(source.parts) > 1
        for part in source.parts:
            for number, record in part.records():
                try:
                    if isinstance(record, ValueError):
                        raise record
                    example = self.example(record)
                    _check(example, reserved)
                except ValueError as error:
                    hint = line_end_hint(record) if isinstance(record, str) else ""
                    file = f"{part.name} " if several else ""
                    examples.malformed.append(printable(f"{file}{part.unit} {number}: {error}{hint}"))
                else:
                    examples.append(example)
                    examples.numbers.append(number)
            if several:
                examples.files += [(part.name, part.unit)] * (len(examples) - len(examples.files))
            examples.notes += part.notes
        examples.unit = source.unit
        hidden = [index for index, example in enumerate(examples) if any(map(_has_no_width, example[:3]))]
        if hidden:
            examples.notes.append(
                f"{len(hidden)} examples hold characters without width, which stay (first: {place(examples, '', hidden[0])})"
            )
        return examples

    def fingerprint(self) -> tuple[str, ...]:
        return tuple(source.digest() for _, source in self._sources())

    def symbols(self) -> tuple[str, ...]:
        """The words of the training set, so that the small tokenizer fits any data of few distinct words."""
        train = self.read()["train"]
        if not train:
            self.load()  # says why
        texts = (text for chunk in chunks(train) for example in chunk for text in example[:3])
        return tuple(sorted({word for text in texts for word in text.split()}))


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
    # The text that a reasoning step begins with, where the CoT is one text (`<<` for equations; `\\n` for lines).
    step_start: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cot_advice = f" (is task.cot_field={self.cot_field} right?)"

    def columns(self) -> tuple[str, ...]:
        return (self.prompt_field, self.cot_field, self.answer_field)

    def step_mark(self) -> str | None:
        return self.step_start

    def example(self, record: Record) -> Example:
        if isinstance(record, str):
            return with_steps(parse_line(record), self.step_start)
        assert not isinstance(record, ValueError)
        prompt, answer = (field_text(record, name).strip() for name in (self.prompt_field, self.answer_field))
        cot = field_steps(record, self.cot_field)
        if isinstance(cot, list):
            return Example.of_steps(prompt, cot, answer)
        return with_steps(Example(prompt, cot.strip(), answer), self.step_start)


def _has_no_width(text: str) -> bool:
    return not text.isascii() and text != text.translate(_NO_WIDTH)


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

    Where it stands nowhere, nothing is known of steps. A command line cannot hold a line break: `\\n` stands for one
    (and `\\t` for a tab), unless the CoT holds that very text. Several line breaks in a row begin one step.
    """
    if start and start not in example.cot:
        start = start.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t")
    if not start or start not in example.cot:
        return example
    found, at = [0], example.cot.find(start)
    while at >= 0:
        blank = start.isspace() and found[-1] and not example.cot[found[-1] : at].strip()
        if at and not blank:
            found.append(at)
        at = example.cot.find(start, at + len(start))
    return example._replace(steps=tuple(found))


def normal(prompt: str) -> str:
    """A prompt for comparisons: neither spaces nor line breaks count, nor the form in Unicode.

    `é` may be one character or two, digits may be wide, `ﬁ` may be one letter (NFKC). Case counts. Exponents, indices
    and fractions stay: 5² is not 52, as NFKC alone would have it.
    """
    if not prompt.isascii():
        prompt = "".join(
            "".join(part) if stays else unicodedata.normalize("NFKC", "".join(part))
            for stays, part in groupby(prompt.translate(_NO_WIDTH), _keeps_meaning)
        )
    return " ".join(prompt.split())


@cache
def _keeps_meaning(character: str) -> bool:
    return unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>"))


def prompts(examples: Examples) -> dict[str, str]:
    """The distinct prompts of a split, in order, and the least of the spellings that each has (spaces aside)."""
    found: dict[str, str] = {}
    for chunk in chunks(examples):
        for example in chunk:
            spelled = " ".join(example.prompt.split())
            key = normal(spelled)
            found[key] = min(found.get(key, spelled), spelled)
    return found


def hold_out(examples: ExampleList, size: int, salt: str) -> tuple[ExampleList, ExampleList]:
    """What is kept, and the examples of `size` distinct prompts, chosen by a hash of their text."""
    # The hash is of the text as it is spelled, so that runs made before forms were compared keep their splits.
    spelled = prompts(examples)

    def rank(prompt: str) -> bytes:
        return hashlib.blake2b(spelled[prompt].encode(), key=salt.encode()).digest()

    chosen = set(sorted(spelled, key=rank)[:size])
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
    if BYTE_ORDER_MARK in text:
        raise ValueError(MARK_INSIDE)
    for token in reserved:
        if token in text:
            raise ValueError(f"the end token {token!r} occurs in the text")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("half of a surrogate pair, which is no character")
