"""Make standard output and error safe: a command goes on even if the terminal or pipe at the other end is gone."""

import errno
import io
import os
import re
import sys
from typing import TextIO

_NOBODY_READS = (errno.EPIPE, errno.EBADF)


class _Output(io.FileIO):
    """A file descriptor that discards output once nobody reads it: `... | head -1` ends the reading, not the command."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
        # Redirect the descriptor itself, so that libraries and child processes find it open as well.
        _open_nothing(self.fileno())
        return memoryview(data).nbytes


def prepare() -> None:
    """Make standard output and error safe to write to. Further calls change nothing.

    Characters that the terminal's encoding lacks become `?`. A closed pipe, or a stream that was closed before the
    start, discards everything.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            # Python sets the stream of a closed descriptor to None. The next file that is opened would get the number
            # of the descriptor, and everything printed would go into that file.
            if not _is_open(number):
                _open_nothing(number)
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  (open until the process ends)
            setattr(sys, name, stream)
        elif isinstance(stream, io.TextIOWrapper) and _is_standard(stream, number):
            stream.flush()
            setattr(sys, name, io.TextIOWrapper(
                io.BufferedWriter(_Output(number, "wb", closefd=False)), stream.encoding, "replace",
                line_buffering=stream.line_buffering, write_through=stream.write_through,
            ))  # fmt: skip


def width(stream: TextIO) -> int:
    """Return the columns of the terminal that a stream writes to; 0 if it is none, or a terminal without a size.

    As elsewhere in Python, the environment variable COLUMNS comes before what the terminal says.
    """
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() else columns


def restore_docstrings() -> None:
    """Start this command again if `python -OO` or PYTHONOPTIMIZE=2 removed docstrings: transformers reads them."""
    if sys.flags.optimize < 2:
        return
    words = sys.orig_argv[1:]
    program = next((i for i, word in enumerate(words) if word in ("-m", "-c") or word.endswith(".py")), len(words))
    options = [re.sub("O", "", word) if re.fullmatch("-[A-Za-z]+", word) else word for word in words[:program]]
    again = [sys.executable, *(word for word in options if word != "-"), *words[program:]]
    if os.environ.get("PYTHONOPTIMIZE") != "1" or again[1:] != words:  # otherwise the command would restart for ever
        os.environ["PYTHONOPTIMIZE"] = "1"
        os.execv(sys.executable, again)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _open_nothing(number: int) -> None:
    """Redirect a file descriptor to /dev/null."""
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)


def _is_standard(stream: io.TextIOWrapper, number: int) -> bool:
    """Whether the stream writes to this descriptor and was not prepared before."""
    if isinstance(getattr(stream.buffer, "raw", None), _Output):
        return False
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False
