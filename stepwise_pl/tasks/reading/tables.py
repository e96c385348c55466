"""Tables of pyarrow: Parquet files and Hub data sets."""

import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from stepwise_pl.common import hub
from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.tasks.reading.reader import HUB, FileReader, Reader, Record, expanded


class ParquetReader(FileReader):
    """Reads a .parquet file."""

    unit = "row"

    def read(self) -> Iterator[tuple[int, Record]]:
        import pyarrow.parquet as pq

        number = 0
        content = self.content()
        # Parquet's table of contents stands at the end: of two joined files only the second one would be read.
        if b"PAR1PAR1" in content:
            raise self.error("is several Parquet files joined end to end; give them as a list: [a.parquet,b.parquet]")
        try:
            with pq.ParquetFile(io.BytesIO(content)) as file:
                self.require_columns(file.schema_arrow.names)
                floats = _float_columns(file.schema_arrow, list(self.columns))
                whole = _whole_columns(file.read(columns=list(floats)), floats) if floats else set()
                self.notes += _float_notes(self.name, floats, whole)
                for batch in file.iter_batches(columns=list(self.columns)):
                    for number, row in enumerate(_table_rows(batch, floats, whole), start=number + 1):  # noqa: B020
                        yield number, row
                if number != file.metadata.num_rows:
                    raise self.error(f"cannot be read as Parquet ({number} of {file.metadata.num_rows} rows are there)")
        except UserError:
            raise
        except Exception as error:  # pyarrow and its codecs raise errors of many types
            raise self.error(f"cannot be read as Parquet ({first_line(error)})") from None


class HubReader(Reader):
    """Reads one split of a Hub data set, or of a local folder that the `datasets` library reads.

    Args:
        name: `hub:<data set>:<split>` or `hub:<data set>:<subset>:<split>`.
        root: the folder that relative paths begin in.
    """

    unit = "row"

    def __init__(self, name: str, key: str, columns: Mapping[str, str], root: Path) -> None:
        super().__init__(name, key, columns)
        self.root = root

    @property
    def identity(self) -> str:
        folder, *rest = self.name.removeprefix(HUB).split(":")
        path = self.root / expanded(folder, self.key)
        return ":".join([os.path.realpath(path) if path.is_dir() else folder, *rest])

    def digest(self) -> str:
        import pyarrow as pa

        sink = _HashSink()
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), self._table.schema) as writer:
            writer.write_table(self._table)
        return sink.hash.hexdigest()

    def read(self) -> Iterator[tuple[int, Record]]:
        number = 0
        floats = _float_columns(self._table.schema, list(self.columns))
        whole = _whole_columns(self._table, floats)
        self.notes += _float_notes(self.name, floats, whole)
        for batch in self._table.to_batches():
            for number, row in enumerate(_table_rows(batch, floats, whole), start=number + 1):  # noqa: B020
                yield number, row

    @cached_property
    def _table(self) -> Any:
        """The columns as a pyarrow table."""
        name, *rest = self.name.removeprefix(HUB).split(":")
        if not name or len(rest) not in (1, 2) or not all(rest):
            raise self.error("write hub:<data set>:<split> or hub:<data set>:<subset>:<split>")
        import datasets
        import huggingface_hub

        datasets.disable_progress_bars()
        folder = self.root / expanded(name, self.key)
        name = str(folder) if folder.is_dir() else name
        if not folder.exists() and not hub.reachable():
            # Without this, `datasets` would retry for most of a minute.
            datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
        try:
            # The cache of `datasets` may be older than a local folder.
            mode = "force_redownload" if folder.is_dir() else "reuse_dataset_if_exists"
            data = datasets.load_dataset(name, *rest[:-1], split=rest[-1], download_mode=mode)
        except Exception as error:
            raise self.error(
                f"cannot be loaded ({first_line(error)}); without network give files: task.train=<file>, and so on"
            ) from None
        self.require_columns(data.column_names)
        return data.select_columns(list(self.columns)).with_format("arrow")[:]


class _HashSink(io.RawIOBase):
    """A file that keeps only the hash of its content."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def _float_columns(schema: Any, names: Sequence[str]) -> dict[str, int]:
    """Return the columns of floating-point numbers, or of lists of them.

    The value of each is the bound below which its type holds every whole number.
    """
    import pyarrow as pa

    found = {}
    for name in names:
        kind = schema.field(name).type
        while getattr(kind, "value_type", None) is not None:  # a list, or a dictionary
            kind = kind.value_type
        if pa.types.is_floating(kind):
            found[name] = {16: 2**11, 32: 2**24, 64: 2**53}[kind.bit_width]
    return found


def _whole_columns(table: Any, floats: Mapping[str, int]) -> set[str]:
    """Return the columns among `floats` that hold only whole numbers."""
    return {name for name, exact in floats.items() if _is_whole(table.column(name), exact)}


def _is_whole(column: Any, exact: int) -> bool:
    """Whether a column of floating-point numbers, or of lists of them, holds a number, and only whole ones below `exact`.

    Missing numbers do not count.
    """
    import pyarrow as pa

    flat: list[float] = []
    for chunk in column.chunks:
        while getattr(chunk.type, "value_type", None) is not None:
            chunk = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk.flatten()
        flat += [value for value in chunk.to_pylist() if value is not None and not math.isnan(value)]
    return bool(flat) and all(value.is_integer() and abs(value) < exact for value in flat)


def _float_notes(file: str, floats: Mapping[str, int], whole: set[str]) -> list[str]:
    """Return a note on each column of floating-point numbers and their text."""
    notes = {
        True: "floating-point numbers that are all whole, as pandas stores whole numbers beside missing ones; they "
        "are read as 18, not 18.0",
        False: "floating-point numbers, so the digits as written are lost (0.1000 is 0.1, 18 is 18.0)",
    }
    return [f"{file}: column {name!r} holds {notes[name in whole]}; store text for another form" for name in floats]


def _table_rows(batch: Any, floats: Mapping[str, int], whole: set[str]) -> Iterator[Record]:
    """Yield the rows of a pyarrow RecordBatch, with floating-point numbers as text (`_float_text`)."""
    for row in _raw_rows(batch):
        if isinstance(row, dict):
            row |= {name: _float_text(row[name], exact, name in whole) for name, exact in floats.items()}
        yield row


def _raw_rows(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    """Yield the rows of a RecordBatch as Python values; for a row with an invalid value, the reason."""
    batch = _nanoseconds_as_text(batch)
    try:
        yield from batch.to_pylist()
    except Exception:  # a value is invalid (UTF-8, a date out of range): read row by row, to find it
        for index in range(len(batch)):
            try:
                yield {name: batch.column(name)[index].as_py() for name in batch.schema.names}
            except Exception as error:
                yield ValueError(first_line(error))


def _nanoseconds_as_text(batch: Any) -> Any:
    """Return the RecordBatch with times of day in nanoseconds as text, also in lists: times in Python hold microseconds."""
    import pyarrow as pa

    def kind_of(kind: Any) -> Any:
        if kind == pa.time64("ns"):
            return pa.string()
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return pa.list_(kind_of(kind.value_type))
        return kind

    schema = pa.schema([field.with_type(kind_of(field.type)) for field in batch.schema])
    return batch if schema.types == batch.schema.types else batch.cast(schema)


def _float_text(value: Any, exact: int, whole: bool) -> Any:
    """Return a floating-point number, or each number of a list, as the shortest text that gives it back.

    A number too large to keep all its digits becomes a `ValueError` that says so. Other values stay as they are.
    """
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
