"""Runs cases of one source tree, each in a process of its own: `python serve.py`, a case as a line of JSON on standard input.

The imports take about ten seconds, so this process makes them once and forks a child for each
case. It never computes and never starts CUDA itself, because a child could not use CUDA then.
The tree is the first folder of PYTHONPATH that holds `stepwise_pl`: this one, or an older commit.

A case is `{"name", "kind", "arguments", "rows", "log", "environment"}`. The child appends its rows
to the file `rows`, a line of JSON each, as soon as it has them, and its output to `log`. Standard
output tells `{"name", "pid"}` of a child that has begun and `{"name"}` of one that has ended.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# Modules that take long to import. Each tree has its own `build`.
HEAVY = ("torch", "lightning", "transformers", "hydra", "stepwise_pl.training.build", "stepwise_pl.building")


class Emit:
    """Appends the rows of a case to its file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def row(self, measure: str, value: float, unit: str = "") -> None:
        """Add a measurement."""
        self._write({"measure": measure, "value": float(value), "unit": unit})

    def outcome(self, outcome: str, note: str = "") -> None:
        """Add an outcome: `measured`, `passed`, `failed`, `skipped` or `error`. The last one of a case holds."""
        self._write({"outcome": outcome, "note": note})

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def last_words(path: Path) -> str:
    """Return the line of a log that tells the error best: the last that begins with `error: `, else the last one."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")[:500]


def run(case: dict[str, Any]) -> None:
    """Run a case in this process, and end the process."""
    os.setsid()
    os.environ.update(case["environment"])
    log = os.open(case["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    emit, status = Emit(Path(case["rows"])), 0
    try:
        module = importlib.import_module("measure" if case["kind"] == "measure" else "checks")
        getattr(module, case["kind"])(emit, **case["arguments"])
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        said = last_words(Path(case["log"])) if isinstance(error, SystemExit) else ""
        emit.outcome(
            "error",
            said or f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:500],
        )
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def tell(**event: Any) -> None:
    """Tell the driver."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def serve() -> None:
    """Fork a child for each line, until standard input ends; then kill those that are left."""
    children: dict[int, str] = {}
    rest, is_open = b"", True
    while is_open or children:
        if not is_open:
            time.sleep(0.05)
        elif select.select([0], [], [], 0.05)[0]:
            got = os.read(0, 65536)
            is_open = bool(got)
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                case = json.loads(line)
                if (pid := os.fork()) == 0:
                    run(case)
                children[pid] = case["name"]
                tell(name=case["name"], pid=pid)
        if not is_open:
            for pid in children:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        for pid in list(children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                tell(name=children.pop(pid))


if __name__ == "__main__":
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    tell(name="", pid=os.getpid())
    serve()
