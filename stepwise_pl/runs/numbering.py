"""Numbered folders, of runs and of sweeps: `base`, `base`-2, `base`-3, ..., up to the first that is free."""

from collections.abc import Callable, Iterator
from itertools import chain, count, takewhile
from pathlib import Path


def first_free(base: Path, is_taken: Callable[[Path], bool]) -> Path:
    """The folder for something new."""
    return next(path for path in chain([base], _others(base)) if not is_taken(path))


def newest(base: Path, is_taken: Callable[[Path], bool]) -> Path:
    """The folder to go on in: the last that is taken. Without any, `base`; `base` itself may be gone while others are there."""
    return [base, *takewhile(is_taken, _others(base))][-1]


def _others(base: Path) -> Iterator[Path]:
    return (base.with_name(f"{base.name}-{number}") for number in count(2))
