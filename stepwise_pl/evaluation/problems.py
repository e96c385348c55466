"""The problems that an evaluation asks for: a split, a file, or a suite."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.predictions import PART
from stepwise_pl.tasks import Example, ExampleList, Examples, Files, Splits, Task
from stepwise_pl.tasks.file_task import FileTask
from stepwise_pl.tasks.reading import names_in
from stepwise_pl.tasks.variants import Variants, reformatted

log = logging.getLogger(__name__)


class Problems(NamedTuple):
    """The problems to be answered.

    Attributes:
        name: the problems in file names (`test`, `file-mine-1f3a5c70`, `ood`).
        title: the problems for reading.
        asked: the settings that chose them, for the summary.
        strata: the strata of each example (`Task.strata`).
        places: the index of each example in its split, file or part; of a variant, that of the test problem it was made of.
    """

    name: str
    title: str
    asked: dict[str, Any]
    examples: ExampleList
    strata: list[dict[str, str]]
    places: list[int]


class Wanted(Protocol):
    """The problems that are asked for (`EvaluateConfig`): a split, a file or a suite; the split `test` if all three are None."""

    split: str | None
    file: Any
    suite: str | None
    suite_size: int
    limit: int | None


class CanRead(Protocol):
    """Says which problems of a suite a run can read (`writable.Reader`)."""

    def obstacles(self, part: str, examples: Sequence[Example]) -> list[str]:
        """Return for each problem what hinders the run from reading it; empty if nothing does."""
        ...

    def same_as(self, variant: str, original: str) -> bool:
        """Whether two prompts are the same tokens."""
        ...


@dataclass
class WholeSplit:
    """All problems of a split are wanted."""

    split: str | None
    file: Any = None
    suite: str | None = None
    suite_size: int = 0
    limit: int | None = None


def problems_of(
    wanted: Wanted,
    task: Task,
    reserved: tuple[str, ...],
    notes: bool = True,
    reader: CanRead | None = None,
) -> Problems:
    """Return the problems that are wanted.

    Args:
        notes: log what the splits lack.
        reader: the reader of a suite. Problems that it cannot read are left out; None: it reads all.

    Raises:
        UserError: the problems cannot be read, there is none, or the task has no suite.
    """
    if wanted.file is not None:
        examples = (task if isinstance(task, FileTask) else Files()).read_other(wanted.file, "file", reserved)
        stem = re.sub(r"[^\w.-]", "-", Path(names_in(wanted.file, "file")[0]).stem)
        # The name has a digest, because files in two folders may have the same name, and a list has more than one.
        name, title, asked = f"file-{stem}-{digest(examples)[:8]}", examples.source, {"file": wanted.file}
        return Problems(name, title, asked, *_listed({"": examples}, task, wanted.limit))
    splits = task.splits(reserved)
    if wanted.suite is not None:
        return _suite(wanted.suite, wanted.suite_size, task, splits, reader)
    for note in splits.notes if notes else ():
        log.warning("%s", note)
    split = wanted.split or "test"
    if not len(splits[split]):
        raise UserError(f"the {split} split has no example")
    return Problems(split, split, {"split": split}, *_listed({"": splits[split]}, task, wanted.limit))


def _suite(suite: str, size: int, task: Task, splits: Splits, reader: CanRead | None) -> Problems:
    """Return the problems of a suite, the test split first."""
    asked = task.ood(splits, size) if suite == "ood" else reformatted(task, splits, size)
    if not asked and suite == "ood":
        raise UserError(f"suite=ood: task {task.kind} has none; suite=format is for every task")
    if not asked:
        first = f"{min(size, len(splits['test']))} test problems"
        raise UserError(f"suite=format: no form changes a prompt of the first {first}, so there is nothing to ask")
    test = splits["test"]
    parts: dict[str, Examples] = {"test": test}
    places = {"test": list(range(len(test)))}
    left_out: dict[str, str] = {}
    for part, examples in asked.items():
        rows, reason = _readable(part, examples, test, reader)
        listed = examples.slice(0, len(examples))
        parts[part] = ExampleList([listed[row] for row in rows])
        origins = examples.origins if isinstance(examples, Variants) else range(len(listed))
        places[part] = [origins[row] for row in rows]
        reasons = [examples.left_out] if isinstance(examples, Variants) else []
        if text := "; ".join(filter(None, [*reasons, reason])):
            left_out[part] = text
    examples, strata, _ = _listed(parts, task, None)
    of_suite = {
        "suite": suite,
        "suite_size": size,
        "suite_sizes": {part: len(problems) for part, problems in parts.items()},
        "suite_left_out": left_out,
        "suite_pairs": [part for part, examples in asked.items() if isinstance(examples, Variants)],
    }
    return Problems(suite, f"suite {suite}", of_suite, examples, strata, sum(places.values(), []))


def _readable(part: str, examples: Examples, test: Examples, reader: CanRead | None) -> tuple[list[int], str]:
    """Return the rows of the problems that the reader can read, and a line that counts the others; empty if there are none."""
    listed = examples.slice(0, len(examples))
    if reader is None:
        return list(range(len(listed))), ""
    obstacles = reader.obstacles(part, listed)
    if isinstance(examples, Variants):
        originals = (test.slice(origin, origin + 1)[0] for origin in examples.origins)
        obstacles = [
            why or ("the same tokens as the test problem" if reader.same_as(variant.prompt, original.prompt) else "")
            for why, variant, original in zip(obstacles, listed, originals, strict=True)
        ]
    rows = [row for row, why in enumerate(obstacles) if not why]
    if len(rows) == len(listed):
        return rows, ""
    first = next(filter(None, obstacles))
    if not rows:
        return rows, f"left out: {first}"
    return rows, f"{len(listed) - len(rows)} of {len(listed)} left out, the first: {first}"


def _listed(
    parts: Mapping[str, Examples], task: Task, limit: int | None
) -> tuple[ExampleList, list[dict[str, str]], list[int]]:
    """Return the first `limit` examples of each part (None: all), part by part, with their strata and places."""
    examples = ExampleList()
    strata: list[dict[str, str]] = []
    places: list[int] = []
    for part, of_part in parts.items():
        there = of_part.slice(0, len(of_part) if limit is None else min(limit, len(of_part)))
        examples += there
        strata += [{**({PART: part} if part else {}), **task.strata(example)} for example in there]
        places += range(len(there))
    return examples, strata, places


def digest(examples: ExampleList) -> str:
    """Return a hash of the examples' texts, in order."""
    lines = "\n".join(json.dumps(example[:3]) for example in examples)
    return hashlib.sha256(lines.encode()).hexdigest()
