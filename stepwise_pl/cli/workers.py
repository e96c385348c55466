"""The processes of a sweep: what this one is, and what a signal does to it."""

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from stepwise_pl.common import signals
from stepwise_pl.runs import sweep_folder as folders
from stepwise_pl.runs.sweep_folder import RUNNING, Sweep

_STOP = ".stop"  # in the sweep folder: no further job is to begin


@dataclass
class _Here:
    """The part of this process in a sweep: it hands out the jobs, does one, or both."""

    folder: Path | None = None  # of the sweep whose jobs this process hands out
    elsewhere: bool = False  # the jobs are done by other processes
    stopping: int = 0  # the signal that ended it
    job: str = ""  # `2/9` while it does a job
    label: str = ""  # the swept values of that job
    worker: bool = False  # the job was handed to this process by another one


here = _Here()


def become_worker(sweep: Sweep) -> None:
    """Take signals as one of the processes that another one hands jobs to."""
    # A terminal sends its signals to all its processes; the first process tells the others.
    for number in signals.TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    for number in filter(signals.is_free, signals.STOPS):
        signal.signal(number, leave)
    first = os.getppid()
    if first == folders.process_here(sweep.process) and not any(one.name == "follow" for one in threading.enumerate()):
        threading.Thread(target=follow, args=(first, sweep.folder), name="follow", daemon=True).start()


def follow(first: int, folder: Path) -> None:
    """Once the process that hands out the jobs was killed, end this one, which joblib would leave waiting for ever."""
    while os.getppid() == first:
        time.sleep(0.5)
    (folder / _STOP).touch()
    os.kill(os.getpid(), signal.SIGTERM)
    while here.job:  # it is being saved
        time.sleep(0.1)
    os._exit(128 + signal.SIGTERM)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """A signal's handler, for where nothing is to be saved."""
    raise SystemExit(128 + number)


def stop(number: int, frame: FrameType | None) -> None:
    """A signal's handler in the process that hands out the jobs: the first lets the others save, the second does not wait."""
    folder = here.folder
    if here.stopping or folder is None or not here.elsewhere:
        here.stopping = number
        leave(number, frame)
    here.stopping = number
    (folder / _STOP).touch()
    sys.stderr.write("stopping after the step that each job is in; once more stops at once, to the last checkpoints\n")
    for job in folders.read_sweep(folder).jobs:
        process = folders.process_here(job.process)
        if job.outcome == RUNNING and process not in (None, os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)  # type: ignore[arg-type]
