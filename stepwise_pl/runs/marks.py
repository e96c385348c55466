"""The state of a run folder: whether it holds a checkpoint or anything measured, and whether its run has begun to train."""

import os
from pathlib import Path

# Files that only training brings back.
MEASURED = ("metrics.csv", "stages.jsonl", "summary.json", "accuracy.png", "accuracy.svg")

# This file exists from the first step to the first checkpoint. A start that finds it measures everything again.
NO_CHECKPOINT = ".no-checkpoint-yet"

_BEGUN: set[Path] = set()  # run folders in which this process has begun to train


def holds_run(path: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (path / "checkpoints" / "last.ckpt").is_file()


def measured(path: Path) -> list[str]:
    """The files in the folder that only training brings back, by name: those measured, checkpoints and evaluations.

    A link to what is not there (a disk that is not mounted) counts as well.
    """
    folders = (*(path / "checkpoints").glob("*.ckpt"), *(path / "evaluations").glob("*"))
    names = [name for name in MEASURED if os.path.lexists(path / name)]
    return [*names, *sorted(str(file.relative_to(path)) for file in folders)]


def is_taken(path: Path) -> bool:
    """Whether the folder holds a run, or what is left of one."""
    return holds_run(path) or bool(measured(path))


def training_begins(path: Path) -> None:
    """Note that training begins. The first process calls it; from here on a failure no longer puts the folder back."""
    _BEGUN.add(path.absolute())
    if holds_run(path):
        checkpoint_written(path)  # A process that was killed right after its first checkpoint has not noted it.
    else:
        (path / NO_CHECKPOINT).write_text("")


def checkpoint_written(path: Path) -> None:
    """Delete the file that says there is no checkpoint, so that metrics are kept even if the checkpoint is lost later."""
    (path / NO_CHECKPOINT).unlink(missing_ok=True)


def has_no_checkpoint_yet(path: Path) -> bool:
    """Whether training has begun in the folder, in any process, and has ended before the first checkpoint."""
    return (path / NO_CHECKPOINT).is_file()


def is_begun(path: Path) -> bool:
    """Whether this process has begun to train in the folder."""
    return path.absolute() in _BEGUN


def forget(path: Path) -> None:
    """Forget that this process has trained in the folder."""
    _BEGUN.discard(path.absolute())
