"""Tokenised data on disk: a second start maps it into memory instead of tokenising again."""

import contextlib
import hashlib
import inspect
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from stepwise_pl import tasks
from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.common.processes import is_alive
from stepwise_pl.data import encoding, layout, roundtrip
from stepwise_pl.data import tokenizers as own_tokenizers
from stepwise_pl.data import values as values_module
from stepwise_pl.data.encoding import EncodedExamples, encode
from stepwise_pl.data.values import values_beside
from stepwise_pl.tasks import EASY, SPLITS, Task

log = logging.getLogger(__name__)

ARRAYS = ("tokens", "start", "cot_start", "answer_start", "step_start")
NOTES = "notes.json"
LEFT_OVER = 24 * 3600  # seconds
Encoded = tuple[dict[str, EncodedExamples], tuple[str, ...]]  # the splits, and the notes on them


class Form(NamedTuple):
    """The parts of an entry beside the tokens: the beginnings of reasoning steps, and quantities of the task by name."""

    by_step: bool
    values: tuple[str, ...]

    def arrays(self) -> tuple[str, ...]:
        """Return the names of the arrays of a split, besides its quantities."""
        return ARRAYS if self.by_step else ARRAYS[:-1]

    def files(self, examples: EncodedExamples) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of a split by the names of their files."""
        plain = {name: getattr(examples, name) for name in self.arrays()}
        return plain | {f"values.{name}": examples.values[name] for name in self.values}


def encoded_splits(
    task: Task, tokenizer: PreTrainedTokenizerBase, by_step: bool = False, cache_dir: str | None = None,
    values: Sequence[str] = (),
) -> dict[str, EncodedExamples]:  # fmt: skip
    """Return a task's splits, tokenised, by name (`SPLITS`, and `EASY` if the task has it); from the cache if possible.

    An entry of the cache is a folder. Its name is a hash of everything that the data depends
    on (`cache_key`), so that a stale entry is never found. An entry appears complete or not at
    all. If the cache cannot be written, the data stays in memory.

    Args:
        by_step: find the beginnings of reasoning steps as well; the unit of removal is then a step.
        cache_dir: the folder of the cache; None: no cache.
        values: quantities of the task to lay beside the tokens (`Task.values`).

    Raises:
        UserError: the data cannot be read or tokenised.
    """
    found, form = None, Form(by_step, tuple(values))
    folder = None if cache_dir is None else _folder(cache_dir, task, tokenizer, form)
    if folder is not None:
        found = _read(folder, form)
        if found is not None:
            log.info("tokenised data from %s", folder)
    if found is None:
        started = time.monotonic()
        found = _encode(task, tokenizer, form)
        if folder is not None:
            assert cache_dir is not None
            # A file may have changed since. The name must match the data that was read.
            folder = _folder(cache_dir, task, tokenizer, form)
        if folder is not None and _write(found, folder, form):
            log.info("data tokenised in %.1f s, kept in %s", time.monotonic() - started, folder)
            found = _read(folder, form) or found
    encoded, notes = found
    for note in notes:
        log.warning("%s", note)
    return encoded


def _folder(cache_dir: str, task: Task, tokenizer: PreTrainedTokenizerBase, form: Form) -> Path | None:
    """Return the folder of the entry, there or not; None if the data cannot be kept."""
    if task.fingerprint() is None:
        return None
    try:
        return Path(cache_dir).expanduser() / cache_key(task, tokenizer, form)
    except RuntimeError as error:  # `~` stands for no folder
        log.warning("data.cache_dir=%s: not written (%s); the data stays in memory", cache_dir, first_line(error))
    except (TypeError, OSError):  # a task typed into a notebook has no source file
        log.info("the task's source is not known, so its tokenised data is not kept")
    return None


def cache_key(task: Task, tokenizer: PreTrainedTokenizerBase, form: Form) -> str:
    """Return a hash of the task's config, of the content that it reads, of the tokenizer, and of the code that tokenises."""
    code = [
        *sorted(Path(inspect.getfile(tasks)).parent.rglob("*.py")),
        *(Path(inspect.getfile(module)) for module in (encoding, layout, own_tokenizers, roundtrip, values_module)),
    ]
    code += [Path(inspect.getfile(cls)) for cls in type(task).__mro__[:-1]]  # a task may be defined outside the package
    parts = [
        json.dumps(asdict(task), sort_keys=True),
        *(task.fingerprint() or ()),
        _tokenizer_digest(tokenizer),
        str(form.by_step),
        *form.values,
    ]
    parts += [f"{library.__name__} {library.__version__}" for library in (np, tokenizers, transformers)]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in code]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that decides how a tokenizer encodes and decodes."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        # Truncation and padding are left out: every call sets them, and the backend keeps them from the last call.
        plain = {
            key: value for key, value in json.loads(backend.to_str()).items() if key not in ("truncation", "padding")
        }
        parts = [json.dumps(plain, sort_keys=True), str(tokenizer.special_tokens_map)]
        parts.append(str(tokenizer.clean_up_tokenization_spaces))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _encode(task: Task, tokenizer: PreTrainedTokenizerBase, form: Form) -> Encoded:
    splits = task.splits(reserved=(str(tokenizer.eos_token),))
    for split in SPLITS:
        if not len(splits[split]):
            raise UserError(f"the {split} split has no example")
    notes = list(splits.notes)
    found = {}
    for split in (split for split in (*SPLITS, EASY) if split in splits):
        encoded = found[split] = encode(splits[split], tokenizer, split, form.by_step, notes)
        for name in form.values:
            encoded.values[name] = values_beside(task, name, splits[split], encoded, tokenizer, split)
    return found, tuple(notes)


def _write(data: Encoded, folder: Path, form: Form) -> bool:
    """Write the entry. Return False, after a warning, if it cannot be written."""
    encoded, notes = data
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_writing_prefix()) as temporary:
            fresh = Path(temporary) / "entry"
            fresh.mkdir()
            for split, examples in encoded.items():
                for name, array in form.files(examples).items():
                    np.save(fresh / f"{split}.{name}.npy", array)
            (fresh / NOTES).write_text(json.dumps(notes), encoding="utf-8")
            try:
                fresh.rename(folder)
            except OSError:  # another process was faster, or an old entry is damaged
                if _read(folder, form) is None:
                    shutil.rmtree(folder)
                    fresh.rename(folder)
    except OSError as error:
        log.warning("data.cache_dir=%s: not written (%s); the data stays in memory", folder.parent, first_line(error))
        return False
    return True


def _writing_prefix() -> str:
    """Return the beginning of the name of the folder in which this process writes an entry."""
    return f"writing-{os.getpid()}-{platform.node()}-"


def remove_leftovers(cache: Path) -> None:
    """Remove the unfinished folders of killed processes. A folder that a process may still write to stays.

    The name of a folder holds its process and machine (not in older versions). A process on
    another machine cannot be checked: its folder is removed once nothing was added for a day.
    """
    for folder in cache.glob("writing-*"):
        made_by = re.fullmatch(r"writing-(\d+)-(.+)-[^-]+", folder.name)
        with contextlib.suppress(OSError):  # another process has removed it
            if made_by and made_by[2] == platform.node():
                left_over = not is_alive(int(made_by[1]))
            else:
                newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                left_over = time.time() - newest > LEFT_OVER
            if left_over:
                shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path, form: Form) -> Encoded | None:
    """Return the entry, mapped into memory; None if it is missing or damaged."""

    def array(split: str, name: str) -> npt.NDArray[Any]:
        return np.asarray(np.lib.format.open_memmap(folder / f"{split}.{name}.npy", mode="r"))

    try:
        notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        if not isinstance(notes, list):
            return None
        encoded = {
            split: EncodedExamples(
                **{name: array(split, name) for name in form.arrays()},
                values={name: array(split, f"values.{name}") for name in form.values},
            )
            for split in (*SPLITS, EASY)
            if split != EASY or (folder / f"{EASY}.tokens.npy").exists()
        }
        return encoded, tuple(map(str, notes))
    except Exception:  # a damaged entry fails in many ways; it is made again
        return None
