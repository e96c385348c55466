"""Data files for the fuzz: known examples, written in some format and damaged, and judges of the examples read."""

import contextlib
import csv
import dataclasses
import datetime
import decimal
import gzip
import io
import json
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from stepwise_pl.check_data import CheckDataConfig, check_data
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.training import DataConfig
from stepwise_pl.tasks import GSM8K, Example, Files
from tests.fuzz.fuzzing import Timeout, found, within

COLUMNS = ("question", "steps", "answer")
EOS = "<eos>"
BOM = b"\xef\xbb\xbf"
SECONDS = 20  # at most, for any file


class Row(NamedTuple):
    """One true example. `steps` is one text or a list; `number` is the answer's literal if it is a JSON number."""

    prompt: str
    steps: Any
    answer: str
    number: str | None = None

    def example(self) -> Example:
        """The example that must be read."""
        answer = self.answer.strip() if self.number is None else self.number
        if isinstance(self.steps, list):
            return Example.of_steps(self.prompt.strip(), [step.strip() for step in self.steps], answer)
        return Example(self.prompt.strip(), self.steps.strip(), answer)


@dataclass
class Segment:
    """Bytes of the file: the header, a record, a blank or garbage. `row`: the row of an undamaged record."""

    data: bytes
    kind: str
    row: Row | None = None


@dataclass
class Written:
    """A file, and the damage done to it.

    Attributes:
        supported: the file must be read, and every row exactly.
        benign: the damage is no reason to call an intact line malformed.
        exact: intact rows must be found at their lines.
    """

    ending: str
    segments: list[Segment]
    supported: bool = True
    benign: bool = True
    exact: bool = True
    lines: str = "\n"  # the line ending, for counting
    encoding: str = "utf-8"
    gz: bytes | None = None
    options: dict[str, Any] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def content(self) -> bytes:
        data = b"".join(segment.data for segment in self.segments)
        if self.encoding != "utf-8":
            data = data.decode("utf-8").encode(self.encoding, errors="replace")
        return data if self.gz is None else self.gz

    def rows(self) -> dict[int, Row]:
        """Every intact row by the number of its first line."""
        out, line = {}, 1
        for segment in self.segments:
            if segment.row is not None:
                out[line] = segment.row
            line += self.breaks(segment.data)
        return out

    def kinds(self) -> dict[int, Segment]:
        """Every segment by the number of its first line."""
        out: dict[int, Segment] = {}
        line = 1
        for segment in self.segments:
            if segment.kind != "mark":
                out.setdefault(line, segment)
            line += self.breaks(segment.data)
        return out

    def breaks(self, data: bytes) -> int:
        return len(re.findall(rb"\r\n|\r|\n", data)) if self.lines == "any" else data.count(b"\n")


# --- the texts of examples

SPECIAL = [*list(" ,;\"'\t\\|#<>{}[]()=+-*/.~%$&é中🙂٣５\xa0\u2028\x85\x0b\x0c\x1c\x00\u200d\u202e"), "é", "ﬁ", "Å"]
letters = st.sampled_from(list("0123456789 +-*=abcxyz")) | st.sampled_from(SPECIAL)
any_letter = letters | st.characters(exclude_categories=["Cs"])


def text(letter: st.SearchStrategy[str] = any_letter, least: int = 0, breaks: bool = False) -> st.SearchStrategy[str]:
    """Texts without separators that survive `strip`."""
    letter = letter | st.sampled_from(["\n", "\r\n"]) if breaks else letter.filter(lambda c: c not in "\r\n")
    drawn = st.lists(letter, max_size=8).map("".join).map(lambda t: t.strip().replace("\ufeff", ""))
    times = st.sampled_from([1] * 30 + [2000])  # a few fields are very long
    return st.builds(lambda piece, times: (piece or "x" * (times > 1)) * times, drawn, times).filter(
        lambda t: len(t) >= least and t == t.strip() and EOS not in t and "||" not in t and "####" not in t
    )


numbers = st.sampled_from(
    ["0", "-0", "7", "1234567", "0.1", "0.10", "0.1000", "1.0", "1e5", "1E+2", "1e400", "12345678901234567890123.5", "-3.50",
     "123456789012345678901234567890", "5e-324", "0.30000000000000004", "100000000000000000000"]
)  # fmt: skip


def rows(breaks: bool, steps: bool, literals: bool) -> st.SearchStrategy[list[Row]]:
    """The true examples: up to six rows, with distinct prompts half of the time."""
    one = text(breaks=breaks)
    some = text(least=1, breaks=breaks)
    cot: st.SearchStrategy[Any] = one | st.lists(some, max_size=3) if steps else one
    plain = st.tuples(some, cot, some).map(lambda parts: Row(*parts))
    return st.lists(
        plain | st.builds(lambda row, n: row._replace(number=n), plain, numbers) if literals else plain,
        min_size=1, max_size=6,
    )  # fmt: skip


# --- writing examples


def json_row(row: Row, ascii_only: bool, indent: int | None = None) -> str:
    plain = json.dumps(dict(zip(COLUMNS, row, strict=False)), ensure_ascii=ascii_only, indent=indent)
    if row.number is None:
        return plain
    literal = json.dumps(row.answer, ensure_ascii=ascii_only)
    head, _, tail = plain.rpartition(literal)
    return head + row.number + tail


def fits_a_line(row: Row) -> bool:
    parts = (row.prompt, row.steps, row.answer)
    return not row.prompt.endswith("|") and not row.steps.startswith("|") and not any("\n" in part for part in parts) and not (
        row.steps.endswith("#") or row.answer.startswith("#")
    )  # fmt: skip


@st.composite
def text_files(draw: st.DrawFn) -> Written:
    """Files of lines, JSON or a table, before any damage."""
    ending = draw(st.sampled_from(["txt", "jsonl", "json", "csv", "tsv", "raw tsv"]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    structured = ending in ("jsonl", "json")
    truth = draw(rows(breaks=ending not in ("txt", "raw tsv"), steps=structured, literals=structured))
    if ending == "txt":
        truth = [row for row in truth if fits_a_line(row)] or [Row("1+1", "2", "2")]
        lines = [f"{row.prompt}||{row.steps} #### {row.answer}" for row in truth]
        segments = [Segment((line + end).encode(), "record", row) for line, row in zip(lines, truth, strict=True)]
        file = Written("txt", segments)
    elif ending == "jsonl" or (ending == "json" and draw(st.booleans())):
        ascii_only = draw(st.booleans())
        segments = [Segment((json_row(row, ascii_only) + end).encode(), "record", row) for row in truth]
        file = Written(ending, segments)
    elif ending == "json":  # an array: a record may span lines, so the test does not compare lines
        indent = draw(st.sampled_from([None, 1, 4]))
        texts = ("," + end).join(json_row(row, draw(st.booleans()), indent) for row in truth)
        between = end if draw(st.booleans()) else ""
        file = Written("json", [Segment(f"[{between}{texts}{between}]".encode(), "array")], exact=False)
        file.options["truth"] = truth
    else:
        raw = ending == "raw tsv"
        delimiter = "," if ending == "csv" else "\t"
        if raw:
            truth = [row for row in truth if not any(set(part) & set("\t\r\n") for part in row[:3])] or [
                Row("1+1", "2", "2")
            ]
        quoting = csv.QUOTE_ALL if draw(st.booleans()) else csv.QUOTE_MINIMAL

        def line(cells: Any) -> bytes:
            if raw:
                return (delimiter.join(cells) + end).encode()
            out = io.StringIO(newline="")
            csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerow(cells)
            return out.getvalue().encode()

        segments = [Segment(line(COLUMNS), "header"), *(Segment(line(row[:3]), "record", row) for row in truth)]
        file = Written("tsv" if raw else ending, segments, lines="any")
        if raw:
            file.options["quoting"] = "none"
    if draw(st.booleans()) and ending != "json" and not end.startswith("\r") and file.exact:
        last = file.segments[-1]
        last.data = last.data.removesuffix(b"\n")  # the last line has no line ending
    if draw(st.sampled_from([False, False, True])):
        file.segments.insert(0, Segment(BOM, "mark"))
    return file


# --- damage

GARBAGE = [
    b"garbage", b"---", b"# a comment", b"{", b"null", b"[]", b"1,2,3,4,5", b"\t", b"||", b"####", b"a||b", b"a #### b", b"\x00",
    b"||x #### 1", b"x||y #### ", b'{"question": "q"}', b"\xff\xfe", b"\xed\xa0\x80||x #### 1",
    b'{"question": "q\\ud800", "steps": "s", "answer": "1"}', b'{"question": "q", "steps": "s", "answer": NaN}',
    b'{"question": "q", "question": "r", "steps": "s", "answer": "1"}', b'{"question": "q", "steps": "s", "answer": "1"} x',
    b"q<eos>||s #### 1", b"not a row", b'"', b'"a', b"\xc3",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> Written:
    """A text file with up to two kinds of damage."""
    file = draw(text_files())
    if not file.exact:
        return file
    kinds = [
        "nothing", "blank", "garbage", "header", "mark", "concatenate", "truncate", "flip", "insert", "encoding", "gz", "cr",
    ]  # fmt: skip
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=0, max_size=2)):
        if file.encoding != "utf-8" or file.gz is not None:
            break
        damage(draw, file, kind)
    return file


def damage(draw: st.DrawFn, file: Written, kind: str) -> None:
    """Damage the file in one way."""
    segments = file.segments
    place = draw(st.integers(0, len(segments)))
    after = segments[place - 1] if place else None
    whole = after is None or after.data.endswith(b"\n") or after.kind == "mark"
    if kind == "blank" and whole and place:
        blank = draw(st.sampled_from([b"\n", b"\r\n", b"  \n", b"\t\n", b"\n\n\n"]))
        if not (file.ending == "tsv" and blank == b"\t\n"):
            segments.insert(place, Segment(blank, "blank"))
            file.done.append(kind)
    elif kind in ("garbage", "header", "mark") and whole and place:
        header = next((s.data for s in segments if s.kind == "header"), None)
        if kind == "header" and header is None:
            return
        if kind == "mark":
            segments.insert(place, Segment(BOM, "inner mark" if place > 0 else "mark"))
            if place < len(segments) - 1 and segments[place + 1].row is not None:
                follow = segments.pop(place + 1)
                segments[place] = Segment(BOM + follow.data, "marked", follow.row)
        else:
            data = header if kind == "header" else draw(st.sampled_from(GARBAGE)) + b"\n"
            assert data is not None
            segments.insert(place, Segment(data.rstrip(b"\r\n") + b"\n", kind))
        file.benign = False
        file.done.append(kind)
    elif kind == "concatenate" and segments and segments[-1].data.endswith(b"\n"):
        copy = [Segment(s.data, s.kind, s.row) for s in segments]
        if copy[0].kind == "mark":
            copy.pop(0)
            if copy and copy[0].row is not None:
                copy[0] = Segment(BOM + copy[0].data, "marked", copy[0].row)
            elif copy:
                copy[0] = Segment(BOM + copy[0].data, "header")
        segments.extend(copy)
        for segment in copy:
            if segment.kind == "header":
                segment.kind = "second header"
        file.benign = False
        file.done.append(kind)
    elif kind in ("truncate", "flip", "insert"):
        hurt(draw, file, kind)
    elif kind == "encoding":
        with contextlib.suppress(UnicodeDecodeError):
            file.content().decode("utf-8")
            change_encoding(draw, file)
    elif kind == "gz":
        content = bytearray(gzip.compress(file.content(), mtime=0))
        file.done.append("gz")
        if draw(st.booleans()):
            file.supported = file.benign = False
            file.done.append("gz damaged")
            if draw(st.booleans()):
                del content[draw(st.integers(0, len(content) - 1)) :]
            else:
                content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
        file.gz = bytes(content)
        file.ending += ".gz"
    elif kind == "cr" and file.ending in ("txt", "csv", "tsv", "jsonl"):
        for segment in segments:
            segment.data = re.sub(rb"\r?\n$", b"\r", segment.data)
        file.lines = "any"
        file.supported = False  # the file must be read whole or refused
        file.exact = file.ending in ("csv", "tsv")
        file.done.append(kind)


def change_encoding(draw: st.DrawFn, file: Written) -> None:
    """Write the file in an encoding of other software: it may be read, refused, or called malformed."""
    file.encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]))
    file.supported = file.exact = False
    file.done.append(file.encoding)


def hurt(draw: st.DrawFn, file: Written, kind: str) -> None:
    """Damage a segment. Its content is then unknown, and so is that of the next one if the two become one line."""
    segments = [s for s in file.segments if s.data]
    if not segments:
        return
    index = draw(st.integers(0, len(segments) - 1))
    segment = segments[index]
    at = draw(st.integers(0, len(segment.data) - 1))
    before = segment.data
    if kind == "truncate":
        segment.data = before[:at]
        del segments[index + 1 :]
    elif kind == "flip":
        byte = draw(st.integers(0, 255) | st.sampled_from(list(b'\n\r",|#\\\x00{}[]\xff')))
        segment.data = before[:at] + bytes([byte]) + before[at + 1 :]
    else:
        piece = draw(
            st.sampled_from(
                [b"\0", b"\xff", b"\r", b"\n", BOM, b'"', b"\xed\xa0\x80", b"||", b"####", b"<eos>", b"\\ud800", b","]
            )
        )
        segment.data = before[:at] + piece + before[at:]
    if segment.data == before:
        return
    if segment.kind == "header":
        segment.kind = "hurt header"
    else:
        segment.kind = "hurt"
    segment.row = None
    if index + 1 < len(segments) and not segment.data.endswith((b"\n", b"\r")):
        segments[index + 1].row = None  # the two segments are now one line
        segments[index + 1].kind = "hurt"
    if index and not segments[index - 1].data.endswith((b"\n", b"\r")):
        segments[index - 1].row = None
        segments[index - 1].kind = "hurt"
    file.segments[:] = segments
    file.supported = file.benign = False
    file.done.append(kind)


# --- judging the examples read


def reproduction(file: Written, path: Path) -> str:
    """Text from which a person can write the file again, with the damage done to it."""
    content = file.content()
    data = repr(content if len(content) < 1500 else content[:700] + b" ... " + content[-700:])
    options = {key: value for key, value in file.options.items() if key != "truth"}
    return f"done: {', '.join(file.done) or 'nothing'}; options: {options}\n{path.name}: {data}"


def numbers_of(malformed: list[str]) -> dict[int, str]:
    """The reasons, by line or row number."""
    out = {}
    for reason in malformed:
        if match := re.match(r"(?:\S* )?(?:line|row) (\d+): ", reason):
            out[int(match[1])] = reason
    return out


def task_for(path: Path, folder: Path, options: dict[str, Any]) -> Files:
    """A task with this training set, and one problem in each other split."""
    others = {}
    for split in ("validation", "test"):
        (folder / f"{split}.txt").write_text(f"{split} of the fuzz||s #### 1\n")
        others[split] = str(folder / f"{split}.txt")
    return Files(train=str(path), **others, **{key: value for key, value in options.items() if key != "truth"})


def read(path: Path, folder: Path, options: dict[str, Any], repro: str) -> Any:
    """The training examples and malformed lines; the error line if the file is refused; None after a finding."""
    try:
        with within(SECONDS):
            return task_for(path, folder, options).read((EOS,))["train"]
    except UserError as error:
        if not str(error).isprintable() or str(path) not in str(error):
            found("data: an error is not one line with the file", repr(str(error)), repro)
        return str(error)
    except Timeout as error:
        found("data: time", str(error), repro)
    except Exception as error:
        found(f"data: {type(error).__name__}", repr(error), repro)
    return None


def judge(file: Written, folder: Path) -> None:
    """Read the file as a task does, and compare the examples with the truth."""
    path = folder / f"train.{file.ending}"
    path.write_bytes(file.content())
    repro = reproduction(file, path)
    if "quoting" in file.options and "quoting" not in {f.name for f in dataclasses.fields(Files)}:
        if any('"' in part for s in file.segments if s.row for part in s.row[:3]):
            found("data: quoting", "a table without quoting cannot be read", repro)
        return
    train = read(path, folder, file.options, repro)
    if train is None:
        return
    name = f"{path.suffixes[0]}{'.gz' if file.gz else ''}{' array' if 'truth' in file.options else ''}"
    has_rows = any(s.row for s in file.segments) or "truth" in file.options
    if isinstance(train, str):
        if file.supported and file.benign and has_rows:
            found(f"data: a good file is refused ({name})", train, repro)
    else:
        compare(file, train, repro, name)
    if len(path.read_bytes()) % 4 == 0:  # a quarter of the files, because a report takes ten times as long as reading
        judge_check(path, folder, file, train, repro)


def compare(file: Written, train: Any, repro: str, name: str) -> None:
    """Compare the examples read with the truth, line by line."""
    bad = numbers_of(train.malformed)
    if len(bad) != len(train.malformed):
        found("data: malformed lines share a number", str(train.malformed)[:500], repro)
    if train.numbers and (len(set(train.numbers)) != len(train) or set(train.numbers) & set(bad)):
        found("data: two records have one number", str((train.numbers, sorted(bad))), repro)
    if any("\ufeff" in part for example in train for part in example[:3]) and "insert" not in file.done:
        found("data: a byte-order mark in the text", repr(list(train)), repro)
    if not file.exact:
        compare_whole(file, train, repro, name)
        return
    expected, kinds = file.rows(), file.kinds()
    at = dict(zip(train.numbers, train, strict=True))
    hurt_text = "\0".join(part for n, example in at.items() if n not in expected for part in example[:3])
    for line, row in expected.items():
        if line in at:
            if at[line] != row.example():
                number = " (a number)" if row.number is not None and at[line][:2] == row.example()[:2] else ""
                found(f"data: altered{number}", f"line {line} is {row.example()!r}, was read as {at[line]!r}", repro)
        elif line in bad:
            reason = bad[line]
            number = row.number is not None and ("number" in reason or "digits" in reason)
            if file.benign and file.supported and not number:
                found("data: a good line is called malformed", reason, repro)
        elif file.supported or file.benign or row.prompt not in hurt_text:
            found("data: lost", f"line {line} is neither read nor named: {row.example()!r}", repro)
    for line, example in at.items():
        kind = kinds[line].kind if line in kinds else "inside"
        if kind in ("second header", "blank", "mark", "inner mark") or (kind == "header" and line > 1 and kinds[line] is not file.segments[0] and file.segments[0].kind != "mark"):  # fmt: skip
            found(f"data: made up ({kind})", f"line {line} was read as {example!r}", repro)
        if kind == "hurt" and "concatenate" not in file.done:
            compare_hurt(file, kinds[line].data, example, line, repro)


def compare_hurt(file: Written, raw: bytes, example: Example, line: int, repro: str) -> None:
    """An example read from a damaged line must have exactly the texts of that line."""
    if file.ending != "txt" or b"\n" in raw[:-1] or b"\r" in raw[:-2] or not raw.endswith(b"\n"):
        return
    try:
        prompt, bar, rest = raw.decode().removeprefix("\ufeff" if line == 1 else "").partition("||")
    except UnicodeDecodeError:
        found("data: a broken line is read", f"line {line} was read as {example!r}", repro)
        return
    cot, mark, answer = rest.partition("####")
    if not bar or not mark or example[:3] != (prompt.strip(), cot.strip(), answer.strip()):
        found("data: a broken line is read", f"line {line} was read as {example!r}", repro)


def compare_whole(file: Written, train: Any, repro: str, name: str) -> None:
    """Compare a file as a whole: everything is read and right, or a malformed line is named."""
    truth = [row.example() for row in file.options.get("truth", [s.row for s in file.segments if s.row])]
    got = list(train)
    if train.malformed:
        if (
            file.supported
            and file.benign
            and not all("number" in reason or "digits" in reason for reason in train.malformed)
        ):
            found(f"data: a good file is called malformed ({name})", train.malformed[0], repro)
        return
    hurt = sum("hurt" in segment.kind for segment in file.segments)  # a damaged line may be an example still
    if got == truth or (len(got) <= len(truth) + hurt and all(example in got for example in truth)):
        return
    if file.encoding in ("latin-1", "cp1252"):
        content = file.content()
        with contextlib.suppress(UnicodeDecodeError):
            content.decode("utf-8")  # nobody can tell such bytes from UTF-8
            return
    kind = "altered" if len(got) == len(truth) else "lost or made up"
    found(
        f"data: {kind} without a word ({file.encoding}, {'cr, ' if 'cr' in file.done else ''}{name})",
        f"{truth!r} was read as {got!r}",
        repro,
    )


def judge_check(path: Path, folder: Path, file: Written, train: Any, repro: str) -> None:
    """`check_data` must name the lines that `read` found, and say "would stop" exactly if `load` refuses."""
    try:
        with within(SECONDS):
            task_for(path, folder, file.options).load((EOS,))
        refused = None
    except UserError as error:
        refused = str(error)
    except Exception as error:
        found(f"data: load: {type(error).__name__}", repr(error), repro)
        return
    if isinstance(train, str) != (refused is not None) and isinstance(train, str):
        found("data: read refuses what load takes", train, repro)
    config = CheckDataConfig(
        task=task_for(path, folder, file.options),
        model=ModelConfig(tokenizer=str(folder / "bytes"), positions=10_000_000),
        data=DataConfig(batch_size=1, cache_dir=None),
    )
    out, stops = io.StringIO(), False
    try:
        with within(SECONDS), contextlib.redirect_stdout(out):
            check_data(config)
    except SystemExit as error:
        stops = bool(error.code)
    except UserError as error:
        stops = True
        if not str(error).isprintable():
            found("data: check_data's error is not one line", repr(str(error)), repro)
    except Exception as error:
        found(f"data: check_data: {type(error).__name__}", repr(error), repro)
        return
    if stops != (refused is not None):
        said = out.getvalue().strip().splitlines()[-1:] or [""]
        found("data: check_data and load disagree", f"check_data: {said[0]!r}; load: {refused!r}", repro)
    if not isinstance(train, str) and out.getvalue():
        for reason in train.malformed:
            if reason not in out.getvalue():
                found("data: check_data leaves a malformed line out", reason, repro)


# --- several files, other forms of a prompt, GSM8K, Parquet


@st.composite
def several(draw: st.DrawFn) -> tuple[str, list[list[Row]], str]:
    """A way to name several files (a glob or a list), the rows of each file, and the format."""
    ending = draw(st.sampled_from(["txt", "jsonl", "csv"]))
    parts = draw(st.lists(rows(False, False, False), min_size=1, max_size=3))
    parts = [[row for row in part if fits_a_line(row)] or [Row(f"q{i}", "s", "1")] for i, part in enumerate(parts)]
    return draw(st.sampled_from(["glob", "list"])), parts, ending


def judge_several(how: str, parts: list[list[Row]], ending: str, folder: Path) -> None:
    """A glob or a list of files must give the rows of all files, in the order of their names."""
    for old in folder.glob("part-*"):
        old.unlink()
    for number, part in enumerate(parts):
        lines = {
            "txt": [f"{row.prompt}||{row.steps} #### {row.answer}\n" for row in part],
            "jsonl": [json_row(row, False) + "\n" for row in part],
            "csv": [as_csv([COLUMNS, *(row[:3] for row in part)])],
        }[ending]
        (folder / f"part-{number}.{ending}").write_text("".join(lines), encoding="utf-8", newline="")
    names = sorted(map(str, folder.glob("part-*")))
    source: Any = str(folder / f"part-*.{ending}") if how == "glob" else names
    repro = f"train={source if how == 'glob' else [Path(name).name for name in names]}, where the files hold {parts!r}"
    try:
        others = {split: str(folder / f"{split}.txt") for split in ("validation", "test")}
        for split, name in others.items():
            Path(name).write_text(f"{split} of the fuzz||s #### 1\n")
        train = Files(train=source, **others).read((EOS,))["train"]
    except UserError as error:
        found(f"data: several files are refused ({how})", str(error), repro)
        return
    except Exception as error:
        found(f"data: several files ({how}): {type(error).__name__}", repr(error), repro)
        return
    truth = [row.example() for part in parts for row in part]
    if list(train) != truth:  # type: ignore[call-overload]
        found(f"data: several files ({how}) lost or altered", f"was read as {list(train)!r}", repro)  # type: ignore[call-overload]


def as_csv(table: list[Any]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(table)
    return out.getvalue()


FORMS = ("NFC", "NFD", "NFKC", "NFKD", "spaces", "same")
forms = st.sampled_from(FORMS)
form_letters = st.sampled_from([*"0123456789+ab ", "é", "e\u0301", "ﬁ", "５", "\u00a0", "Å", "한", "ñ", "²", "＋"])


def in_form(prompt: str, form: str) -> str:
    """The prompt in another form, as other software may write it."""
    if form == "spaces":
        return "  ".join(prompt.split(" "))
    return prompt if form == "same" else unicodedata.normalize(form, prompt)  # type: ignore[arg-type]


def judge_forms(prompts: list[str], which: int, form: str, folder: Path) -> None:
    """A prompt of train that is in test too, in another Unicode form, must be refused or at least reported."""
    again = in_form(prompts[which % len(prompts)], form)
    (folder / "forms-train.txt").write_text("".join(f"{p}||s #### 1\n" for p in prompts), encoding="utf-8")
    (folder / "forms-test.txt").write_text(f"{again}||s #### 1\n", encoding="utf-8")
    (folder / "validation.txt").write_text("validation of the fuzz||s #### 1\n")
    names = {
        split: str(folder / name)
        for split, name in (("train", "forms-train.txt"), ("test", "forms-test.txt"), ("validation", "validation.txt"))
    }
    repro = f"train holds {prompts!r}, test holds {again!r}"
    for allowed in (False, True):
        try:
            notes = Files(**names, allow_overlap=allowed).load((EOS,)).notes  # type: ignore[arg-type]
        except UserError as error:
            if "prompt" not in str(error) or allowed:
                found("data: forms: refused for another reason", str(error), repro)
            continue
        # An exponent or a fraction has a meaning of its own, and stays.
        raised = any(
            unicodedata.decomposition(c).startswith(("<super>", "<sub>", "<fraction>"))
            for c in "".join([*prompts, again])
        )
        if not raised and not any("train" in note and "test" in note for note in notes):
            found("data: the same prompt in another form is no overlap", f"{form}: notes {notes}", repro)
            return


@st.composite
def gsm8k(draw: st.DrawFn) -> tuple[list[str], str, str]:
    """Equations, a solution text around them, and an answer."""
    equations = draw(
        st.lists(st.text("0123456789+-*/=.%() ", min_size=1, max_size=8).map(str.strip).filter(bool), max_size=4)
    )
    words = st.text("abc ,.$%\n", max_size=8)
    body = draw(words) + "".join(f"<<{equation}>>{draw(words)}" for equation in equations)
    hurt = draw(st.sampled_from(["no", "no", "break", "unclosed", "unopened", "nested", "none"]))
    places = [m.start() for m in re.finditer("<<", body)]
    ends = [m.start() for m in re.finditer(">>", body)]
    if not places:
        hurt = "none"
    pick = draw(st.integers(0, max(0, len(places) - 1)))
    if hurt == "break":
        at = draw(st.integers(places[pick] + 2, ends[pick]))
        body = body[:at] + "\n" + body[at:]
    elif hurt == "unclosed":
        body = body[: ends[pick]] + body[ends[pick] + 2 :]
    elif hurt == "unopened":
        body = body[: places[pick]] + body[places[pick] + 2 :]
    elif hurt == "nested":
        body = body[: places[pick] + 2] + "<<" + body[places[pick] + 2 :]
    answer = draw(st.sampled_from(["1", "1,000", "-3", "12", "1,2", "0.5", "$5"]))
    return (equations if hurt == "no" else []), f"{body}\n#### {answer}", hurt


def judge_gsm8k(equations: list[str], solution: str, hurt: str, folder: Path) -> None:
    """Every equation must become a step, or its line is named. A file without equations must not silently have no CoT."""
    path = folder / "gsm8k.jsonl"
    fine = {"question": "fine", "answer": "so <<1+1=2>>2\n#### 2"}
    lines = [{"question": "q", "answer": solution}] if hurt == "none" else [{"question": "q", "answer": solution}, fine]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    others = {}
    for split in ("validation", "test"):
        others[split] = str(folder / f"gsm8k-{split}.jsonl")
        Path(others[split]).write_text(json.dumps({"question": split, "answer": fine["answer"]}) + "\n")
    repro = f"gsm8k.jsonl: {path.read_text()}"
    task = GSM8K(train=str(path), **others)  # type: ignore[arg-type]
    try:
        splits = task.read((EOS,))
        train: Any = splits["train"]
        notes = task.load((EOS,)).notes if not train.malformed else ()
    except UserError as error:
        if hurt == "no":
            found("data: gsm8k: refused", str(error), repro)
        elif hurt == "none" and "natural_language" not in str(error):
            found("data: gsm8k: no equations, not the way out", str(error), repro)
        return
    except Exception as error:
        found(f"data: gsm8k: {type(error).__name__}", repr(error), repro)
        return
    if hurt == "no":
        expected = Example.of_steps("q", [f"<<{equation}>>" for equation in equations], solution.partition("#### ")[2])
        if (equations and train[0][:2] != expected[:2]) or train[0].steps != expected.steps:
            found("data: gsm8k: altered", f"expected {expected!r}, read {train[0]!r}", repro)
        whole = {"1,000": "1000"}.get(expected.answer, expected.answer)
        if train[0].answer != whole:
            found("data: gsm8k: comma of thousands in the training text", f"{train[0].answer!r}, not {whole!r}", repro)
    elif hurt == "none":
        if "<<" not in solution and not any("natural_language" in note for note in notes):
            found("data: gsm8k: no equation at all, and no word", f"read {train[0]!r}", repro)
    elif 1 not in numbers_of(train.malformed):
        found(f"data: gsm8k: a broken equation is read ({hurt})", f"read {train[0]!r}", repro)


PARQUET = {
    "string": (pa.string(), ["7", "a b", "é", "1,000"], str),
    "large": (pa.large_string(), ["7", "a b"], str),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["7", "7", "b"], str),
    "int64": (pa.int64(), [0, -1, 2**63 - 1], str),
    "uint8": (pa.uint8(), [0, 255], str),
    "float64": (pa.float64(), [0.1, 18.0, -2.5, 1e22, 5e-324], None),
    "float32": (pa.float32(), [0.1, 18.0, 2.5], None),
    "decimal": (pa.decimal128(20, 4), [decimal.Decimal("0.1000"), decimal.Decimal("-12.5000")], str),
    "date": (pa.date32(), [datetime.date(2020, 1, 31)], str),
    "timestamp": (pa.timestamp("ms"), [datetime.datetime(2020, 1, 31, 12)], None),
    "bool": (pa.bool_(), [True, False], None),
    "binary": (pa.binary(), [b"7"], None),
    "time": (pa.time32("s"), [datetime.time(12, 30)], None),
}
parquet_files = st.tuples(
    st.sampled_from(sorted(PARQUET)), st.integers(1, 5), st.sampled_from([None, 1, 2]), st.sampled_from(["none", "snappy", "gzip"]),
    st.sampled_from(["no", "no", "truncate", "flip"]), st.integers(0, 10**6), st.integers(1, 255),
)  # fmt: skip


def as_written(kind: str, value: Any) -> set[str]:
    """The texts that a value of a column may become: they must mean the same number or day."""
    if kind in ("float64", "float32"):
        shortest = str(np.float32(value)) if kind == "float32" else repr(value)
        whole = {str(int(value))} if float(value).is_integer() else set()
        return {
            shortest,
            *whole,
            np.format_float_positional(np.float32(value) if kind == "float32" else value, trim="-"),
        }
    if kind == "timestamp":
        return {str(value), value.isoformat()}
    return {str(value)}


def judge_parquet(
    kind: str, count: int, group: int | None, compression: str, hurt: str, at: int, byte: int, folder: Path
) -> None:
    """A column must keep its text, or its rows are named. A damaged file is refused, or gives all rows."""
    type_, values, exact = PARQUET[kind]
    answers = [values[i % len(values)] for i in range(count)]
    out = io.BytesIO()
    table = pa.table(
        {"question": [f"q{i}" for i in range(count)], "steps": [["s"]] * count, "answer": pa.array(answers, type_)}
    )
    pq.write_table(table, out, row_group_size=group, compression=compression)
    content = bytearray(out.getvalue())
    if hurt == "truncate":
        del content[at % len(content) :]
    elif hurt == "flip":
        content[at % len(content)] ^= byte
    path = folder / "train.parquet"
    path.write_bytes(content)
    repro = (
        f"answers {answers!r} as {type_}, row groups of {group}, {compression}; "
        f"{hurt if hurt == 'no' else f'{hurt} at {at % max(1, len(out.getvalue()))}, {byte}'}"
    )
    train = read(path, folder, {}, repro)
    if train is None or isinstance(train, str):
        if hurt == "no":
            found("data: parquet: refused", str(train), repro)
        return
    if hurt != "no":
        rows_there = pq.read_metadata(path).num_rows
        if len(train) + len(train.malformed) != rows_there:
            found("data: parquet: rows lost", f"{len(train)} and {len(train.malformed)} of {rows_there}", repro)
        return
    if len(train) + len(train.malformed) != count:
        found("data: parquet: rows lost", f"{len(train)} and {len(train.malformed)} of {count}", repro)
    for number, example in zip(train.numbers, train, strict=True):
        if example.answer not in as_written(kind, answers[number - 1]):
            found(f"data: parquet: altered ({kind})", f"{answers[number - 1]!r} was read as {example.answer!r}", repro)
    if exact and train.malformed:
        found(f"data: parquet: {kind} is not read", train.malformed[0], repro)
