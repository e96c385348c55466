"""Marks in a run folder: whether its run has begun to train, and whether it has a checkpoint yet. Free of torch."""

from pathlib import Path

# Left in the folder from the first step on until there is a checkpoint: what was measured by then comes again.
NO_CHECKPOINT = ".no-checkpoint-yet"
_BEGUN: set[Path] = set()  # run folders in which this process has begun to train


def training_begins(path: Path) -> None:
    """Note that training begins, called by the first process: from here on the folder is not put back as it was."""
    _BEGUN.add(path.absolute())
    if holds_run(path):
        checkpoint_written(path)  # A process killed right after its first checkpoint has not noted it.
    else:
        (path / NO_CHECKPOINT).write_text("")


def checkpoint_written(path: Path) -> None:
    """Note that there is a checkpoint: should it be lost, what was measured is not."""
    (path / NO_CHECKPOINT).unlink(missing_ok=True)


def is_begun(path: Path) -> bool:
    """Whether this process has begun to train in the folder."""
    return path.absolute() in _BEGUN


def has_no_checkpoint_yet(path: Path) -> bool:
    """Whether training has begun in the folder, in any process, and was ended before the first checkpoint."""
    return (path / NO_CHECKPOINT).is_file()


def forget(path: Path) -> None:
    """Let a start in this process be the first again."""
    _BEGUN.discard(path.absolute())


def holds_run(path: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (path / "checkpoints" / "last.ckpt").is_file()
