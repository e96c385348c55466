"""The one exception a person at the keyboard is meant to read."""

import errno
import os
from pathlib import Path


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what to do, in one line.

    Entry points print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def write_text(path: Path, text: str) -> None:
    """Write a file in one go: whoever reads it finds the old text or the new one, also after a crash."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def disk_error(error: BaseException) -> str | None:
    """What to tell the user if `error` comes from a file or a full disk, however deep in the chain; else None."""
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return f"{error.filename}: {error.strerror}; choose another folder"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return f"{cause.strerror}: free space, or choose another folder"
        cause = cause.__cause__ or cause.__context__
    return None
