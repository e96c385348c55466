"""Reading files and Hub data sets record by record, each with its number, so that what is wrong can be named."""

import bz2
import csv
import glob
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from stepwise_pl.common import hub
from stepwise_pl.common.errors import UserError, first_line, one_of

HUB = "hub:"
# A line of the line format, a row of a table, or why it is neither.
Record = str | Mapping[str, Any] | ValueError

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress,
}  # fmt: skip
QUOTING = ("quotes", "none")
FORMATS = (
    "a .txt (lines 'prompt||cot #### answer'), .jsonl, .json, .csv, .tsv or .parquet file, also as .gz, .bz2 or .xz, "
    "or hub:<data set>:<split>"
)
# UTF-32 comes first, because the mark of UTF-16 is the beginning of its own.
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
)  # fmt: skip
# The first bytes of files of another kind.
_OTHER_KINDS = (
    (b"\x1f\x8b\x08", "is compressed; let its name end in .gz"),
    (b"BZh91AY&SY", "is compressed; let its name end in .bz2"),
    (b"\xfd7zXZ\0", "is compressed; let its name end in .xz"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd, which is not read; unpack it, or compress it as .gz"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet; unpack it, or save it as .csv"),
    (b"PAR1", "is Parquet; let its name end in .parquet"),
)
# Characters that some programs take for the end of a line. Here only a line feed is one.
_OTHER_LINE_ENDS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
BYTE_ORDER_MARK = "\ufeff"
MARK_INSIDE = "holds a byte-order mark (U+FEFF), as files do that were joined; take it out"


class NotThere(UserError):
    """A file, or whatever a pattern should match, is not there."""


class Source:
    """The source of one split: a file, several files, or a Hub data set, read one after the other.

    Args:
        name: a path; a pattern such as `data/part-*.jsonl`, whose files are read in the order of their names;
            `hub:<data set>:<split>` or `hub:<data set>:<subset>:<split>`, where the data set may also be a local
            folder that the `datasets` library reads; or a list of these. The ending of a path tells the format
            (.txt: lines `prompt||cot #### answer`; .jsonl; .json; .csv; .tsv; .parquet), also before .gz, .bz2 or .xz.
        key: the config key that names it, for messages.
        columns: what a row of a table must have; its other columns are not read.
        quoting: `quotes`: in CSV and TSV, double quotes stand around text with separators; `none`: they are characters.
        root: the folder that relative paths begin in; the current one by default.

    Raises:
        UserError: a name is none, the format is not known, or a file is named twice.
        NotThere: a pattern matches no file.
    """

    def __init__(
        self, name: object, key: str, columns: tuple[str, ...], *, quoting: str = "quotes", root: Path = Path()
    ) -> None:
        self.key = key
        names = names_in(name, key)
        self.name = names[0] if isinstance(name, str) else f"[{','.join(names)}]"
        self.parts = [
            Part(file, key, columns, quoting, root)
            for one in names
            for file in ([one] if one.startswith(HUB) else _files(one, key, root))
        ]
        seen: set[str] = set()
        for part in self.parts if len(self.parts) > 1 else ():
            if part.identity in seen:
                raise UserError(f"{key}={self.name}: names {part.name} twice; name it once")
            seen.add(part.identity)

    @property
    def unit(self) -> str:
        """The unit in which its records are counted, as far as that is the same in all of its files."""
        units = {part.unit for part in self.parts}
        return units.pop() if len(units) == 1 else "record"

    def missing(self) -> list[str]:
        """The files that are not there."""
        # `Path.exists` raises for some names, such as very long ones.
        return [part.name for part in self.parts if part.format != "hub" and not os.path.exists(part.path)]  # noqa: PTH110

    def digest(self) -> str:
        """Changes whenever the content of a file or the order of the files does. It is that of the content last read."""
        digests = [part.digest() for part in self.parts]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def names_in(value: object, key: str) -> list[str]:
    """The names in a value of the configuration: one, or a list of them."""
    names = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    names = [str(name) if isinstance(name, int | float) and not isinstance(name, bool) else name for name in names]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(
            f"{key}={value}: is no file; give {FORMATS}, a pattern ('part-*.jsonl'), or a list [a.jsonl,b.jsonl]"
        )
    return [str(name) for name in names]


def expanded(name: str, key: str) -> Path:
    """The path, with the home folder in place of `~`."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={name}: {first_line(error)}; give a readable file") from None


def _files(name: str, key: str, root: Path) -> list[str]:
    """The files that a name or pattern stands for. A file that has the pattern for its name is only that file."""
    pattern = str(expanded(name, key))
    if not glob.has_magic(pattern) or os.path.exists(root / pattern):  # noqa: PTH110
        return [name]
    # `Path.glob` takes no absolute pattern.
    found = sorted(glob.glob(pattern, root_dir=root, recursive=True))  # noqa: PTH207
    if not found:
        raise NotThere(f"{key}={name}: no file has such a name")
    return found


def below(root: Path, name: str) -> str:
    """The name as it is to be read from `root`: of an absolute path that is not there, the longest end that is there."""
    path = Path(name)
    for parts in (path.parts[first:] for first in range(len(path.parts) if path.is_absolute() else 0)):
        end = str(Path(*parts))
        # The first end is the whole path, which `root` does not change.
        if os.path.exists(root / end) or any(glob.iglob(end, root_dir=root, recursive=True)):  # noqa: PTH110, PTH207
            return end
    return name


class Part:
    """One file, or one Hub data set, of a `Source`.

    Attributes:
        unit: what its records are counted in: line, row, or item of a JSON array (known once it is read).
        notes: what a person must know of how its values became text; known once it is read.

    Raises:
        UserError: it cannot be read, its format is not known, or a column is not there.
    """

    def __init__(self, name: str, key: str, columns: tuple[str, ...], quoting: str, root: Path) -> None:
        one_of("task.quoting", quoting, QUOTING)
        self.key, self.columns, self.quoting, self.root = key, columns, quoting, root
        self.path = root if name.startswith(HUB) else root / expanded(name, key)
        self.name = name if name.startswith(HUB) or root == Path() else str(self.path)
        inner = Path(name)
        self.unpack = COMPRESSED.get(inner.suffix.lower())
        inner = inner.with_suffix("") if self.unpack else inner
        self.format = "hub" if name.startswith(HUB) else inner.suffix.lower().removeprefix(".")
        if self.format not in READERS:
            if os.path.isdir(self.path):  # noqa: PTH112
                raise self._error(f"is a folder, cannot tell the format by the ending; give its files: {name}/*.jsonl")
            raise self._error(f"cannot tell the format by the ending; give {FORMATS}")
        self._digest: str | None = None
        self.unit = "row" if self.format in ("parquet", "hub") else "line"
        self.notes: list[str] = []

    @property
    def identity(self) -> str:
        """The same for two names of the same file."""
        if self.format != "hub":
            return os.path.realpath(self.path)
        folder, *rest = self.name.removeprefix(HUB).split(":")
        path = self.root / expanded(folder, self.key)
        return ":".join([os.path.realpath(path) if path.is_dir() else folder, *rest])

    def records(self) -> Iterator[tuple[int, Record]]:
        """Every record with the number of its line, row or item, from 1. Blank lines are no records."""
        self.notes = []
        return READERS[self.format](self)

    def digest(self) -> str:
        """Changes whenever the content does, packed or not. It is that of the content last read."""
        if self._digest is not None:
            return self._digest
        if self.format == "hub":
            import pyarrow as pa

            table = self._hub_table
            sink = _HashSink()
            with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
                writer.write_table(table)
            return sink.hash.hexdigest()
        self._bytes()
        assert self._digest is not None
        return self._digest

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self.key}={self.name}: {problem}")

    def _bytes(self) -> bytes:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError as error:
            raise NotThere(f"{self.key}={self.name}: {error.strerror}; give a readable file") from None
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or first_line(error)
            raise self._error(f"{problem}; give a readable file") from None
        if self.unpack:
            try:
                content = self.unpack(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise self._error(f"cannot be unpacked ({first_line(error)})") from None
        self._digest = hashlib.sha256(content).hexdigest()
        return content

    def _text(self) -> bytes:
        """The content as UTF-8, without a mark at its beginning. It may hold bytes that are not UTF-8."""
        content = self._bytes()
        if kind := next((kind for magic, kind in _OTHER_KINDS if content.startswith(magic)), None):
            raise self._error(kind)
        for mark, encoding in _MARKS:
            if content.startswith(mark):
                try:
                    return content.decode(encoding).encode()
                except UnicodeDecodeError as error:
                    problem = f"begins as {encoding.upper()} and is not from byte {error.start + 1} on"
                    raise self._error(f"{problem}; save it as UTF-8") from None
        head = content[:4096]
        # In UTF-16, text of Latin letters has a zero in every second byte.
        if len(head) >= 16 and 5 * max(head[::2].count(0), head[1::2].count(0)) > 2 * len(head):
            raise self._error("looks like UTF-16 or UTF-32 without a byte-order mark; save it as UTF-8")
        return content.removeprefix(b"\xef\xbb\xbf")  # some editors begin a file with this mark

    def _require_columns(self, there: list[str]) -> None:
        if twice := [name for name in self.columns if there.count(name) > 1]:
            raise self._error(f"has column {twice[0]!r} twice")
        if missing := [name for name in self.columns if name not in there]:
            hint = ""
            others = (";", "|", "," if self.format == "tsv" else "\t")
            if self.format in ("csv", "tsv") and (other := next((c for c in others if c in "".join(there)), None)):
                ending = {",": ", or let its name end in .csv", "\t": ", or let its name end in .tsv"}.get(other, "")
                own = "tabs" if self.format == "tsv" else "commas"
                hint = f"; its columns seem to be separated by {other!r}: separate them by {own}{ending}"
            raise self._error(f"has no column {missing[0]!r}; it has: {', '.join(there)}{hint}")

    def _lines(self) -> Iterator[tuple[int, Record]]:
        content = self._text()
        # A file without any line feed is one of the kind whose lines end in a carriage return.
        end = b"\n" if b"\n" in content else b"\r"
        for number, raw in enumerate(content.split(end), start=1):
            if not raw.strip():
                continue
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                yield number, ValueError(f"invalid UTF-8 at byte {error.start + 1}")
            else:
                yield number, ValueError(MARK_INSIDE) if BYTE_ORDER_MARK in line else line

    def _jsonl(self) -> Iterator[tuple[int, Record]]:
        if (spread := self._why_spread()) is not None:
            yield spread[0], ValueError(spread[1])
            return
        for number, line in self._lines():
            yield number, _json_row(line) if isinstance(line, str) else line

    def _why_spread(self) -> tuple[int, str] | None:
        """The first line that is not blank and what is wrong with the file, if its objects go over several lines; else None.

        Every line of such a file would be named as malformed otherwise.
        """
        whole = self._text().decode("utf-8", errors="replace")
        text = whole.lstrip()
        end = "\n" if "\n" in whole else "\r"
        if not text.startswith("{") or _is_json(text.split(end, 1)[0]):
            return None
        try:
            found, stop = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return None
        if end not in text[:stop]:
            return None
        first = whole[: len(whole) - len(text)].count(end) + 1
        arrays = [
            name for name, value in found.items() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        if stop == len(text.rstrip()) and arrays:
            return (
                first,
                f"not JSON Lines but one object, which has the examples under {arrays[0]!r}; write that array alone",
            )
        return first, "not JSON on one line; write one object a line, or one array of objects in a .json file"

    def _json(self) -> Iterator[tuple[int, Record]]:
        """One array of objects, or JSON Lines."""
        content = self._text()
        self.unit = "line"
        if not content.lstrip().startswith(b"["):
            yield from self._jsonl()
            return
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"invalid UTF-8 at byte {error.start + 1}; save it as UTF-8") from None
        first = text.split("\n", 1)[0]
        if first != text.rstrip() and _is_json(first):
            # The array ends on its line, and more follows: these are JSON Lines.
            yield from self._jsonl()
            return
        self.unit = "item"
        try:
            yield from enumerate(_json_items(text), start=1)
        except json.JSONDecodeError as error:
            joined = "; if files were joined, give them as a list instead" if error.msg == "Extra data" else ""
            raise self._error(f"line {error.lineno}: not JSON ({error}){joined}") from None

    def _csv(self) -> Iterator[tuple[int, Record]]:
        # Bytes that are no UTF-8 become lone surrogates here, so that only their own row is malformed.
        text = io.StringIO(self._text().decode("utf-8", errors="surrogateescape"), newline="")
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        by_quotes = self.quoting == "quotes"
        advice = "; task.quoting=none takes quotes as they are" if by_quotes else ""
        delimiter = "\t" if self.format == "tsv" else ","
        quoting: Any = csv.QUOTE_MINIMAL if by_quotes else csv.QUOTE_NONE
        rows = _rows(csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True))
        header: list[str] = []
        for first, last, cells in rows:
            if isinstance(cells, ValueError):
                problem = f"{cells}{advice if last == first else ''}"
            elif not header:
                header = [name.strip() for name in cells]
                self._require_columns(header)
                continue
            elif (named := list(map(_as_name, cells))) == list(map(_as_name, header)):
                problem = "repeats the header, as files do that were joined; take it out"
            elif {_as_name(name) for name in self.columns} <= set(named):
                raise self._error(
                    f"line {first} is another header ({', '.join(cells)}), as in files that were joined, and its columns are "
                    "in another order; give the files as a list: [a.csv,b.csv]"
                )
            elif any(BYTE_ORDER_MARK in cell for cell in cells):
                problem = MARK_INSIDE
            elif len(cells) != len(header):
                problem = f"{len(cells)} fields where the header has {len(header)}"
            elif any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                problem = "invalid UTF-8"
            else:
                if last > first and self.format == "tsv" and not self.notes:
                    self.notes.append(
                        f"{self.name}: quotes make one row of lines {first} to {last} (and maybe of others){advice}"
                    )
                yield first, dict(zip(header, cells, strict=True))
                continue
            if not header:
                raise self._error(f"the header cannot be read ({problem})")
            yield first, ValueError(f"{problem}{f' (the row ends on line {last}){advice}' if last > first else ''}")
            for number in range(first + 1, last + 1):  # a quote that is not closed swallows rows
                yield number, ValueError(f"is part of the row that begins on line {first}")

    def _parquet(self) -> Iterator[tuple[int, Record]]:
        import pyarrow.parquet as pq

        number = 0
        content = self._bytes()
        # Of two files in one, Parquet finds the table of contents of the second only, and the rows of either.
        if b"PAR1PAR1" in content:
            raise self._error("is several Parquet files joined end to end; give them as a list: [a.parquet,b.parquet]")
        try:
            with pq.ParquetFile(io.BytesIO(content)) as file:
                self._require_columns(file.schema_arrow.names)
                floats = _float_columns(file.schema_arrow, self.columns)
                whole = self._told_floats(file.read(columns=list(floats)), floats) if floats else set()
                for batch in file.iter_batches(columns=list(self.columns)):
                    for number, row in enumerate(_table_rows(batch, floats, whole), start=number + 1):  # noqa: B020
                        yield number, row
                if number != file.metadata.num_rows:
                    raise self._error(
                        f"cannot be read as Parquet ({number} of {file.metadata.num_rows} rows are there)"
                    )
        except UserError:
            raise
        except Exception as error:  # pyarrow raises whatever its parts do
            raise self._error(f"cannot be read as Parquet ({first_line(error)})") from None

    def _hub(self) -> Iterator[tuple[int, Record]]:
        number = 0
        floats = _float_columns(self._hub_table.schema, self.columns)
        whole = self._told_floats(self._hub_table, floats)
        for batch in self._hub_table.to_batches():
            for number, row in enumerate(_table_rows(batch, floats, whole), start=number + 1):  # noqa: B020
                yield number, row

    def _told_floats(self, table: Any, floats: Mapping[str, int]) -> set[str]:
        """Note what becomes of columns of floating-point numbers; return those that hold only whole numbers."""
        whole = {name for name, exact in floats.items() if _is_whole(table.column(name), exact)}
        for name in floats:
            how = (
                "floating-point numbers that are all whole, as pandas makes of whole numbers beside missing ones: read "
                "as 18, not 18.0"
                if name in whole
                else "floating-point numbers, which keep no digits of their own (0.1000 is 0.1, 18 is 18.0)"
            )
            self.notes.append(f"{self.name}: column {name!r} holds {how}; store text for another form")
        return whole

    @cached_property
    def _hub_table(self) -> Any:
        """The columns as a pyarrow table."""
        name, *rest = self.name.removeprefix(HUB).split(":")
        if not name or len(rest) not in (1, 2) or not all(rest):
            raise self._error("write hub:<data set>:<split> or hub:<data set>:<subset>:<split>")
        import datasets
        import huggingface_hub

        datasets.disable_progress_bars()
        folder = self.root / expanded(name, self.key)
        name = str(folder) if folder.is_dir() else name
        if not folder.exists() and not hub.reachable():
            # Otherwise it would try again and again for most of a minute.
            datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        try:
            # The cache of `datasets` may be older than a local folder.
            mode = "force_redownload" if folder.is_dir() else "reuse_dataset_if_exists"
            data = datasets.load_dataset(name, *rest[:-1], split=rest[-1], download_mode=mode)
        except Exception as error:
            raise self._error(
                f"cannot be loaded ({first_line(error)}); without network give files: task.train=<file>, and so on"
            ) from None
        self._require_columns(data.column_names)
        return data.select_columns(list(self.columns)).with_format("arrow")[:]


READERS = {
    "txt": Part._lines, "jsonl": Part._jsonl, "json": Part._json, "ndjson": Part._jsonl,
    "csv": Part._csv, "tsv": Part._csv, "parquet": Part._parquet, "hub": Part._hub,
}  # fmt: skip


def _as_name(cell: str) -> str:
    """A cell as it would name a column, for finding a header: case, quotes, spaces and marks aside."""
    return cell.replace(BYTE_ORDER_MARK, "").strip(" \t\r\n\"'").casefold()


def _rows(reader: Any) -> Iterator[tuple[int, int, list[str] | ValueError]]:
    """The rows of a `csv.reader` that are not blank: first line, last line, and the cells or why there are none."""
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first, reader.line_num, ValueError(str(error))
        else:
            if any(cell.strip() for cell in cells):
                yield first, reader.line_num, cells


def _float_columns(schema: Any, names: Sequence[str]) -> dict[str, int]:
    """The columns of floating-point numbers, or of lists of them, and up to where each holds every whole number."""
    import pyarrow as pa

    found = {}
    for name in names:
        kind = schema.field(name).type
        while getattr(kind, "value_type", None) is not None:  # of a list, or of a dictionary
            kind = kind.value_type
        if pa.types.is_floating(kind):
            found[name] = {16: 2**11, 32: 2**24, 64: 2**53}[kind.bit_width]
    return found


def _is_whole(column: Any, exact: int) -> bool:
    """Whether a column of floating-point numbers, maybe in lists, holds only whole ones (missing ones aside), and some."""
    import pyarrow as pa

    flat: list[float] = []
    for chunk in column.chunks:
        while getattr(chunk.type, "value_type", None) is not None:
            chunk = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk.flatten()
        flat += [value for value in chunk.to_pylist() if value is not None and not math.isnan(value)]
    return bool(flat) and all(value.is_integer() and abs(value) < exact for value in flat)


def _table_rows(batch: Any, floats: Mapping[str, int], whole: set[str]) -> Iterator[Record]:
    """The rows of a pyarrow RecordBatch, floating-point numbers as text (`_float_text`)."""
    for row in _raw_rows(batch):
        if isinstance(row, dict):
            row |= {name: _float_text(row[name], exact, name in whole) for name, exact in floats.items()}
        yield row


def _nanoseconds_as_text(batch: Any) -> Any:
    """The RecordBatch with times of day in nanoseconds, also in lists, as their text: Python's own times end at microseconds."""
    import pyarrow as pa

    def kind_of(kind: Any) -> Any:
        if kind == pa.time64("ns"):
            return pa.string()
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return pa.list_(kind_of(kind.value_type))
        return kind

    schema = pa.schema([field.with_type(kind_of(field.type)) for field in batch.schema])
    return batch if schema.types == batch.schema.types else batch.cast(schema)


def _raw_rows(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    batch = _nanoseconds_as_text(batch)
    try:
        yield from batch.to_pylist()
    except Exception:  # of whatever kind: some value is none (invalid UTF-8, a date out of range); say which row's
        for index in range(len(batch)):
            try:
                yield {name: batch.column(name)[index].as_py() for name in batch.schema.names}
            except Exception as error:
                yield ValueError(first_line(error))


def _float_text(value: Any, exact: int, whole: bool) -> Any:
    """A floating-point number, or each of a list, as the shortest text that gives it; why not, if it lost digits."""
    if isinstance(value, list):
        return [_float_text(part, exact, whole) for part in value]
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    if abs(value) >= exact:
        return ValueError(f"is {value!r}, a floating-point number too large to keep its digits; store it as text")
    if whole:
        return f"{value:.0f}"
    if exact < 2**53:
        import numpy as np

        return str(np.float32(value) if exact == 2**24 else np.float16(value))
    return repr(value)


class _HashSink(io.RawIOBase):
    """A file that only keeps the hash of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def _json_row(line: str) -> Record:
    if line.lstrip().startswith("["):
        return ValueError("a JSON array; write one JSON object a line, or one array of objects in a .json file")
    try:
        row = _STRICT.decode(line)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error if type(error) is ValueError else ValueError(f"not JSON ({error}){line_end_hint(line)}")
    return row if isinstance(row, dict) else ValueError("not a JSON object")


def _json_items(text: str) -> Iterator[Record]:
    """The objects of a JSON array, and why an item is none.

    Raises:
        JSONDecodeError: it is no array.
    """

    def after_spaces(place: int) -> int:
        while place < len(text) and text[place] in " \t\n\r":
            place += 1
        return place

    place = after_spaces(after_spaces(0) + 1)
    while text[place : place + 1] != "]":
        item: Record
        try:
            try:
                found, end = _STRICT.raw_decode(text, place)
                item = found if isinstance(found, dict) else ValueError("not a JSON object")
            except json.JSONDecodeError:
                raise
            except ValueError as error:
                item, end = error, json.JSONDecoder().raw_decode(text, place)[1]
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text, place) from None
        yield item
        place = after_spaces(end)
        if text[place : place + 1] == ",":
            place = after_spaces(place + 1)
            if text[place : place + 1] == "]":
                raise json.JSONDecodeError("Expecting value", text, place)
        elif text[place : place + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    if (place := after_spaces(place + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, place)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row


# Numbers stay the text that they are in the file: 0.1000 is not 0.1, and no digit of a long one is lost.
_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_float=str, parse_int=str)


def line_end_hint(line: str) -> str:
    """What to add to the reason why a line is malformed, if it holds a character that others take for a line's end."""
    found = next((c for c in line.strip() if c in _OTHER_LINE_ENDS), None)
    if found is None:
        return ""
    name = "a carriage return" if found == "\r" else f"the line end U+{ord(found):04X}"
    return f" ({name} stands inside the line; end lines with a line feed only)"


def field_text(row: Mapping[str, Any], name: str) -> str:
    """A field of a row as text; numbers are written out. Raises `ValueError` with the reason if it is no text."""
    if name not in row:
        raise ValueError(f"no field {name!r}; it has: {', '.join(map(str, row))}")
    return _as_text(row[name], f"field {name!r}")


def field_steps(row: Mapping[str, Any], name: str) -> list[str] | str:
    """A CoT field: a list of steps, or one text; null is an empty CoT. Raises `ValueError` with the reason otherwise."""
    if name in row and row[name] is None:
        return ""
    if not isinstance(row.get(name), list):
        return field_text(row, name)
    steps = [_as_text(step, f"step {i} of field {name!r}").strip() for i, step in enumerate(row[name], start=1)]
    if "" in steps:
        raise ValueError(f"step {steps.index('') + 1} of field {name!r} is empty")
    return steps


def _as_text(value: Any, what: str) -> str:
    if isinstance(value, ValueError):
        raise ValueError(f"{what} {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} is not a number ({value})")
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"{what} is not a number ({value})")
        return format(value, "f")
    # `date` includes `datetime`: ISO 8601, with a space between day and time.
    if isinstance(value, bool) or not isinstance(value, str | int | float | date | time):
        raise ValueError(f"{what} is {'null' if value is None else type(value).__name__}, not text")
    return str(value)
