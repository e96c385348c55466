"""The problems that an evaluation asks for: a split, a file, or a suite."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.predictions import PART
from stepwise_pl.tasks import ExampleList, Examples, Files, Task
from stepwise_pl.tasks.file_task import FileTask
from stepwise_pl.tasks.reading import names_in

log = logging.getLogger(__name__)


class Problems(NamedTuple):
    """The problems to be answered.

    Attributes:
        name: the problems in file names (`test`, `file-mine-1f3a5c70`, `ood`).
        title: the problems for reading.
        asked: the settings that chose them, for the summary.
        strata: the strata of each example (`Task.strata`).
        places: the index of each example in its split, file or part.
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


@dataclass
class WholeSplit:
    """All problems of a split are wanted."""

    split: str | None
    file: Any = None
    suite: str | None = None
    suite_size: int = 0
    limit: int | None = None


def problems_of(wanted: Wanted, task: Task, reserved: tuple[str, ...], notes: bool = True) -> Problems:
    """Return the problems that are wanted.

    Args:
        notes: log what the splits lack.

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
        suite = task.ood(splits["train"], wanted.suite_size)
        if not suite:
            raise UserError(f"suite={wanted.suite}: task {task.kind} has none; multiplication has one")
        parts = {"test": splits["test"], **suite}
        sizes = {part: len(problems) for part, problems in parts.items()}
        of_suite = {"suite": wanted.suite, "suite_size": wanted.suite_size, "suite_sizes": sizes}
        return Problems(wanted.suite, f"suite {wanted.suite}", of_suite, *_listed(parts, task, None))
    for note in splits.notes if notes else ():
        log.warning("%s", note)
    split = wanted.split or "test"
    if not len(splits[split]):
        raise UserError(f"the {split} split has no example")
    return Problems(split, split, {"split": split}, *_listed({"": splits[split]}, task, wanted.limit))


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
