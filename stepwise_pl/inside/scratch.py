"""A folder for hidden states, which are many and wanted once: it goes however the command ends."""

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from stepwise_pl.common.disk import make_folder, why
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.processes import is_alive
from stepwise_pl.common.signals import is_free

_START = ".states-"


@contextlib.contextmanager
def _exit_at_sigterm() -> Iterator[None]:
    """Inside of this context SIGTERM ends the process as an error does, so that what was begun is cleared away."""
    number = signal.SIGTERM
    if threading.current_thread() is not threading.main_thread() or not is_free(number):
        yield
        return
    before = signal.signal(number, lambda *_: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(number, before)


def _made(start: str, folder: Path) -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix=start, dir=folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({why(error, folder)}); copy the run to another folder") from None


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for states inside another, and remove it afterwards. The remains of a process that was killed are removed, too.

    The outer folder goes as well if it was made here and nothing else is in it in the end.

    Raises:
        UserError: the outer folder cannot be made or written to.
    """
    was_there = folder.exists()
    make_folder(folder, "run", probe=False)
    mine = f"{_START}{socket.gethostname()}-"
    for left in folder.glob(f"{mine}*"):
        process = left.name.removeprefix(mine).partition("-")[0]
        if not (process.isdigit() and is_alive(int(process))):
            shutil.rmtree(left, ignore_errors=True)
    try:
        with _exit_at_sigterm(), _made(f"{mine}{os.getpid()}-", folder) as path:
            yield Path(path)
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # It may hold tables by now.
                folder.rmdir()
