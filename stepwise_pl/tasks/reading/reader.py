"""The interface of a reader, and the bytes of a file: found, unpacked and decoded."""

import bz2
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.tasks.reading.fields import named

HUB = "hub:"
# A line of the line format, a row of a table, or the reason why it is neither.
Record = str | Mapping[str, Any] | ValueError

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress,
}  # fmt: skip
QUOTING = ("quotes", "none")
# UTF-32 comes first, because its mark begins with the mark of UTF-16.
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
)  # fmt: skip
# The first bytes of files that are not text.
_OTHER_KINDS = (
    (b"\x1f\x8b\x08", "is compressed; let its name end in .gz"),
    (b"BZh91AY&SY", "is compressed; let its name end in .bz2"),
    (b"\xfd7zXZ\0", "is compressed; let its name end in .xz"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd, which is not read; unpack it, or compress it as .gz"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet; unpack it, or save it as .csv"),
    (b"PAR1", "is Parquet; let its name end in .parquet"),
)
BYTE_ORDER_MARK = "\ufeff"
MARK_INSIDE = "holds a byte-order mark (U+FEFF), as files do that were joined; take it out"


class NotThere(UserError):
    """No file has the name, or no file matches the pattern."""


def expanded(name: str, key: str) -> Path:
    """Return the path, with the home folder in place of `~`. Raise `UserError` if there is no home folder."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={name}: {first_line(error)}; give a readable file") from None


class Reader:
    """Reads one file, or one Hub data set, record by record.

    Args:
        name: the file or data set, as messages name it.
        key: the config key that gives it, for messages.
        columns: the columns that a table must have, each with the config key that gives its name, or nothing; other columns
            are not read.

    Attributes:
        unit: the name of one record: line, row, or item of a JSON array (known once the file is read).
        notes: sentences that tell a person how values became text; known once the file is read.

    Raises:
        UserError: the file cannot be read, or a column is missing.
    """

    unit = "line"

    def __init__(self, name: str, key: str, columns: Mapping[str, str]) -> None:
        self.name, self.key, self.columns = name, key, columns
        self.notes: list[str] = []

    @property
    def identity(self) -> str:
        """The same for two names of the same file."""
        raise NotImplementedError

    @property
    def is_there(self) -> bool:
        """Whether the file exists. A Hub data set counts as there."""
        return True

    def records(self) -> Iterator[tuple[int, Record]]:
        """Return every record with the number of its line, row or item, from 1. Blank lines are no records."""
        self.notes = []
        return self.read()

    def read(self) -> Iterator[tuple[int, Record]]:
        """Yield what `records` returns; each format has its own."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return a hash of the unpacked content, as it was when last read."""
        raise NotImplementedError

    def error(self, problem: str) -> UserError:
        return UserError(f"{self.key}={self.name}: {problem}")

    def require_columns(self, there: Sequence[str]) -> None:
        """Raise `UserError` if a column is missing or occurs twice."""
        if twice := [name for name in self.columns if there.count(name) > 1]:
            raise self.error(f"has column {twice[0]!r} twice")
        if missing := [name for name in self.columns if name not in there]:
            hint = self.missing_column_hint(there)
            raise self.error(
                f"has no column {named(missing[0], self.columns[missing[0]])}; it has: {', '.join(there)}{hint}"
            )

    def missing_column_hint(self, there: Sequence[str]) -> str:
        """Return an advice for a file that lacks a column and has the columns `there`."""
        return ""


class FileReader(Reader):
    """Reads one file.

    Args:
        path: the file. Its name may end in .gz, .bz2 or .xz.
        quoting: `quotes` or `none`, as `Source` has it; for CSV and TSV only.
    """

    def __init__(self, name: str, key: str, columns: Mapping[str, str], path: Path, quoting: str) -> None:
        super().__init__(name, key, columns)
        self.path, self.quoting = path, quoting
        self._digest: str | None = None

    @property
    def identity(self) -> str:
        return os.path.realpath(self.path)

    @property
    def is_there(self) -> bool:
        # `Path.exists` raises for some names, for example very long ones.
        return os.path.exists(self.path)  # noqa: PTH110

    def digest(self) -> str:
        if self._digest is None:
            self.content()
        assert self._digest is not None
        return self._digest

    def content(self) -> bytes:
        """Return the bytes of the file, unpacked."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError as error:
            raise NotThere(f"{self.key}={self.name}: {error.strerror}; give a readable file") from None
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or first_line(error)
            raise self.error(f"{problem}; give a readable file") from None
        if unpack := COMPRESSED.get(self.path.suffix.lower()):
            try:
                content = unpack(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise self.error(f"cannot be unpacked ({first_line(error)})") from None
        self._digest = hashlib.sha256(content).hexdigest()
        return content

    def text(self) -> bytes:
        """Return the content as UTF-8, without a byte-order mark at its beginning. Some bytes may not be UTF-8."""
        content = self.content()
        if kind := next((kind for magic, kind in _OTHER_KINDS if content.startswith(magic)), None):
            raise self.error(kind)
        for mark, encoding in _MARKS:
            if content.startswith(mark):
                try:
                    return content.decode(encoding).encode()
                except UnicodeDecodeError as error:
                    problem = f"begins as {encoding.upper()} but is invalid from byte {error.start + 1} on"
                    raise self.error(f"{problem}; save it as UTF-8") from None
        head = content[:4096]
        # UTF-16 of Latin letters has a zero in every second byte.
        if len(head) >= 16 and 5 * max(head[::2].count(0), head[1::2].count(0)) > 2 * len(head):
            raise self.error("looks like UTF-16 or UTF-32 without a byte-order mark; save it as UTF-8")
        return content.removeprefix(b"\xef\xbb\xbf")
