"""The one exception a person at the keyboard is meant to read, the one the guard acts on, and failures that cost nothing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("stepwise_pl")


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what to do, in one line.

    Entry points print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Collapse(Exception):
    """Training has lost what it had learned: the guard decides what follows.

    Attributes:
        step: optimizer steps done when it was recognised.
        not_finite: the loss or the weights have become infinite or not a number.
    """

    def __init__(self, message: str, step: int, not_finite: bool = False) -> None:
        super().__init__(message)
        self.step, self.not_finite = step, not_finite


def printable(text: str) -> str:
    """The text in one line: line breaks, control characters and half characters (all of which data may hold) escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise `UserError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise UserError(f"{key}={value}: must be one of {', '.join(allowed)}")


def require(ok: bool, key: str, value: object, rule: str) -> None:
    """Raise `UserError` naming the config key, its value and the rule it breaks, unless `ok`."""
    if not ok:
        raise UserError(f"{key}={value}: {rule}")


@contextmanager
def go_on_without(what: str) -> Iterator[None]:
    """Let a figure, or another thing that nothing depends on, fail: one warning names it and the reason."""
    try:
        yield
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {first_line(error)}")
        log.warning("%s could not be made (%s); all else is complete", what, reason)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
