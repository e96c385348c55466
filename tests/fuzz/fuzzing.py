"""What the fuzz tests share: how many examples, from what seed, for how long, and what becomes of a finding.

pytest -m long -n 0 tests/fuzz/test_fuzz.py                            as `make long` runs it: the same examples every time
FUZZ_TIMES=20 FUZZ_SEED=7 pytest -m long -n 0 tests/fuzz/test_fuzz.py  twenty times as many examples, from another seed
FUZZ_FINDINGS=found.jsonl FUZZ_TIMES=20 FUZZ_SEED=7 pytest ...    keep findings in a file and go on; no test fails
FUZZ_ONLY='lost' pytest ...                                       look for one kind of finding only, and shrink it
"""

import collections
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, seed, settings

TIMES = float(os.environ.get("FUZZ_TIMES", "1"))
SEED = os.environ.get("FUZZ_SEED")
FINDINGS = os.environ.get("FUZZ_FINDINGS")
ONLY = os.environ.get("FUZZ_ONLY", "")
KEPT = 8  # findings of one kind written to the file; more are only counted

counts: collections.Counter[str] = collections.Counter()  # of findings kept, by kind
tried: collections.Counter[str] = collections.Counter()  # of examples, by what was tried
_ends: dict[str, float] = {}


class Finding(AssertionError):
    """Something that must not happen, with what a person pastes to see it."""


class Timeout(Exception):
    """The product took longer than it may."""


def fuzz(examples: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Settings of a fuzz test: so many examples, the same at every call unless `FUZZ_SEED` is set."""

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        test = settings(
            max_examples=max(1, round(examples * TIMES)),
            derandomize=SEED is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(test)
        return test if SEED is None else seed(int(SEED))(test)

    return decorate


def is_over(test: str, minutes: float) -> bool:
    """Whether a test has used up its minutes: a slow machine then tries fewer examples instead of taking longer.

    While a finding is being shrunk, Hypothesis has a bound of its own, so time no longer counts.
    """
    if test in _failed:
        return False
    end = _ends.setdefault(test, time.monotonic() + 60 * minutes * TIMES)
    return time.monotonic() > end


_failed: set[str] = set()


@contextlib.contextmanager
def examples_of(test: str) -> Iterator[None]:
    """Around each example of a test, so that `is_over` knows when one has failed."""
    tried[test] += 1
    try:
        yield
    except Exception:
        _failed.add(test)
        raise


def found(kind: str, problem: str, shown: str) -> None:
    """Raise a finding, or keep it and go on.

    Args:
        kind: the same for findings that may have one cause.
        problem: what is wrong, in a line.
        shown: the command line or the small file that shows it.
    """
    if not re.search(ONLY, kind):
        return
    if FINDINGS is None:
        raise Finding(f"{kind}: {problem}\n{shown}")
    counts[kind] += 1
    if counts[kind] <= KEPT:
        with Path(FINDINGS).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps({"kind": kind, "problem": problem, "shown": shown}) + "\n")


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `Timeout` in the block once it has taken so long."""

    def stop(number: int, frame: Any) -> None:
        raise Timeout(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
