"""Tables as text: CSV and TSV."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from stepwise_pl.tasks.reading.reader import BYTE_ORDER_MARK, MARK_INSIDE, FileReader, Record


class CsvReader(FileReader):
    """Reads a .csv file: each row below the header is a record."""

    delimiter = ","
    delimiter_name = "commas"
    # Delimiters that the file may have instead, each with a further advice.
    others: ClassVar[dict[str, str]] = {";": "", "|": "", "\t": ", or let its name end in .tsv"}

    def missing_column_hint(self, there: Sequence[str]) -> str:
        other = next((c for c in self.others if c in "".join(there)), None)
        if other is None:
            return ""
        return f"; its columns seem to be separated by {other!r}: separate them by {self.delimiter_name}{self.others[other]}"

    def read(self) -> Iterator[tuple[int, Record]]:
        # Bytes that are not UTF-8 become lone surrogates, so that only their own row is malformed.
        text = io.StringIO(self.text().decode("utf-8", errors="surrogateescape"), newline="")
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        by_quotes = self.quoting == "quotes"
        advice = "; task.quoting=none takes quotes as they are" if by_quotes else ""
        quoting: Any = csv.QUOTE_MINIMAL if by_quotes else csv.QUOTE_NONE
        header: list[str] = []
        for first, last, cells in _rows(csv.reader(text, delimiter=self.delimiter, quoting=quoting, strict=True)):
            if isinstance(cells, ValueError):
                problem = f"{cells}{advice if last == first else ''}"
            elif not header:
                header = [name.strip() for name in cells]
                self.require_columns(header)
                continue
            else:
                problem = self._problem(cells, header, first)
                if not problem:
                    if last > first and self.delimiter == "\t" and not self.notes:
                        self.notes.append(
                            f"{self.name}: quotes make one row of lines {first} to {last} (and maybe of others){advice}"
                        )
                    yield first, dict(zip(header, cells, strict=True))
                    continue
            if not header:
                raise self.error(f"the header cannot be read ({problem})")
            yield first, ValueError(f"{problem}{f' (the row ends on line {last}){advice}' if last > first else ''}")
            # A quote that is not closed takes the next lines into its row. They are listed as malformed too.
            for number in range(first + 1, last + 1):
                yield number, ValueError(f"is part of the row that begins on line {first}")

    def _problem(self, cells: list[str], header: list[str], line: int) -> str:
        """Return the reason why a row is malformed; empty if it is not."""
        names = list(map(_as_name, cells))
        if names == list(map(_as_name, header)):
            return "repeats the header, as files do that were joined; take it out"
        if {_as_name(name) for name in self.columns} <= set(names):
            raise self.error(
                f"line {line} is another header ({', '.join(cells)}), as in files that were joined, and its columns are "
                "in another order; give the files as a list: [a.csv,b.csv]"
            )
        if any(BYTE_ORDER_MARK in cell for cell in cells):
            return MARK_INSIDE
        if len(cells) != len(header):
            return f"{len(cells)} fields where the header has {len(header)}"
        return "invalid UTF-8" if any("\udc80" <= c <= "\udcff" for cell in cells for c in cell) else ""


class TsvReader(CsvReader):
    """Reads a .tsv file."""

    delimiter = "\t"
    delimiter_name = "tabs"
    others: ClassVar[dict[str, str]] = {";": "", "|": "", ",": ", or let its name end in .csv"}


def _as_name(cell: str) -> str:
    """Return the cell as the name of a column: without quotes, outer spaces, byte-order marks and capitals."""
    return cell.replace(BYTE_ORDER_MARK, "").strip(" \t\r\n\"'").casefold()


def _rows(reader: Any) -> Iterator[tuple[int, int, list[str] | ValueError]]:
    """Yield the rows of a `csv.reader` that are not blank: first line, last line, and the cells or why there are none."""
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
