"""The source of a split: the files that a name, a pattern or a list stands for, each with its reader."""

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from stepwise_pl.common.errors import UserError, one_of
from stepwise_pl.tasks.reading.csv_rows import CsvReader, TsvReader
from stepwise_pl.tasks.reading.lines import JsonLineReader, JsonReader, LineReader
from stepwise_pl.tasks.reading.reader import COMPRESSED, HUB, QUOTING, FileReader, NotThere, Reader, expanded
from stepwise_pl.tasks.reading.tables import HubReader, ParquetReader

FORMATS = (
    "a .txt (lines 'prompt||cot #### answer'), .jsonl, .json, .csv, .tsv or .parquet file, also as .gz, .bz2 or .xz, "
    "or hub:<data set>:<split>"
)
FILE_READERS: dict[str, type[FileReader]] = {
    "txt": LineReader, "jsonl": JsonLineReader, "ndjson": JsonLineReader, "json": JsonReader,
    "csv": CsvReader, "tsv": TsvReader, "parquet": ParquetReader,
}  # fmt: skip
READERS: dict[str, type[Reader]] = {**FILE_READERS, "hub": HubReader}


class Source:
    """The source of one split: a file, several files, or a Hub data set, read one after the other.

    Args:
        name: a path; a pattern such as `data/part-*.jsonl` (its files are read in the order of their names);
            `hub:<data set>:<split>` or `hub:<data set>:<subset>:<split>`, where the data set may also be a local
            folder that the `datasets` library reads; or a list of these. The ending of a path tells the format
            (.txt: lines `prompt||cot #### answer`; .jsonl; .json; .csv; .tsv; .parquet), also before .gz, .bz2 or .xz.
        key: the config key that gives the name, for messages.
        columns: the columns that a table must have, each with the config key that gives its name, or nothing; other
            columns are not read.
        quoting: `quotes`: in CSV and TSV, double quotes stand around text with separators; `none`: quotes are characters.
        root: the folder that relative paths begin in; the current one by default.

    Raises:
        UserError: a name is not text, the format is not known, or a file is named twice.
        NotThere: a pattern matches no file.
    """

    def __init__(
        self, name: object, key: str, columns: Mapping[str, str], *, quoting: str = "quotes", root: Path = Path()
    ) -> None:
        names = names_in(name, key)
        self.name = names[0] if isinstance(name, str) else f"[{','.join(names)}]"
        self.readers = [
            _reader(file, key, columns, quoting, root)
            for given in names
            for file in ([given] if given.startswith(HUB) else _files(given, key, root))
        ]
        seen: set[str] = set()
        for reader in self.readers if len(self.readers) > 1 else ():
            if reader.identity in seen:
                raise UserError(f"{key}={self.name}: names {reader.name} twice; name it once")
            seen.add(reader.identity)

    @property
    def unit(self) -> str:
        """The name of one record, `line` or `row` or `item`; `record` if the files differ."""
        units = {reader.unit for reader in self.readers}
        return units.pop() if len(units) == 1 else "record"

    def missing(self) -> list[str]:
        """Return the files that are not there."""
        return [reader.name for reader in self.readers if not reader.is_there]

    def digest(self) -> str:
        """Return a hash of the files' content, in order, as it was when last read."""
        digests = [reader.digest() for reader in self.readers]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _reader(name: str, key: str, columns: Mapping[str, str], quoting: str, root: Path) -> Reader:
    """Return the reader of one file or Hub data set. Raise `UserError` if its format is not known."""
    one_of("task.quoting", quoting, QUOTING)
    if name.startswith(HUB):
        return HubReader(name, key, columns, root)
    path = root / expanded(name, key)
    shown = name if root == Path() else str(path)
    plain = Path(name)
    plain = plain.with_suffix("") if plain.suffix.lower() in COMPRESSED else plain
    if (kind := FILE_READERS.get(plain.suffix.lower().removeprefix("."))) is not None:
        return kind(shown, key, columns, path, quoting)
    if os.path.isdir(path):  # noqa: PTH112
        raise UserError(
            f"{key}={shown}: is a folder, cannot tell the format by the ending; give its files: {name}/*.jsonl"
        )
    raise UserError(f"{key}={shown}: cannot tell the format by the ending; give {FORMATS}")


def names_in(value: object, key: str) -> list[str]:
    """Return the names in a value of the configuration: one name, or a list. Raise `UserError` if it holds something else."""
    names = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    names = [str(name) if isinstance(name, int | float) and not isinstance(name, bool) else name for name in names]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(
            f"{key}={value}: is no file; give {FORMATS}, a pattern ('part-*.jsonl'), or a list [a.jsonl,b.jsonl]"
        )
    return [str(name) for name in names]


def _files(name: str, key: str, root: Path) -> list[str]:
    """Return the files that a name or a pattern stands for. If a file's own name looks like a pattern, it is that file."""
    pattern = str(expanded(name, key))
    if not glob.has_magic(pattern) or os.path.exists(root / pattern):  # noqa: PTH110
        return [name]
    # `Path.glob` takes no absolute pattern.
    found = sorted(glob.glob(pattern, root_dir=root, recursive=True))  # noqa: PTH207
    if not found:
        raise NotThere(f"{key}={name}: no file has such a name")
    return found


def below(root: Path, name: str) -> str:
    """Return the name to read from `root`. Of an absolute path that is not there it is the longest end that lies in `root`."""
    path = Path(name)
    for parts in (path.parts[first:] for first in range(len(path.parts) if path.is_absolute() else 0)):
        end = str(Path(*parts))
        # The first end is the whole path: `root / end` is then the path itself.
        if os.path.exists(root / end) or any(glob.iglob(end, root_dir=root, recursive=True)):  # noqa: PTH110, PTH207
            return end
    return name
