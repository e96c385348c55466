"""Malformed files: every line that cannot be used is named with its reason, and nothing is dropped without a note."""

import contextlib
import datetime
import json
import random
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks import SPLITS, Example, ExampleList, Files, Splits
from stepwise_pl.tasks.prompts import normal
from tests.conftest import command
from tests.tasks.test_reading import as_csv, as_jsonl, as_lines, as_parquet, digest, hub, offline, read, written

__all__ = ["offline"]
RESERVED = ("<eos>",)
FOLDER, MISSING = b"a folder", b"nothing there"


class Bad(NamedTuple):
    """A file that must be refused, with the place in it (empty: the file as a whole) and the reason."""

    file: str
    content: bytes
    place: str
    reason: str


class Good(NamedTuple):
    """A file that looks odd but is valid, with its prompts."""

    file: str
    content: bytes
    prompts: list[str]


FINE = b'{"question": "q", "steps": ["s"], "answer": "1"}\n'
HEAD = b"question,steps,answer\n"
TABLE = as_parquet(question=["q", "r"], steps=["s", "t"], answer=["1", "2"])
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"q\xff\xfe")]
)
GARBAGE = random.Random(0).randbytes(3000).replace(b"\n", b"").replace(b"\r", b"").replace(b'"', b"")


def one_row_short() -> bytes:
    """Return a table that holds 2 rows, with a footer that counts 3."""
    footer = len(TABLE) - 8 - int.from_bytes(TABLE[-8:-4], "little")
    for place in range(footer, len(TABLE)):
        if TABLE[place] == 4:  # 2, as Parquet writes it
            content = TABLE[:place] + b"\6" + TABLE[place + 1 :]
            with contextlib.suppress(pa.ArrowException, OSError), pq.ParquetFile(pa.BufferReader(content)) as file:
                if file.metadata.num_rows == 3 and sum(map(len, file.iter_batches())) == 2:
                    return content
    raise AssertionError("no such place")


def txt(line: bytes, reason: str) -> Bad:
    return Bad("x.txt", b"q||s #### 1\n\n" + line + b"\nr||s #### 2\n", "line 3: ", reason)


def jsonl(line: str | bytes, reason: str) -> Bad:
    line = line.encode() if isinstance(line, str) else line
    return Bad("x.jsonl", FINE + b"\n" + line + b"\n" + FINE, "line 3: ", reason)


def fields(reason: str, **change: Any) -> Bad:
    return jsonl(json.dumps({"question": "q", "steps": "s", "answer": "1"} | change), reason)


def table(reason: str, **change: Any) -> Bad:
    return Bad(
        "x.parquet",
        as_parquet(**{"question": ["q", "r"], "steps": ["s", "t"], "answer": ["1", "2"]} | change),
        "row 2: ",
        reason,
    )


BAD = [
    txt(b"1 + 1 2 #### 2", "no '||' between prompt and CoT"),
    txt(b"1||2 2", "no '####' before the answer"),
    txt(b"1||2||3 #### 2", "'||' occurs more than once"),
    txt(b"1||2 #### 3 #### 4", "'####' occurs more than once"),
    txt(b" ||2 #### 2", "the prompt is empty"),
    txt("\u00a0\u2003||2 #### 2".encode(), "the prompt is empty"),
    txt(b"1||2 ####  ", "the answer is empty"),
    txt(b"||####", "the prompt is empty"),
    txt(b"a<eos>b||2 #### 2", "the end token '<eos>' occurs in the text"),
    txt(b"1||2 #### 2<eos>", "the end token '<eos>' occurs in the text"),
    txt(b"1||\xff #### 2", "invalid UTF-8 at byte 4"),
    txt("é||s #### 2".encode("latin-1"), "invalid UTF-8 at byte 1"),
    txt(b"1||\xed\xa0\x80 #### 2", "invalid UTF-8 at byte 4"),  # half of a surrogate pair
    txt(FINE[:-1], "no '||'"),  # the wrong ending
    Bad("x.txt", b"q||s #### 1\nr||s #### \xe4\xb8", "line 2: ", "invalid UTF-8"),  # cut off in a character
    Bad("x.txt", b"\x80" + GARBAGE, "line 1: ", "invalid UTF-8 at byte 1"),
    Bad("x.txt", b"", "", "no example in it"),
    Bad("x.txt", b"\n \n\t\n\r\n", "", "no example in it"),
    Bad("x.txt", b"\xef\xbb\xbf", "", "no example in it"),
    Bad("x.TXT", b"\xef\xbb\xbf\n", "", "no example in it"),
    jsonl("q||s #### 1", "not JSON"),
    jsonl('{"question": "q", "steps": "s", "answer"', "not JSON"),
    jsonl("{'question': 'q'}", "not JSON"),
    jsonl('{"question": "q", "steps": "s", "answer": "1",}', "not JSON"),
    jsonl(FINE[:-1] + FINE[:-1], "not JSON"),
    jsonl("{} {}", "not JSON"),
    jsonl('["q", "s", "1"]', "a JSON array; write one JSON object a line"),
    jsonl(" [", "a JSON array; write one JSON object a line"),
    jsonl("3", "not a JSON object"),
    jsonl("null", "not a JSON object"),
    jsonl('"question"', "not a JSON object"),
    jsonl("{}", "no field 'question' (task.prompt_field)"),
    jsonl('{"question": "q", "steps": "s"}', "no field 'answer' (task.answer_field); it has: question, steps"),
    jsonl('{"question": "q", "answer": "1"}', "no field 'steps' (task.cot_field); it has: question, answer"),
    jsonl('{"question": "q", "question": "r", "steps": "s", "answer": "1"}', "field 'question' occurs twice"),
    jsonl('{"\\ud800": 1}', "no field 'question'"),
    jsonl('{"a\\nb": 1}', "no field 'question'"),
    jsonl('{"a": ' * 100_000, "nested too deeply"),
    jsonl('{"question": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    jsonl(b'{"question": "\xff"}', "invalid UTF-8 at byte 15"),
    fields("field 'question' is null, not text", question=None),
    fields("field 'answer' is bool, not text", answer=True),
    fields("field 'steps' is bool, not text", steps=False),
    fields("field 'answer' is not a number", answer=float("nan")),
    fields("field 'answer' is not a number", answer=float("inf")),
    fields("field 'question' is list, not text", question=["q"]),
    fields("field 'answer' is dict, not text", answer={"value": 1}),
    fields("field 'steps' is dict, not text", steps={"1": "s"}),
    fields("step 2 of field 'steps' is empty", steps=["s", " "]),
    fields("step 1 of field 'steps' is null, not text", steps=[None]),
    fields("step 2 of field 'steps' is list, not text", steps=["s", ["t"]]),
    fields("the prompt is empty", question=" \n"),
    fields("the answer is empty", answer=""),
    fields("half of a surrogate pair", question="q\ud800"),
    fields("half of a surrogate pair", steps=["\udfff"]),
    fields("the end token '<eos>' occurs in the text", steps=["<eos>"]),
    Bad("x.jsonl", b"[\n" + FINE + b"]\n", "line 1: ", "a JSON array; write one JSON object a line"),
    Bad("x.json", b'{\n"question": "q", "steps": "s", "answer": "1"\n}', "line 1: ", "not JSON"),
    Bad("x.jsonl", b"\x80" + GARBAGE, "line 1: ", "invalid UTF-8 at byte 1"),
    Bad("x.jsonl", b"\n\n", "", "no example in it"),
    Bad("x.csv", HEAD + b"q,s,1\nr,s\n", "line 3: ", "2 fields where the header has 3"),
    Bad("x.csv", HEAD + b"q,s,1,\nr,s,2\n", "line 2: ", "4 fields where the header has 3"),
    Bad("x.csv", HEAD + b'"q\n\n",s,1\n,s,2\n', "line 5: ", "the prompt is empty"),
    Bad("x.csv", HEAD + b'q,s,1\nr,s,"2"3\nt,s,4\n', "line 3: ", "expected after '\"'"),
    Bad("x.csv", HEAD + b'q,s,1\n"r,s,2\nt,s,3\nu,s,4\n', "line 3", ""),  # a quote that is never closed
    Bad("x.csv", HEAD + b"q,s,1\nr,\xff,2\n", "line 3: ", "invalid UTF-8"),
    Bad("x.csv", HEAD + b"q,<eos>,1\n", "line 2: ", "the end token '<eos>' occurs in the text"),
    Bad("x.csv", HEAD, "", "no example in it"),
    Bad("x.csv", b"", "", "no example in it"),
    Bad("x.csv", b"question,answer\nq,1\n", "", "has no column 'steps' (task.cot_field); it has: question, answer"),
    Bad("x.csv", b"q,s,1\nr,s,2\n", "", "has no column 'question'"),  # no header
    Bad("x.csv", HEAD.replace(b",", b";") + b"q;s;1\n", "", "has no column 'question'"),
    Bad("x.csv", b"question,steps,answer,steps\nq,s,1,s\n", "", "has column 'steps' twice"),
    Bad("x.csv", b'"question"s,steps,answer\n', "", "the header cannot be read"),
    Bad("x.csv", b'"question,steps,answer\nq,s,1\n', "", "the header cannot be read"),
    Bad("x.csv", GARBAGE, "", "has no column 'question'"),
    Bad("x.tsv", HEAD + b"q,s,1\n", "", "has no column 'question'"),
    Bad("x.tsv", HEAD.replace(b",", b"\t") + b"q\ts 1\n", "line 2: ", "2 fields where the header has 3"),
    Bad("x.parquet", b"", "", "cannot be read as Parquet"),
    Bad("x.parquet", FINE, "", "cannot be read as Parquet"),
    Bad("x.parquet", TABLE[:-30], "", "cannot be read as Parquet"),
    Bad("x.parquet", TABLE[30:], "", "cannot be read as Parquet"),
    Bad("x.parquet", one_row_short(), "", "cannot be read as Parquet"),
    Bad(
        "x.parquet",
        as_parquet(question=["q"], answer=["1"]),
        "",
        "has no column 'steps' (task.cot_field); it has: question, answer",
    ),
    Bad("x.parquet", as_parquet(question=[], steps=[], answer=[]), "", "no example in it"),
    table("field 'question' is null, not text", question=["q", None]),
    table("the prompt is empty", question=["q", ""]),
    table("field 'answer' is not a number", answer=[1.5, float("nan")]),
    table("UTF-8|utf-8", question=NOT_UTF8),
    table("step 1 of field 'steps' is null, not text", steps=[["s"], [None]]),
    table("the end token '<eos>' occurs in the text", answer=["1", "<eos>"]),
    Bad("x.parquet", as_parquet(question=[b"q"], steps=["s"], answer=[1]), "row 1: ", "field 'question' is bytes"),
    Bad("x.parquet", as_parquet(question=[{"a": 1}], steps=["s"], answer=[1]), "row 1: ", "is dict, not text"),
    Bad("x.parquet", as_parquet(question=["q"], steps=["s"], answer=[True]), "row 1: ", "is bool, not text"),
    Bad("x.parquet", as_parquet(question=pa.array([10**8], pa.date32()), steps=["s"], answer=[1]), "row 1: ", ""),
    Bad("x.doc", b"q||s #### 1\n", "", "cannot tell the format by the ending"),
    Bad("x", b"q||s #### 1\n", "", "cannot tell the format by the ending"),
    Bad("x.txt.gz", b"q||s #### 1\n", "", "cannot be unpacked (Not a gzipped file"),
    Bad("x.txt.zst", b"q||s #### 1\n", "", "cannot tell the format by the ending"),
    Bad("x.txt", FOLDER, "", "Is a directory; give a readable file"),
    Bad("x", FOLDER, "", "cannot tell the format by the ending"),
    Bad("x.txt", MISSING, "", "No such file or directory; give a readable file"),
    Bad("x.parquet", MISSING, "", "No such file or directory; give a readable file"),
    Bad("hub:", MISSING, "", "write hub:<data set>:<split>"),
    Bad("hub:data", MISSING, "", "write hub:<data set>:<split>"),
    Bad("hub:data::train", MISSING, "", "write hub:<data set>:<split>"),
    Bad("hub:a:b:c:d", MISSING, "", "write hub:<data set>:<split>"),
    Bad("hub:nobody/nothing:train", MISSING, "", "cannot be loaded"),
    Bad("hub:no/such/folder:train", MISSING, "", "cannot be loaded"),
]
LONG, LONG_CELL = "a" * 1_000_000, "a\n," * 50_000
GOOD = [
    Good("x.txt", b"q||#### 1\nr|| #### 2", ["q", "r"]),
    Good("x.txt", f"{LONG}||s #### 1\n".encode(), [LONG]),
    Good("x.txt", b"\xef\xbb\xbfq||s #### 1\r\n\r\nr||s #### 2\r\n", ["q", "r"]),
    Good("x.txt", b"q\0r||s #### 1\n", ["q\0r"]),
    Good("x.txt", "q\u2028r\x0b||s #### 1\x85\n".encode(), ["q\u2028r"]),
    Good("x.txt", b"q||s ##### 1\n####||| #### ###\n", ["q", "####"]),
    Good("x.txt", "q||s #### 1\n".encode("utf-16"), ["q"]),
    Good("x.txt", b"q||s #### 1\rr||s #### 2\r", ["q", "r"]),  # old Macintosh
    Good("x.jsonl", FINE * 2, ["q", "q"]),
    Good("x.ndjson", FINE.decode().encode("utf-16"), ["q"]),
    Good("x.jsonl", b'{"question": ' + b"9" * 5000 + b', "steps": "s", "answer": 1}', ["9" * 5000]),
    Good("x.json", b"[" + FINE[:-1] + b"]", ["q"]),
    Good("x.csv", (HEAD + b"q,s,1\n").decode().encode("utf-16"), ["q"]),
    Good("x.jsonl", b'{"question": "q", "steps": null, "answer": 0}', ["q"]),
    Good("x.jsonl", b'{"question": "\\ud83d\\ude42", "steps": [], "answer": 1.5}', ["🙂"]),
    Good("x.jsonl", b'{"question": "a||b", "steps": "c\\nd", "answer": "e"}', ["a||b"]),
    Good("x.jsonl", as_jsonl([(LONG, "s", "1")]), [LONG]),
    Good("x.csv", HEAD + b'"q, ""r""\n",,1\n', ['q, "r"']),
    Good("x.csv", HEAD + b"q,s,1\n\n   \n,,\nr,s,2\n", ["q", "r"]),  # blank, or only empty cells
    Good("x.csv", b"\n" + HEAD + b"q,s,1\n", ["q"]),
    Good("x.csv", as_csv([(LONG, "s", "1"), ("r", "s", "2")]), [LONG, "r"]),
    Good("x.csv", as_csv([(LONG_CELL + ".", "s", "1"), ("r", "s", "2")]), [LONG_CELL + ".", "r"]),
    Good("x.csv", b"question,steps,answer\rq,s,1\rr,s,2", ["q", "r"]),
    Good("x.tsv", as_csv([("q", 'a "b"', "1,2")], "\t"), ["q"]),
    Good("x.tsv", as_csv([(LONG_CELL + ".", "s", "1")], "\t"), [LONG_CELL + "."]),
    Good("x.parquet", as_parquet(question=["q" * 200_000], steps=[None], answer=[1]), ["q" * 200_000]),
    Good("x.parquet", as_parquet(question=[datetime.date(2020, 1, 1)], steps=["s"], answer=[1]), ["2020-01-01"]),
    Good("x.parquet", as_parquet(question=pa.array(["q"], pa.large_string()), steps=[[]], answer=[2.5]), ["q"]),
]  # fmt: skip


def short(case: NamedTuple) -> str:
    return "-".join(re.sub(r"\W+", " ", str(part))[:40].strip() for part in (case[0], case[-1]))


def put(folder: Path, file: str, content: bytes) -> str:
    """Write the file; return the value for task.train."""
    if file.startswith("hub:"):
        return file
    path = folder / file
    if content == FOLDER:
        path.mkdir()
    elif content != MISSING:
        path.write_bytes(content)
    return str(path)


def with_splits(folder: Path, train: str, **options: Any) -> Files:
    """Return a task with this training set, and with one problem each for validation and test."""
    validation, test = (written(folder / f"{name}.txt", f"{name}||s #### 1\n".encode()) for name in SPLITS[1:])
    return Files(train=train, validation=str(validation), test=str(test), **options)


@pytest.mark.parametrize("value", [40, "40"])
def test_a_number_of_prompts_is_no_file(tmp_path: Path, value: int | str) -> None:
    train = put(tmp_path, "x.jsonl", FINE)
    with pytest.raises(
        UserError, match="^task.test=40: is no file; to hold 40 prompts of train out, set task.test_size=40$"
    ):
        Files(train=train, validation_size=1, test=value).load()  # type: ignore[arg-type]


@pytest.mark.parametrize("case", BAD, ids=short)
def test_malformed_files_are_named(tmp_path: Path, case: Bad) -> None:
    name = put(tmp_path, case.file, case.content)
    task = with_splits(tmp_path, name)
    with pytest.raises(UserError) as error:
        task.load(RESERVED)
    message = str(error.value)
    assert message.startswith(f"task.train={name}")
    assert case.place in message
    assert any(reason in message for reason in case.reason.split("|")), message
    assert message.isprintable()  # one line, no escape codes, no half characters
    if case.place:
        with_the_rest = with_splits(tmp_path, name, skip_malformed=True)
        try:
            assert any("skipped" in note and name in note for note in with_the_rest.load(RESERVED).notes)
        except UserError as nothing_left:
            assert name in str(nothing_left)


@pytest.mark.parametrize("case", GOOD, ids=short)
def test_odd_but_valid_files_are_read(tmp_path: Path, case: Good) -> None:
    task = with_splits(tmp_path, put(tmp_path, case.file, case.content))
    assert [example.prompt for example in task.load(RESERVED)["train"].slice(0, 99)] == case.prompts


@pytest.mark.parametrize(
    "rows,last",
    [(b'"r,s,2\nt,s,3\nu,s,4\n', 5), (b'"r,s,2\nt,s,3\nu,"s",4\n', 5), (b'"r,s,2\nt,s,3"\nu,s,4\n', 4)],
    ids=["never closed", "closed in a cell", "closed at the end"],
)
def test_rows_behind_an_open_quote_are_named(tmp_path: Path, rows: bytes, last: int) -> None:
    path = written(tmp_path / "x.csv", HEAD + b"q,s,1\n" + rows)
    try:
        told = with_splits(tmp_path, str(path), skip_malformed=True).load().notes[0] + "; ".join(read(path).malformed)
    except UserError as error:
        told = str(error)
    assert re.search(rf"lines? 3\b.*\bline {last}\b", told), told  # "line 3: ...; the row goes on to line 5", or so


def test_malformed_lines_are_counted_and_the_first_is_named(tmp_path: Path, caplog) -> None:
    lines = [b"bad" if i % 2 else f"q{i}||s #### 1".encode() for i in range(300)]
    name = str(written(tmp_path / "x.txt", b"\n".join(lines)))
    with pytest.raises(UserError, match=r"150 malformed lines, the first is line 2: no '\|\|'"):
        with_splits(tmp_path, name).load()
    assert [message.split(":")[0] for message in caplog.messages[:100]] == [f"line {i}" for i in range(2, 201, 2)]
    assert "50 more" in caplog.messages[100]
    splits = with_splits(tmp_path, name, skip_malformed=True).load()
    assert len(splits["train"]) == 150
    assert splits.notes == (f"{name}: skipped 150 malformed lines",)


@pytest.mark.parametrize("content", [b"bad\n" * 12, b"bad\n" * 12 + b"q||s #### 1\n", b""])
def test_malformed_lines_are_named_before_there_are_too_few_to_hold_out(tmp_path: Path, content: bytes) -> None:
    name = str(written(tmp_path / "x.txt", content))
    with pytest.raises(UserError) as error:
        Files(train=name, test_size=3).load()
    message = str(error.value)
    assert name in message
    assert ("12 malformed lines, the first is line 1: no '||'" in message) == bool(content)
    assert ("no example" in message) == (not content)


PIECES = [
    b"q||s #### 1", b"||", b"####", b'{"question": "q", "steps": ["s"], "answer": "1"}', b'{"question": ', b"[", b"]", b"null",
    b"NaN", b'"q"', b'"', b",", b"q,s,1", b"q\ts\t1", b"\t", b" ", b"\r", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800",
    b"<eos>", b"question,steps,answer\n", b"question\tsteps\tanswer\n",
]  # fmt: skip
heads = {"csv": HEAD, "tsv": HEAD.replace(b",", b"\t")}
pieces = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=25).map(b"".join)


@given(st.sampled_from(["txt", "jsonl", "csv", "tsv", "parquet"]), st.binary(max_size=300) | pieces, st.booleans())
@settings(max_examples=400, deadline=None)
def test_random_bytes_are_refused_or_accounted_for(tmp_path_factory, ending: str, data: bytes, head: bool) -> None:
    data = heads.get(ending, b"") * head + data
    path = written(tmp_path_factory.getbasetemp() / f"random.{ending}", data)
    assert len(digest(path)) == 64
    try:
        found = read(path)
    except UserError as error:
        assert str(error).startswith(f"task.train={path}: ")
        of_another_kind = re.search(r"UTF-|compressed|zip|Parquet", str(error))
        assert ending in ("csv", "tsv", "parquet") or of_another_kind
        return
    count = len(found) + len(found.malformed)
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return  # the bytes are UTF-16 or UTF-32, and are read
    if ending in ("txt", "jsonl"):
        assert count == sum(bool(line.strip()) for line in data.split(b"\n" if b"\n" in data else b"\r"))
    elif b'"' not in data:
        text = data.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
        lines = [line for line in text.split("\n") if line.strip()]
        delimiter = "," if ending == "csv" else "\t"
        full = sum(any(cell.strip() for cell in line.split(delimiter)) for line in lines)
        assert max(full - 1, 0) <= count <= max(len(lines) - 1, 0)
    numbers = [*found.numbers, *(int(line.split(":")[0].split()[1]) for line in found.malformed)]
    assert len(set(numbers)) == len(numbers) == count


ROWS: list[Any] = [(f"q{i}", ["s", "t"], str(i)) for i in range(20)]
changes = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)


@given(changes)
@settings(max_examples=300, deadline=None)
def test_a_damaged_table_is_refused_or_complete(tmp_path_factory, change: list[tuple[int, int]]) -> None:
    prompts, steps, answers = zip(*ROWS, strict=True)
    content = bytearray(as_parquet(question=prompts, steps=steps, answer=answers))
    for place, byte in change:
        content[place % len(content)] = byte
    path = written(tmp_path_factory.getbasetemp() / "damaged.parquet", bytes(content))
    try:
        found = read(path)
    except UserError:
        return
    assert len(found) + len(found.malformed) == pq.read_metadata(path).num_rows


# --- held-out prompts


prompts = st.lists(st.text("abc \u00a0\n", min_size=1, max_size=4), min_size=12, max_size=40)


def problems(words: list[str]) -> list[Any]:
    return [(prompt, f"s{i}", str(i)) for i, prompt in enumerate(words) if prompt.strip()]


def held(rows: list[Any], folder: Path, **options: Any) -> dict[str, list[Example]]:
    path = written(folder / "held.jsonl", as_jsonl(rows))
    splits = Files(train=str(path), **options).load()
    return {name: examples.slice(0, len(examples)) for name, examples in splits.items()}


def names(examples: list[Example]) -> set[str]:
    return {normal(example.prompt) for example in examples}


@given(prompts, st.randoms(use_true_random=False), st.data())
@settings(max_examples=100, deadline=None)
def test_held_out_prompts_depend_on_their_text_alone(tmp_path_factory, words, order, data) -> None:
    folder, rows = tmp_path_factory.getbasetemp(), problems(words)
    distinct = len({normal(prompt) for prompt, *_ in rows})
    if distinct < 4:
        return
    test = data.draw(st.integers(1, distinct // 2))
    validation = data.draw(st.integers(1, max(1, (distinct - test) // 2)))
    if 2 * validation > distinct - test:
        return
    splits = held(rows, folder, test_size=test, validation_size=validation)
    # Sizes count prompts; all examples of a prompt go together; no example is lost or invented.
    assert [len(names(splits[name])) for name in SPLITS] == [distinct - test - validation, validation, test]
    assert not any(names(splits[one]) & names(splits[other]) for one, other in combinations(SPLITS, 2))
    everything = sorted((p.strip(), s, a) for p, s, a in rows)
    assert sorted(example[:3] for examples in splits.values() for example in examples) == everything
    shuffled = list(rows)
    order.shuffle(shuffled)
    again = held(shuffled, folder, test_size=test, validation_size=validation)
    assert [names(again[name]) for name in SPLITS] == [names(splits[name]) for name in SPLITS]
    smaller = held(rows, folder, test_size=test, validation_size=1)
    assert smaller["test"] == splits["test"]
    assert names(smaller["validation"]) <= names(splits["validation"])


def test_more_examples_leave_most_of_the_held_out_prompts(tmp_path: Path) -> None:
    rows = problems([f"q{i}" for i in range(220)])
    before, after = (held(rows[:count], tmp_path, test_size=50, validation_size=20) for count in (200, 220))
    assert len(names(before["test"]) & names(after["test"])) >= 40


def test_a_held_out_set_is_no_slice_of_the_file(tmp_path: Path) -> None:
    splits = held(problems([f"q{i}" for i in range(1000)]), tmp_path, test_size=200, validation_size=200)
    for name in ("validation", "test"):
        numbers = [int(example.answer) for example in splits[name]]
        assert numbers == sorted(numbers)  # in the order of the file
        assert 400 < sum(numbers) / len(numbers) < 600
    assert not names(splits["validation"]) & names(splits["test"])


def test_numbers_and_malformed_lines_survive_holding_out(tmp_path: Path) -> None:
    lines = [f"q{i}||s #### {i}".encode() for i in range(1, 30)]
    lines[6] = b"bad"
    path = written(tmp_path / "x.txt", b"\n".join(lines))
    splits = Files(train=str(path), validation_size=5, test_size=5, skip_malformed=True).read()
    for examples in splits.values():
        assert isinstance(examples, ExampleList)
        assert [int(example.answer) for example in examples] == examples.numbers
        assert examples.source == str(path)
    assert [examples.malformed for examples in splits.values()] == [  # type: ignore[attr-defined]
        ["line 7: no '||' between prompt and CoT"], [], [],
    ]  # fmt: skip


# --- the splits together


def three(folder: Path, *texts: str, **options: Any) -> Splits:
    paths = [written(folder / f"{name}.txt", text.encode()) for name, text in zip(SPLITS, texts, strict=True)]
    train, validation, test = map(str, paths)
    return Files(train=train, validation=validation, test=test, **options).load()


def test_overlap_is_refused_and_named_or_noted(tmp_path: Path) -> None:
    texts = (
        "a b||s #### 1\nc||s #### 2\nd||s #### 3",
        "e||s #### 1\nc||other #### 9",
        " f||s #### 1\na\u00a0  b||s #### 1",
    )
    with pytest.raises(UserError, match=r"task.validation: 1 of its prompts are also in train \(first: 'c'\)"):
        three(tmp_path, *texts)
    splits = three(tmp_path, *texts, allow_overlap=True)
    assert [len(splits[name]) for name in SPLITS] == [3, 2, 2]
    assert [note.split(" (")[0] for note in splits.notes] == [
        "1 prompts are in both train and validation", "1 prompts are in both train and test",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"task.test: 2 of its prompts are also in validation \(first: 'x'\)"):
        three(tmp_path, "a||s #### 1", "x||s #### 1\ny||s #### 1", "x||s #### 1\ny||s #### 1\nz||s #### 1")
    assert not three(tmp_path, "a b||s #### 1", "ab||s #### 1", "A b||s #### 1").notes


def test_repeated_prompts_within_a_split_are_kept(tmp_path: Path) -> None:
    splits = three(tmp_path, "a||s #### 1\na||t #### 2\na||s #### 1", "b||s #### 1", "c||s #### 1")
    assert len(splits["train"]) == 3


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    path = str(written(tmp_path / "x.txt", as_lines([(f"q{i}", "s", "1") for i in range(10)])))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, r"task.train is not set: give a .txt .*, .jsonl, .json, .csv, .tsv or .parquet file, .* or hub:<data set>:<split>"),
        ({"validation": path, "test": path}, "task.train is not set"),
        ({"train": path}, r"task.test is not set: give a file, or task.test_size=N"),
        ({"train": path, "test": path, "validation_size": 0}, r"task.validation is not set: give a file, or task.valid"),
        ({"train": path, "test_size": 6}, r"task.test_size=6: must be at most half of the 10 prompts of .*x.txt"),
        ({"train": path, "test_size": 4, "validation_size": 4}, r"task.validation_size=4: .* half of the 6 prompts"),
        ({"train": path, "validation": "no.txt", "test_size": 1}, r"task.validation=no.txt: No such file"),
    ]  # fmt: skip
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            Files(**options).load()
    for key in ("validation_size", "test_size"):
        with pytest.raises(UserError, match=f"task.{key}=-1: must be at least 0"):
            Files(train=path, **{key: -1})  # type: ignore[arg-type]


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    for i, name in enumerate(SPLITS):
        texts = [f"{other}||s #### 1" for other in SPLITS]
        texts[i] = "\n"
        with pytest.raises(UserError, match=rf"task.{name}=.*{name}.txt: no example in it"):
            three(tmp_path, *texts)


def test_a_step_begins_at_its_mark(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.txt", b"q||<<1>> <<2>>\t<<3>> #### 1\nr||so <<1>> #### 2\ns|| #### 3\nt||none #### 4\n"
    )
    assert [example.steps for example in read(path)] == [()] * 4
    assert [example.steps for example in read(path, step_start="<<")] == [(0, 6, 12), (0, 3), (), ()]
    listed = written(
        tmp_path / "x.jsonl", as_jsonl([("q", ["a. b", "c."], "1"), ("r", "a. b. c", "2"), ("s", [], "3")])
    )
    assert [example.steps for example in read(listed, step_start=". ")] == [(0, 5), (0, 1, 4), ()]
    overlapping = written(tmp_path / "y.txt", b"q||aaaa #### 1\n")
    assert read(overlapping, step_start="aa")[0].steps == (0, 2)


# --- the command line


def quiet(folder: Path) -> tuple[str, ...]:
    return (f"run_dir={folder / 'run'}", "data.cache_dir=null")


def test_check_data_lists_every_malformed_line_of_every_format(tmp_path: Path) -> None:
    lines = [b"bad" if (i < 24 and i % 2) or i in (30, 31) else f"q{i}||s #### 1".encode() for i in range(40)]
    train = written(tmp_path / "train.txt", b"\n".join(lines))
    validation = written(tmp_path / "v.jsonl", b"[1]\n" + FINE + b'\n{"question": 1}\n')
    test = written(tmp_path / "t.csv", HEAD + b"q1,s,1\nr,s\n\xff,s,1\n")
    out = command("check_data", "task=file", f"task.train={train}", f"task.validation={validation}", f"task.test={test}", check=False)  # fmt: skip
    assert out.returncode == 1, out.stderr
    assert "Traceback" not in out.stdout + out.stderr
    found = {}
    for paragraph in out.stdout.split("\n\n"):
        if match := re.match(r"(\w+): \d+ examples from", paragraph.strip()):
            named = re.findall(r"^    line ([\d, -]+): ", paragraph, re.M)
            spans = [[int(end) for end in span.split("-")] for text in named for span in text.split(", ")]
            found[match[1]] = [number for span in spans for number in range(span[0], span[-1] + 1)]
    assert found == {"train": [*range(2, 25, 2), 31, 32], "validation": [1, 4], "test": [3, 4]}
    assert "malformed: 14" in out.stdout
    last = out.stdout.strip().splitlines()[-1]
    assert last.startswith("training would stop: ")
    assert all(f"{name} has malformed lines" in last for name in SPLITS)


def one_error(*arguments: str) -> str:
    """Return the line on standard error that begins with `error: `. It must be the only one, and the last."""
    out = command(*arguments, check=False)
    assert out.returncode == 2, (out.stdout, out.stderr)
    assert "Traceback" not in out.stdout + out.stderr
    *_, last = out.stderr.strip().splitlines()
    assert out.stderr.count("error: ") == 1
    return last


@pytest.mark.long
def test_check_data_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", TABLE[:-30])
    message = one_error("check_data", "task=file", f"task.train={path}", "task.test_size=1")
    assert message.startswith(f"error: task.train={path}: cannot be read as Parquet")


@pytest.mark.parametrize(
    "file,content,message",
    [
        ("some.txt", b"q||s #### 1\n" + b"bad\n" * 12, "12 malformed lines, the first is line 2: no '||'"),
        ("all.jsonl", b"[1]\n" * 12, "12 malformed lines, the first is line 1: a JSON array"),
        pytest.param("empty.txt", b"\n", "no example in it", marks=pytest.mark.long),
        pytest.param(
            "columns.csv", b"question\n1\n", "has no column 'steps' (task.cot_field); it has: ", marks=pytest.mark.long
        ),
    ],
    ids=["some.txt", "all.jsonl", "empty.txt", "columns.csv"],
)
def test_train_stops_with_one_line(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    path = written(tmp_path / file, content)
    task = with_splits(tmp_path, str(path))
    files = (f"task.{name}={getattr(task, name)}" for name in SPLITS)
    line = one_error("train", "task=file", *files, *quiet(tmp_path))
    assert line.startswith(f"error: task.train={path}: {message}")


def test_hub_folder_with_malformed_rows(tmp_path: Path) -> None:
    name = hub(tmp_path / "data", "x.jsonl", as_jsonl([("q", "s", "1"), ("r", "s", " ")]))
    with pytest.raises(UserError, match=r"1 malformed rows?, the first is row 2: the answer is empty"):
        with_splits(tmp_path, name).load()
    checks: list[tuple[Callable[[], str], str]] = [(lambda: hub(tmp_path / "no", "x.txt", b""), "cannot be loaded|no ")]
    for make, message in checks:
        with pytest.raises(UserError, match=message):
            with_splits(tmp_path, make()).load()
