"""Tokenised data on disk: a second start maps it into memory instead of tokenising again."""

import hashlib
import inspect
import json
import logging
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from stepwise_pl import tasks, tokenizing
from stepwise_pl.errors import UserError, first_line
from stepwise_pl.tasks import SPLITS, Task
from stepwise_pl.tokenizing import EncodedExamples, encode

log = logging.getLogger(__name__)

ARRAYS = ("tokens", "start", "cot_start", "answer_start", "step_start")
NOTES = "notes.json"
Encoded = tuple[dict[str, EncodedExamples], tuple[str, ...]]  # the splits, and the notes on them


def encoded_splits(
    task: Task, tokenizer: PreTrainedTokenizerBase, by_step: bool = False, cache_dir: str | None = None
) -> dict[str, EncodedExamples]:
    """A task's splits, tokenised, by the names in `SPLITS`; from the cache if they are there.

    An entry is a folder named by a hash of all that goes into it (`cache_key`), so that a
    stale one is never found, and appears in one go. Where the cache cannot be written the
    data stays in memory.

    Args:
        by_step: note where reasoning steps begin, to remove those instead of tokens.
        cache_dir: None: no cache.

    Raises:
        UserError: the data cannot be read or tokenised.
    """
    if cache_dir is None:
        encoded, notes = _encode(task, tokenizer, by_step)
    else:
        folder = Path(cache_dir).expanduser() / cache_key(task, tokenizer, by_step)
        found = _read(folder)
        if found is None:
            started = time.monotonic()
            found = _encode(task, tokenizer, by_step)
            _write(found, folder)
            log.info("data tokenised in %.1f s, kept in %s", time.monotonic() - started, folder)
            found = _read(folder) or found
        encoded, notes = found
    for note in notes:
        log.warning("%s", note)
    return encoded


def cache_key(task: Task, tokenizer: PreTrainedTokenizerBase, by_step: bool) -> str:
    """A hash of the task's config, the content it reads, the tokenizer, and the code that makes tokens of them."""
    code = [*sorted(Path(inspect.getfile(tasks)).parent.glob("*.py")), Path(inspect.getfile(tokenizing))]
    code += [Path(inspect.getfile(cls)) for cls in type(task).__mro__[:-1]]  # a task may come from elsewhere
    parts = [json.dumps(asdict(task), sort_keys=True), *task.fingerprint(), _digest(tokenizer), str(by_step)]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in code]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of everything a tokenizer saves of itself."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _encode(task: Task, tokenizer: PreTrainedTokenizerBase, by_step: bool) -> Encoded:
    splits = task.load(reserved=(str(tokenizer.eos_token),))
    for split in SPLITS:
        if not len(splits[split]):
            raise UserError(f"the {split} split has no example")
    return {split: encode(splits[split], tokenizer, split, by_step) for split in SPLITS}, splits.notes


def _write(data: Encoded, folder: Path) -> None:
    encoded, notes = data
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="writing-") as temporary:
            fresh = Path(temporary) / "entry"
            fresh.mkdir()
            for split, examples in encoded.items():
                for name in ARRAYS:
                    if (array := getattr(examples, name)) is not None:
                        np.save(fresh / f"{split}.{name}.npy", array)
            (fresh / NOTES).write_text(json.dumps(notes), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            fresh.rename(folder)
    except OSError as error:  # also: another process was faster
        log.warning("data.cache_dir=%s: not written (%s); the data stays in memory", folder.parent, first_line(error))


def _read(folder: Path) -> Encoded | None:
    """The entry, mapped into memory; None if it is not there or damaged."""

    def array(split: str, name: str) -> np.ndarray:
        return np.asarray(np.load(folder / f"{split}.{name}.npy", mmap_mode="r"))

    try:
        notes = tuple(json.loads((folder / NOTES).read_text(encoding="utf-8")))
        names = [name for name in ARRAYS if (folder / f"{SPLITS[0]}.{name}.npy").exists()]
        return {split: EncodedExamples(**{name: array(split, name) for name in names}) for split in SPLITS}, notes
    except (OSError, ValueError):
        return None
