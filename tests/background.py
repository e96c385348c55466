"""Programs that run beside a test. None outlives its test, however the test ends."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_STARTED: list["subprocess.Popen[str]"] = []


def start(*arguments: str, **popen: Any) -> "subprocess.Popen[str]":
    """Start `python <arguments>` in the repository, in a session of its own. Output is text."""
    settings = {"cwd": Path(__file__).parent.parent, "text": True, "start_new_session": True, **popen}
    process: subprocess.Popen[str] = subprocess.Popen([sys.executable, *arguments], **settings)
    _STARTED.append(process)
    return process


def end_all() -> None:
    """Kill all programs that `start` has started, with their own processes."""
    for process in _STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _STARTED.clear()
