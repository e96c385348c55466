"""Standard output and error that cost no command its work, whatever terminal, pipe or nothing is at the other end."""

import errno
import io
import os
import re
import sys

_NOBODY_READS = (errno.EPIPE, errno.EBADF)


class _Output(io.FileIO):
    """A file descriptor that goes on into nothing once nobody reads it: `... | head -1` ends the reading, not the work."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
        # The descriptor itself is changed, so that libraries and child processes find it open as well.
        _open_nothing(self.fileno())
        return memoryview(data).nbytes


def prepare() -> None:
    """Make standard output and error safe to write to; more than once does no harm.

    Characters that the terminal's encoding lacks become `?`. A pipe that is closed, or a stream that was closed before
    the start, takes everything and shows nothing.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            # Python leaves None for a closed descriptor. The next file opened would get its number, and with it all
            # that is printed.
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


def restore_docstrings() -> None:
    """Start this command again with docstrings where `python -OO` or PYTHONOPTIMIZE=2 took them: transformers reads them."""
    if sys.flags.optimize < 2:
        return
    words = sys.orig_argv[1:]
    program = next((i for i, word in enumerate(words) if word in ("-m", "-c") or word.endswith(".py")), len(words))
    options = [re.sub("O", "", word) if re.fullmatch("-[A-Za-z]+", word) else word for word in words[:program]]
    again = [sys.executable, *(word for word in options if word != "-"), *words[program:]]
    if os.environ.get("PYTHONOPTIMIZE") != "1" or again[1:] != words:  # else it would start itself for ever
        os.environ["PYTHONOPTIMIZE"] = "1"
        os.execv(sys.executable, again)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _open_nothing(number: int) -> None:
    """Let a file descriptor lead nowhere."""
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
