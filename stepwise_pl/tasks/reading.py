"""Reading files and Hub data sets record by record, each with its number, so that what is wrong can be named."""

import csv
import hashlib
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from stepwise_pl import hub
from stepwise_pl.errors import UserError, first_line

HUB = "hub:"
# A line of the line format, a row of a table, or why it is neither.
Record = str | Mapping[str, Any] | ValueError


class Source:
    """A file or a Hub data set that holds one split.

    `name` is a path, whose ending tells the format (.txt: lines `prompt||cot #### answer`;
    .jsonl; .csv; .tsv; .parquet), or `hub:<data set>:<split>` or `hub:<data set>:<subset>:<split>`,
    where the data set may also be a local folder that the `datasets` library reads.

    Args:
        key: the config key that names it, for messages.
        columns: what a row of a table must have; its other columns are not read.

    Raises:
        UserError: it cannot be read, its format is not known, or a column is not there.
    """

    def __init__(self, name: str, key: str, columns: tuple[str, ...]) -> None:
        self.name, self.key, self.columns = name, key, columns
        self.format = "hub" if name.startswith(HUB) else Path(name).suffix.lower().removeprefix(".")
        if self.format not in READERS:
            raise UserError(
                f"{key}={name}: cannot tell the format by the ending; give a .txt (lines 'prompt||cot #### answer'), "
                ".jsonl, .csv, .tsv or .parquet file, or hub:<data set>:<split>"
            )
        self._digest: str | None = None
        self.unit = "row" if self.format in ("parquet", "hub") else "line"

    def records(self) -> Iterator[tuple[int, Record]]:
        """Every record with the number of its line or row, from 1. Blank lines are no records."""
        return READERS[self.format](self)

    def digest(self) -> str:
        """Changes whenever the content does. It is that of the content last read."""
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
            content = Path(self.name).expanduser().read_bytes()
        except (OSError, RuntimeError) as error:
            problem = getattr(error, "strerror", None) or first_line(error)
            raise self._error(f"{problem}; give a readable file") from None
        self._digest = hashlib.sha256(content).hexdigest()
        return content.removeprefix(b"\xef\xbb\xbf")  # some editors begin a file with this mark

    def _require_columns(self, there: list[str]) -> None:
        if twice := [name for name in self.columns if there.count(name) > 1]:
            raise self._error(f"has column {twice[0]!r} twice")
        if missing := [name for name in self.columns if name not in there]:
            raise self._error(f"has no column {missing[0]!r}; it has: {', '.join(there)}")

    def _lines(self) -> Iterator[tuple[int, Record]]:
        for number, raw in enumerate(self._bytes().split(b"\n"), start=1):
            if not raw.strip():
                continue
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                yield number, ValueError(f"invalid UTF-8 at byte {error.start + 1}")

    def _jsonl(self) -> Iterator[tuple[int, Record]]:
        for number, line in self._lines():
            yield number, _json_row(line) if isinstance(line, str) else line

    def _csv(self) -> Iterator[tuple[int, Record]]:
        # Bytes that are no UTF-8 become lone surrogates here, so that only their own row is malformed.
        text = io.StringIO(self._bytes().decode("utf-8", errors="surrogateescape"), newline="")
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        rows = _rows(csv.reader(text, delimiter="\t" if self.format == "tsv" else ",", strict=True))
        header: list[str] = []
        for first, last, cells in rows:
            if isinstance(cells, ValueError):
                problem = str(cells)
            elif not header:
                header = [name.strip() for name in cells]
                self._require_columns(header)
                continue
            elif len(cells) != len(header):
                problem = f"{len(cells)} fields where the header has {len(header)}"
            elif any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                problem = "invalid UTF-8"
            else:
                yield first, dict(zip(header, cells, strict=True))
                continue
            if not header:
                raise self._error(f"the header cannot be read ({problem})")
            yield first, ValueError(f"{problem}{f' (the row ends on line {last})' if last > first else ''}")
            for number in range(first + 1, last + 1):  # a quote that is not closed swallows rows
                yield number, ValueError(f"is part of the row that begins on line {first}")

    def _parquet(self) -> Iterator[tuple[int, Record]]:
        import pyarrow.parquet as pq

        number = 0
        try:
            with pq.ParquetFile(io.BytesIO(self._bytes())) as file:
                self._require_columns(file.schema_arrow.names)
                for batch in file.iter_batches(columns=list(self.columns)):
                    for number, row in enumerate(_table_rows(batch), start=number + 1):  # noqa: B020
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
        for batch in self._hub_table.to_batches():
            for number, row in enumerate(_table_rows(batch), start=number + 1):  # noqa: B020
                yield number, row

    @cached_property
    def _hub_table(self) -> Any:
        """The columns as a pyarrow table."""
        name, *rest = self.name.removeprefix(HUB).split(":")
        if not name or len(rest) not in (1, 2) or not all(rest):
            raise self._error("write hub:<data set>:<split> or hub:<data set>:<subset>:<split>")
        import datasets
        import huggingface_hub

        datasets.disable_progress_bars()
        if not Path(name).exists() and not hub.reachable():
            # Otherwise it would try again and again for most of a minute.
            datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        try:
            # What `datasets` keeps of a local folder may be older than the folder.
            mode = "force_redownload" if Path(name).is_dir() else "reuse_dataset_if_exists"
            data = datasets.load_dataset(name, *rest[:-1], split=rest[-1], download_mode=mode)
        except Exception as error:
            raise self._error(
                f"cannot be loaded ({first_line(error)}); without network give files: task.train=<file>, and so on"
            ) from None
        self._require_columns(data.column_names)
        return data.select_columns(list(self.columns)).with_format("arrow")[:]


READERS = {
    "txt": Source._lines, "jsonl": Source._jsonl, "json": Source._jsonl, "ndjson": Source._jsonl,
    "csv": Source._csv, "tsv": Source._csv, "parquet": Source._parquet, "hub": Source._hub,
}  # fmt: skip


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


def _table_rows(batch: Any) -> Iterator[Record]:
    """The rows of a pyarrow RecordBatch."""
    try:
        yield from batch.to_pylist()
    except Exception:  # of whatever kind: some value is none (invalid UTF-8, a date out of range); say which row's
        for index in range(len(batch)):
            try:
                yield {name: batch.column(name)[index].as_py() for name in batch.schema.names}
            except Exception as error:
                yield ValueError(first_line(error))


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
        return ValueError("a JSON array; write one JSON object a line")
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error if type(error) is ValueError else ValueError(f"not JSON ({error})")
    return row if isinstance(row, dict) else ValueError("not a JSON object")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row


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
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} is not a number ({value})")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{what} is {'null' if value is None else type(value).__name__}, not text")
    return str(value)
