"""Working in a run folder: one process at a time, and a start that fails leaves the folder as it was."""

import contextlib
import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from stepwise_pl.common import processes
from stepwise_pl.common.disk import make_folder
from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.marks import MEASURED, forget, is_begun

_LOCKS: dict[Path, IO[str]] = {}

# Everything that a start writes before it trains. All else in the folder is the user's, and is never touched.
_OF_A_START = (
    *MEASURED,
    "config.yaml",
    "environment.json",
    "wandb.json",
    "model",
    "checkpoints",
    "wandb",
    "tensorboard",
)


@contextlib.contextmanager
def at_work(path: Path) -> Iterator[None]:
    """Make the folder and keep other processes out of it.

    A start that fails before training has begun leaves the folder as it was. A further process of the run has nothing
    to do here.

    Raises:
        UserError: another process is at work in the folder, or the folder cannot be written.
    """
    if processes.is_further():
        yield
        return
    new = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    make_folder(path, "run_dir")
    unlocked = not (path / ".lock").exists()
    lock(path)
    try:
        forget(path)
        # Read under the lock: until then another run may write here.
        there = _of_a_start(path)
        kept = [file for file in there if file.parent in (path, path / "model") and file.is_file()]
        content = {file: file.read_bytes() for file in kept}
        try:
            make_folder(path / "checkpoints", "run_dir", probe=False)  # an old run's folder keeps its time
            _sweep_out(path)
            processes.share_folder(path)
            yield
        except BaseException:
            if not is_begun(path):
                _put_back(path, there, content)
                if unlocked:
                    (path / ".lock").unlink(missing_ok=True)
                _remove_empty(new)
            raise
    finally:
        unlock(path)


def begin_anew(path: Path) -> None:
    """Remove what a run that never had a checkpoint has measured: it will be measured again."""
    for name in (*MEASURED, "wandb.json"):
        (path / name).unlink(missing_ok=True)


def lock(path: Path) -> None:
    """Keep other processes out of a folder for as long as this process lives, however it ends.

    Raises:
        UserError: another process is at work in the folder.
    """
    file = (path / ".lock").open("a+", encoding="utf-8")
    try:
        # A record lock belongs to this process alone: workers that outlive it for a moment do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise UserError(
            f"run_dir={path}: another process is at work in it ({file.read().strip()}); wait for it, or choose another run_dir"
        ) from None
    except OSError:  # some network file systems have no locks
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _LOCKS[path.absolute()] = file  # closing it would unlock


def unlock(path: Path) -> None:
    """Let other processes in again: the run is over, and this process may have more to do (a sweep)."""
    if (file := _LOCKS.pop(path.absolute(), None)) is not None:
        file.close()


def _sweep_out(path: Path) -> None:
    """Remove what a killed process was still writing. Nobody else is at work in the folder."""
    for file in (path / "checkpoints").glob("*.tmp"):
        file.unlink(missing_ok=True)
    for folder in path.glob("artifact-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _of_a_start(path: Path) -> set[Path]:
    """All files and folders that are there of those a start writes (`_OF_A_START`)."""
    names = [name for whole in _OF_A_START for name in (whole, f"{whole}.tmp")]
    tops = [path / name for name in names if os.path.lexists(path / name)]
    return {*tops, *(inside for top in tops if not top.is_symlink() for inside in top.rglob("*"))}


def _put_back(path: Path, there: set[Path], content: dict[Path, bytes]) -> None:
    """Remove what a start has written that is not among `there`, and give files their `content` again."""
    with contextlib.suppress(OSError):
        for made in sorted(_of_a_start(path) - there, reverse=True):  # contents before their folder
            if made.is_dir() and not made.is_symlink():
                shutil.rmtree(made, ignore_errors=True)
            else:
                made.unlink(missing_ok=True)
        for file, before in content.items():
            if not file.is_file() or file.read_bytes() != before:
                file.write_bytes(before)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
