"""Text files with one record a line (.txt, .jsonl), and JSON arrays (.json)."""

import json
from collections.abc import Iterator
from typing import Any

from stepwise_pl.tasks.reading.reader import BYTE_ORDER_MARK, MARK_INSIDE, FileReader, Record

# Some programs end a line at these characters. Here only a line feed ends one.
_OTHER_LINE_ENDS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


class LineReader(FileReader):
    """Reads a .txt file: each line is a record as text."""

    def read(self) -> Iterator[tuple[int, Record]]:
        content = self.text()
        # Old programs end lines in a carriage return. Such a file holds no line feed at all.
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


class JsonLineReader(LineReader):
    """Reads JSON Lines (.jsonl, .ndjson): each line is an object."""

    def read(self) -> Iterator[tuple[int, Record]]:
        if (problem := self._many_line_object()) is not None:
            yield problem
            return
        for number, line in super().read():
            yield number, json_row(line) if isinstance(line, str) else line

    def _many_line_object(self) -> tuple[int, ValueError] | None:
        """Return the first line that is not blank, and the problem, if the first object goes over several lines.

        Otherwise each line of such a file would be listed as malformed.
        """
        whole = self.text().decode("utf-8", errors="replace")
        text = whole.lstrip()
        end = "\n" if "\n" in whole else "\r"
        if not text.startswith("{") or is_json(text.split(end, 1)[0]):
            return None
        try:
            found, stop = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return None
        if end not in text[:stop]:
            return None
        arrays = [
            name for name, value in found.items() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        problem = "not JSON on one line; write one object a line, or one array of objects in a .json file"
        if stop == len(text.rstrip()) and arrays:
            problem = (
                f"not JSON Lines but one object, which has the examples under {arrays[0]!r}; write that array alone"
            )
        return whole[: len(whole) - len(text)].count(end) + 1, ValueError(problem)


class JsonReader(JsonLineReader):
    """Reads a .json file: one array of objects, or JSON Lines."""

    def read(self) -> Iterator[tuple[int, Record]]:
        content = self.text()
        self.unit = "line"
        if not content.lstrip().startswith(b"["):
            yield from super().read()
            return
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"invalid UTF-8 at byte {error.start + 1}; save it as UTF-8") from None
        first = text.split("\n", 1)[0]
        if first != text.rstrip() and is_json(first):
            # More text follows the line of the array: the file holds JSON Lines.
            yield from super().read()
            return
        self.unit = "item"
        try:
            yield from enumerate(json_items(text), start=1)
        except json.JSONDecodeError as error:
            joined = "; if files were joined, give them as a list instead" if error.msg == "Extra data" else ""
            raise self.error(f"line {error.lineno}: not JSON ({error}){joined}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object that has these fields. Raise `ValueError` if a name occurs twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row


# Numbers stay the text that stands in the file: 0.1000 is not 0.1, and a long number keeps all its digits.
_STRICT = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_float=str, parse_int=str)


def json_row(line: str) -> Record:
    """Return the object on a line, or the reason why there is none."""
    if line.lstrip().startswith("["):
        return ValueError("a JSON array; write one JSON object a line, or one array of objects in a .json file")
    try:
        row = _STRICT.decode(line)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error if type(error) is ValueError else ValueError(f"not JSON ({error}){line_end_hint(line)}")
    return row if isinstance(row, dict) else ValueError("not a JSON object")


def json_items(text: str) -> Iterator[Record]:
    """Yield the objects of a JSON array; for an item that is no object, the reason.

    Raises:
        JSONDecodeError: the text is no array.
    """

    def after_spaces(at: int) -> int:
        while at < len(text) and text[at] in " \t\n\r":
            at += 1
        return at

    at = after_spaces(after_spaces(0) + 1)
    while text[at : at + 1] != "]":
        item: Record
        try:
            try:
                found, end = _STRICT.raw_decode(text, at)
                item = found if isinstance(found, dict) else ValueError("not a JSON object")
            except json.JSONDecodeError:
                raise
            except ValueError as error:
                # A field occurs twice. The plain decoder finds the end of the item.
                item, end = error, json.JSONDecoder().raw_decode(text, at)[1]
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text, at) from None
        yield item
        at = after_spaces(end)
        if text[at : at + 1] == ",":
            at = after_spaces(at + 1)
            if text[at : at + 1] == "]":
                raise json.JSONDecodeError("Expecting value", text, at)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if (at := after_spaces(at + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def line_end_hint(line: str) -> str:
    """Return a hint for a malformed line that holds a character at which other programs end a line; else nothing."""
    found = next((c for c in line.strip() if c in _OTHER_LINE_ENDS), None)
    if found is None:
        return ""
    name = "a carriage return" if found == "\r" else f"the line end U+{ord(found):04X}"
    return f" ({name} stands inside the line; end lines with a line feed only)"
