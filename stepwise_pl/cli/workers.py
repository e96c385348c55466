"""The part of this process in a sweep, and its signal handlers."""

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
from stepwise_pl.config.request import SweepLength
from stepwise_pl.runs import sweep_folder as folders
from stepwise_pl.runs.sweep_folder import RUNNING, Sweep

_STOP = ".stop"  # a file in the sweep folder: no further job may begin


@dataclass
class _Here:
    """This process in a sweep: it hands out the jobs, does one of them, or both."""

    folder: Path | None = None  # of the sweep, if this process hands out its jobs
    elsewhere: bool = False  # other processes do the jobs
    stopping: int = 0  # the signal that ended this process
    job: str = ""  # such as `2/9`, while this process does a job
    label: str = ""  # the swept values of that job
    sweep: SweepLength | None = None  # of the sweep, if that job is its first
    cell: str = ""  # the folder of these values but the seed, in the sweep folder
    worker: bool = False  # another process handed the job to this one
    words: list[str] | None = None  # of the command line, as the user typed them


here = _Here()


def become_worker(sweep: Sweep) -> None:
    """Set the signal handlers of a worker: a process that gets its jobs from another one."""
    # A terminal sends its signals to every process. Only the first process takes them, and then stops the workers.
    for number in signals.TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    for number in filter(signals.is_free, signals.STOPS):
        signal.signal(number, leave)
    first = os.getppid()
    if first == folders.process_here(sweep.process) and not any(
        thread.name == "follow" for thread in threading.enumerate()
    ):
        threading.Thread(target=follow, args=(first, sweep.folder), name="follow", daemon=True).start()


def follow(first: int, folder: Path) -> None:
    """End this process after its parent `first` was killed; joblib would let it wait for ever."""
    while os.getppid() == first:
        time.sleep(0.5)
    (folder / _STOP).touch()
    os.kill(os.getpid(), signal.SIGTERM)
    while here.job:  # the job is being saved
        time.sleep(0.1)
    os._exit(128 + signal.SIGTERM)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal by an exit at once, because nothing is to be saved."""
    raise SystemExit(128 + number)


def stop(number: int, frame: FrameType | None) -> None:
    """Handle a signal in the process that hands out the jobs: the first signal lets the workers save, the second does not."""
    folder = here.folder
    if here.stopping or folder is None or not here.elsewhere:
        here.stopping = number
        leave(number, frame)
    here.stopping = number
    (folder / _STOP).touch()
    sys.stderr.write("stopping each job after its step; a second signal stops at once, back to the last checkpoints\n")
    for job in folders.read_sweep(folder).jobs:
        process = folders.process_here(job.process)
        if job.outcome == RUNNING and process not in (None, os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)  # type: ignore[arg-type]
