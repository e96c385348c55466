"""Parts that the fuzz tests share: number of examples, seed, time limit and findings.

pytest -m long -n 0 tests/fuzz/test_fuzz.py                            as in `make long`: the same examples every time
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
KEPT = 8  # findings of one kind in the file; further ones are only counted

counts: collections.Counter[str] = collections.Counter()  # findings by kind
tried: collections.Counter[str] = collections.Counter()  # examples by test
_ends: dict[str, float] = {}


class Finding(AssertionError):
    """A fault of the product, with a text that reproduces it."""


class Timeout(Exception):
    """The product took too long."""


def fuzz(examples: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a fuzz test with its number of examples. They are the same at every run unless `FUZZ_SEED` is set."""

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
    """Whether a test has used up its minutes. A slow machine tries fewer examples instead of taking longer.

    Hypothesis bounds the time of shrinking a finding, so a test that has failed is never over.
    """
    if test in _failed:
        return False
    end = _ends.setdefault(test, time.monotonic() + 60 * minutes * TIMES)
    return time.monotonic() > end


_failed: set[str] = set()


@contextlib.contextmanager
def examples_of(test: str) -> Iterator[None]:
    """Note whether an example of a test fails, for `is_over`."""
    tried[test] += 1
    try:
        yield
    except Exception:
        _failed.add(test)
        raise


def found(kind: str, problem: str, repro: str) -> None:
    """Raise a finding, or keep it and go on.

    Args:
        kind: equal for findings that may have one cause.
        problem: the fault, in one line.
        repro: the command line or the small file that reproduces the fault.
    """
    if not re.search(ONLY, kind):
        return
    if FINDINGS is None:
        raise Finding(f"{kind}: {problem}\n{repro}")
    counts[kind] += 1
    if counts[kind] <= KEPT:
        with Path(FINDINGS).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps({"kind": kind, "problem": problem, "repro": repro}) + "\n")


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `Timeout` if the block takes longer."""

    def stop(number: int, frame: Any) -> None:
        raise Timeout(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
