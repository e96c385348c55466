"""Files and Hub data sets, read record by record. Each record has its number, so that an error can name it.

`source.py` finds the files, a reader for each format (`lines.py`, `csv_rows.py`, `tables.py`)
gives their records, and `fields.py` turns the values of a record into text.
"""

from stepwise_pl.tasks.reading.fields import field_steps, field_text
from stepwise_pl.tasks.reading.lines import line_end_hint
from stepwise_pl.tasks.reading.reader import BYTE_ORDER_MARK, HUB, MARK_INSIDE, QUOTING, Record
from stepwise_pl.tasks.reading.source import FORMATS, READERS, Source, below, names_in

__all__ = [
    "BYTE_ORDER_MARK", "FORMATS", "HUB", "MARK_INSIDE", "QUOTING", "READERS", "Record", "Source", "below", "field_steps",
    "field_text", "line_end_hint", "names_in",
]  # fmt: skip
