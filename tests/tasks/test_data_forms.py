"""One meaning, many forms: files, numbers and prompts are read rightly, or the line is named."""

import bz2
import datetime
import gzip
import json
import lzma
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.layout import normalize_answer
from stepwise_pl.tasks import GSM8K, SPLITS, Example, Files
from stepwise_pl.tasks.base import place
from stepwise_pl.tasks.prompts import hold_out, normal, overlaps
from tests.conftest import command
from tests.tasks.test_files import FINE, HEAD, three, with_splits
from tests.tasks.test_gsm8k import everything, row
from tests.tasks.test_reading import as_csv, as_jsonl, as_lines, as_parquet, digest, hub, offline, read, written

__all__ = ["offline"]

# --- commas in answers


@pytest.mark.parametrize(
    "text,compared",
    [
        ("1,000", "1000"), ("-$12,345,678.90", "-$12345678.90"), ("1,000, 2,000", "1000, 2000"), ("1,000,", "1000,"),
        ("1 , 0 0 0", "1 0 0 0"), ("- 1 2 , 3 4 5 . 6", "- 1 2 3 4 5 . 6"), ("１，０００", "1000"),
        ("1,2", "1,2"), ("1 , 2", "1 , 2"), ("0,123", "0,123"), ("1,2,300", "1,2,300"), ("1,000,2000", "1,000,2000"),
        ("1,0000", "1,0000"), ("12,34", "12,34"), ("1.234,567", "1.234,567"), ("[1,200]", "[1,200]"), ("(3,141)", "(3,141)"),
        ("1 , 2 3 4 5", "1 , 2 3 4 5"), ("a,b", "a,b"), ("10²", "10²"),
    ],
)  # fmt: skip
def test_a_comma_leaves_only_as_a_separator_of_thousands(text: str, compared: str) -> None:
    assert normalize_answer(text) == compared


def test_gsm8k_trains_on_answers_without_separators_of_thousands(shared_data: Path, tmp_path: Path) -> None:
    train = [json.loads(line) for line in (shared_data / "gsm8k" / "openai_train.jsonl").open(encoding="utf-8")]
    answers = [GSM8K().example(record).answer for record in train]
    assert not any("," in answer for answer in answers)
    assert sum("," in record["answer"].split("####")[1] for record in train) == 79
    lines = (shared_data / "gsm8k" / "icot_train_natural_language.txt").read_text(encoding="utf-8").split("\n")[:-1]
    task = GSM8K(cot="natural_language")
    assert not any("," in task.example(line).answer for line in lines)
    assert GSM8K().example("q||<<1+1=2>> #### 1,2").answer == "1,2"
    path = written(tmp_path / "x.txt", b"q||s #### 1,000")
    assert read(path)[0].answer == "1,000"  # an answer of task=file is plain text


# --- data without a CoT


def test_gsm8k_without_equations_stops_and_names_natural_language(tmp_path: Path) -> None:
    plain = "".join(row(i, "3 times 2 is 6.\n#### 6") for i in range(12)).encode()
    train = str(written(tmp_path / "x.jsonl", plain))
    options: dict[str, Any] = {"train": train, "test": None, "test_size": 2, "validation_size": 2}
    with pytest.raises(UserError, match=r"task.train=.*x.jsonl: none of its 12 problems .*task.cot=natural_language"):
        GSM8K(**options).load()
    splits = GSM8K(**options, cot="natural_language").load()
    assert splits["train"].slice(0, 1)[0].cot == "3 times 2 is 6."
    out = command(
        "check_data", "task=gsm8k", f"task.train={train}", "task.test=null", "task.test_size=2", "task.validation_size=2",
        check=False,
    )  # fmt: skip
    assert out.returncode == 1, out.stderr
    assert "task.cot=natural_language" in out.stdout.strip().splitlines()[-1]


def test_more_empty_cots_than_gsm8k_has_give_a_note(tmp_path: Path) -> None:
    def notes(without: int) -> list[str]:
        rows = [row(i, "6\n#### 6" if i < without else "<<1+1=2>>2\n#### 2") for i in range(100)]
        train = str(written(tmp_path / "x.jsonl", "".join(rows).encode()))
        return list(GSM8K(train=train, test=None, test_size=2, validation_size=2).load().notes)

    assert any("8 of the 100 CoTs" in note and "task.cot=natural_language" in note for note in notes(8))
    assert not any("CoTs" in note for note in notes(2))


def test_a_wrong_cot_field_and_a_missing_step_mark_give_a_note(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "steps": "", "why": "<<1>>", "answer": 1} for i in range(20)]
    path = written(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    options: dict[str, Any] = {"train": str(path), "test_size": 2, "validation_size": 2}
    assert "20 of the 20 CoTs" in Files(**options).load().notes[0]
    assert "task.cot_field=steps" in Files(**options).load().notes[0]
    assert not any("CoT" in note for note in Files(**options, cot_field="why", step_start="<<").load().notes)
    (note,) = [note for note in Files(**options, cot_field="why", step_start="[[").load().notes if "CoT" in note]
    assert "20 of the 20 CoTs" in note
    assert "have no '[['" in note
    lines = written(tmp_path / "x.txt", as_lines([(f"q{i}", "some words", "1") for i in range(20)]))
    task = GSM8K(train=str(lines), test=None, test_size=2, validation_size=2)
    assert any("have no '<<'" in note for note in task.load().notes)


# --- joined files and other encodings


def test_joined_files_are_named_by_line(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    txt, table = b"q||s #### 1\n", HEAD + b"q,s,1\n"
    cases = {
        "x.txt": (mark + txt) * 2, "x.jsonl": (mark + FINE) * 2, "x.csv": table * 2,
        "y.csv": (mark + table) * 2, "z.csv": table + table.replace(b"question", b' "Question" '),
        "x.tsv": (table * 2).replace(b",", b"\t"),
    }  # fmt: skip
    for name, content in cases.items():
        found = read(written(tmp_path / name, content))
        at = 3 if name.endswith("sv") else 2
        assert [line.split(":")[0] for line in found.malformed] == [f"line {at}"], name
        assert ("repeats the header" in found.malformed[0]) == name.endswith("sv")
        assert ("U+FEFF" in found.malformed[0]) == (not name.endswith("sv"))
        assert {example.prompt for example in found} == {"q"}
    inside = [("q", "a\ufeffb", "1"), ("q", "s", "2")]
    for name, content in {"a.jsonl": as_jsonl(inside), "a.csv": as_csv(inside), "a.txt": as_lines(inside)}.items():
        found = read(written(tmp_path / name, content))
        assert (len(found), len(found.malformed)) == (1, 1), name
        assert "U+FEFF" in found.malformed[0]
    with pytest.raises(UserError, match="line 3 is another header .*in another order"):
        read(written(tmp_path / "o.csv", table + b"answer,question,steps\n1,q,s\n"))


def test_every_format_is_read_in_utf16_and_utf32(tmp_path: Path) -> None:
    rows: list[Any] = [("é", "s", "1"), ("r", "s", "2")]
    makers = {"txt": as_lines, "jsonl": as_jsonl, "csv": as_csv, "json": lambda rows: b"[" + as_jsonl(rows).strip().replace(b"\n", b",") + b"]"}  # fmt: skip
    for ending, make in makers.items():
        for encoding in ("utf-16", "utf-32"):
            path = written(tmp_path / f"x.{ending}", make(rows).decode().encode(encoding))
            assert (read(path), read(path).malformed) == ([Example(*row) for row in rows], [])
        path = written(tmp_path / f"y.{ending}", make(rows).decode().encode("utf-16-le"))
        with pytest.raises(UserError, match="looks like UTF-16 or UTF-32 without a byte-order mark; save it as UTF-8"):
            read(path)


def test_other_line_ends_are_read_or_named(tmp_path: Path) -> None:
    rows: list[Any] = [("q", "s", "1"), ("r", "s", "2")]
    for name, content in {"x.txt": as_lines(rows), "x.jsonl": as_jsonl(rows), "x.csv": as_csv(rows)}.items():
        found = read(written(tmp_path / name, content.replace(b"\r\n", b"\n").replace(b"\n", b"\r")))
        assert (found, found.malformed) == ([Example(*row) for row in rows], [])
    for end, name in (("\r", "a carriage return"), ("\x85", "U+0085"), ("\u2028", "U+2028")):
        for file, content in {"m.txt": as_lines(rows), "m.jsonl": as_jsonl(rows)}.items():
            found = read(written(tmp_path / file, content.decode().replace("\n", end).encode() + b"\nbad"))
            assert len(found.malformed) == 2
            assert f"{name} stands inside the line" in found.malformed[0]


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    for name, content, message in (
        ("x.jsonl", gzip.compress(FINE), "is compressed; let its name end in .gz"),
        ("x.csv", as_parquet(question=["q"]), "is Parquet; let its name end in .parquet"),
        ("y.csv", HEAD.replace(b",", b";") + b"q;s;1\n", "separated by ';': separate them by commas"),
        ("z.csv", HEAD.replace(b",", b"\t") + b"q\ts\t1\n", "let its name end in .tsv"),
        ("x.tsv", HEAD + b"q,s,1\n", "let its name end in .csv"),
    ):
        with pytest.raises(UserError, match=message):
            read(written(tmp_path / name, content))
    table = as_parquet(question=["q"], steps=["s"], answer=["1"])
    with pytest.raises(UserError, match="is several Parquet files joined end to end"):
        read(written(tmp_path / "x.parquet", table * 2))


# --- the same prompt in another form

FORMS = ["café 12", "cafe\u0301 12", "ｃａｆé １２", "caf\u00e9\u00a012", "café\u200b 12"]


def test_a_prompt_in_another_unicode_form_is_the_same_prompt(tmp_path: Path) -> None:
    assert len({normal(form) for form in FORMS}) == 1
    assert normal("ﬁnd") == normal("find")
    assert normal("Find") != normal("find")
    assert normal("5²") != normal("52")
    assert normal("1½") != normal("11⁄2")
    for form in FORMS[1:]:
        with pytest.raises(UserError, match=r"task.test: 1 of its prompts .*Unicode forms \(NFKC\); case counts"):
            three(tmp_path, f"{FORMS[0]}||s #### 1", "v||s #### 1", f"{form}||s #### 1")
    lines = [f"{form}||s #### 1" for form in FORMS] + [f"p{i}||s #### 1" for i in range(9)]
    found = read(written(tmp_path / "x.txt", "\n".join(lines).encode()))
    for size in range(1, 10):
        kept, held = hold_out(found, size, "test")
        assert sum(normal(e.prompt) == normal(FORMS[0]) for e in held) in (0, len(FORMS))
        assert len(kept) + len(held) == len(lines)
        assert not list(overlaps({"train": kept, "validation": held, "test": []}))  # type: ignore[dict-item]


# --- numbers


@pytest.mark.parametrize(
    "number", ["0.1000", "12345678901234567890123.5", "1E5", "-0", "1e-7", "100000000000000000000001"]
)
def test_json_numbers_keep_their_text(tmp_path: Path, number: str) -> None:
    line = f'{{"question": {number}, "steps": [{number}], "answer": {number}}}'
    expected = [Example(number, number, number, (0,))]
    assert read(written(tmp_path / "x.jsonl", line.encode())) == expected
    assert read(written(tmp_path / "x.json", f"[{line}]".encode())) == expected


def test_columns_of_a_table_become_their_text(tmp_path: Path) -> None:
    whole = pa.array([18.0, None, 20.0])
    cases: list[tuple[Any, list[str]]] = [
        (whole, ["18", "20"]),
        (pa.array([18.0, 0.5, 1e-7]), ["18.0", "0.5", "1e-07"]),
        (pa.array([0.1, 0.25, 3.0], pa.float32()), ["0.1", "0.25", "3.0"]),
        (pa.array([Decimal("1.50"), Decimal("-2.00"), None]), ["1.50", "-2.00"]),
        (pa.array([Decimal("0.0000001")] * 3), ["0.0000001"] * 3),
        (pa.array([datetime.date(2020, 1, 31)] * 3), ["2020-01-31"] * 3),
        (pa.array([datetime.datetime(2020, 1, 31, 5)] * 3, pa.timestamp("ns")), ["2020-01-31 05:00:00"] * 3),
        (pa.array([datetime.time(5, 6)] * 3), ["05:06:00"] * 3),
        (pa.array(["a", "b", "c"], pa.large_string()).dictionary_encode(), ["a", "b", "c"]),
        (pa.array([1.0, 2.0, 3.0]).dictionary_encode(), ["1", "2", "3"]),
        (pa.array([True] * 3), []), (pa.array([b"a"] * 3), []), (pa.array([datetime.timedelta(1)] * 3), []),
        (pa.array([1e300, 1.0, 2.0]), ["1.0", "2.0"]),
    ]  # fmt: skip
    for column, texts in cases:
        table = as_parquet(question=["q", "r", "s"], steps=[["x"]] * 3, answer=column)
        found = read(written(tmp_path / "x.parquet", table))
        assert [example.answer for example in found] == texts, column.type
        assert len(found) + len(found.malformed) == 3
        assert all("field 'answer' is " in line for line in found.malformed)
        assert len(found.notes) == (pa.types.is_floating(column.type) or column.type.equals(pa.dictionary(pa.int32(), pa.float64())))  # fmt: skip
    table = as_parquet(question=["q"], steps=[[1.0, 2.0]], answer=["1"])
    assert read(written(tmp_path / "x.parquet", table)) == [Example("q", "1 2", "1", (0, 2))]
    found = read(
        hub(tmp_path / "hub", "x.parquet", as_parquet(question=["q", "r"], steps=["s"] * 2, answer=[18.0, 19.0]))
    )
    assert [example.answer for example in found] == ["18", "19"]
    assert "18, not 18.0" in found.notes[0]


# --- equations


@pytest.mark.parametrize(
    "solution,reason",
    [
        ("3 + 4 = <<3+4=\n7>>7", "an equation goes over several lines: '<<3+4=\\\\n7>>'"),
        ("<<3+4=7 and then <<1+1=2>>", "'<<' is not closed before the next"),
        ("<<1+1=2>> and <<3", "'<<' is not closed: '<<3"),
        ("<<1+<<2>>>>", "'<<' is not closed before the next"),
        ("1+1=2>> so <<2+2=4>>", "'>>' has no '<<' before it"),
    ],
)
def test_broken_equations_are_named(tmp_path: Path, solution: str, reason: str) -> None:
    content = row(1) + row(2, f"{solution}\n#### 2") + row(3)
    for cot in ("equations", "natural_language"):
        task = GSM8K(train=str(written(tmp_path / "x.jsonl", content.encode())), test=None, test_size=1, cot=cot)
        (line,) = task.read()["train"].malformed  # type: ignore[attr-defined]
        assert line.startswith(f"line 2: {reason.replace(chr(92) * 2, chr(92))}")
    lines = f"q||<<1+1=2>> #### 2\nr||{solution.replace(chr(10), ' ')} #### 2\n".encode()
    task = GSM8K(train=str(written(tmp_path / "x.txt", lines)), test=None, test_size=1)
    assert len(task.read()["train"].malformed) == ("\n" not in solution)  # type: ignore[attr-defined]


# --- several files, packed files, arrays, quotes


def test_lists_patterns_and_packed_files_are_one_split(tmp_path: Path) -> None:
    rows: list[Any] = [(f"q{i}", "s", str(i)) for i in range(6)]
    expected = [Example(*row) for row in rows]
    written(tmp_path / "part-0.jsonl", as_jsonl(rows[:2]))
    written(tmp_path / "part-1.jsonl.gz", gzip.compress(as_jsonl(rows[2:4])))
    written(tmp_path / "part-2.csv.xz", lzma.compress(as_csv(rows[4:5])))
    written(tmp_path / "part-3.txt.bz2", bz2.compress(as_lines(rows[5:])))
    names = sorted(map(str, tmp_path.glob("part-*")))
    nothing = str(written(tmp_path / "nothing.txt", b""))

    def reading(train: Any) -> Any:
        return Files(train=train, validation=nothing, test=nothing).read()["train"]

    for train in (names, f"{tmp_path}/part-*", [f"{tmp_path}/part-[01]*", *names[2:]]):
        found = reading(train)
        assert (found, found.malformed) == (expected, [])
        assert place(found, "train", 3) == f"{names[1]} line 2"
        assert place(found, "train", 4) == f"{names[2]} line 2"
    kept, held = hold_out(reading(names), 3, "test")
    assert {place(part, "", i) for part in (kept, held) for i in range(3)} == {place(found, "", i) for i in range(6)}
    # The digest covers every file and their order; packing changes nothing.
    assert (
        len({digest(names[0]), *(Files(train=some).fingerprint()[0] for some in (names, names[::-1], names[:2]))}) == 4
    )
    unpacked = written(tmp_path / "plain.jsonl", as_jsonl(rows[2:4]))
    assert digest(unpacked) == digest(names[1])
    written(tmp_path / "part-1.jsonl.gz", gzip.compress(b"bad\n" + as_jsonl(rows[2:4])))
    assert reading(names).malformed == [f"{names[1]} line 1: not JSON (Expecting value: line 1 column 1 (char 0))"]


def test_names_that_stand_for_no_files_are_one_line(tmp_path: Path) -> None:
    path = str(written(tmp_path / "a.jsonl", FINE))
    (tmp_path / "folder").mkdir()
    (tmp_path / "b.jsonl").symlink_to(path)
    literal = str(written(tmp_path / "c[1].jsonl", FINE))
    assert read(literal)[0].prompt == "q"
    cases: list[tuple[Any, str]] = [
        (f"{tmp_path}/no-*.jsonl", "no file has such a name"), ([path, path], "names .*a.jsonl twice"),
        ([path, f"{tmp_path}/*.jsonl"], "twice"), ([], "is no file"), ([path, None], "is no file"), ([path, [path]], "is no file"),
        ("", "is no file"), (True, "is no file"), (f"{tmp_path}/folder", "is a folder"),
        ([path, f"{tmp_path}/fold*"], "is a folder"), (str(written(tmp_path / "t.jsonl.gz", gzip.compress(FINE)[:-9])), "cannot be unpacked"),
    ]  # fmt: skip
    for name, message in cases:
        with pytest.raises(UserError, match=rf"^task.train=.*{message}") as error:
            Files(train=name, test_size=1).load()
        assert "\n" not in str(error.value)


def test_a_json_file_holds_one_array_or_json_lines(shared_data: Path, tmp_path: Path) -> None:
    records = [{"question": f"q{i}", "steps": ["s"], "answer": str(i)} for i in range(3)]
    expected = [Example(f"q{i}", "s", str(i), (0,)) for i in range(3)]
    for text in (json.dumps(records), json.dumps(records, indent=2), " \n" + json.dumps(records) + "\n"):
        found = read(written(tmp_path / "x.json", text.encode()))
        assert (found, found.unit, found.numbers) == (expected, "item", [1, 2, 3])
    mixed = '[{"question": "q", "steps": [], "answer": 1}, 3, {"question": "r", "question": "r"}, {"steps": "s"}]'
    assert [line.split(":")[0] for line in read(written(tmp_path / "x.json", mixed.encode())).malformed] == ["item 2", "item 3", "item 4"]  # fmt: skip
    for text in (
        "[" + FINE.decode(),
        json.dumps(records)[:-1] + ",]",
        json.dumps(records, indent=1) + "x",
        "[" * 99_999,
    ):
        with pytest.raises(UserError, match=r"x.json: line \d+: not JSON"):
            read(written(tmp_path / "x.json", text.encode()))
    coconut = read(shared_data / "prosqa" / "prosqa_valid.json")
    assert (len(coconut), coconut.malformed) == (300, [])


def test_quotes_are_characters_if_asked_for(tmp_path: Path) -> None:
    table = HEAD.replace(b",", b"\t") + b'"Yes" is\ts\t1\n"No\ts\t2\nso "it" is"\t"s\t3\n'
    path = written(tmp_path / "x.tsv", table)
    assert [example.prompt for example in read(path, quoting="none")] == ['"Yes" is', '"No', 'so "it" is"']
    assert any("task.quoting=none" in line for line in read(path).malformed)
    swallowed = HEAD.replace(b",", b"\t") + b'"No\ts\t1\nr\tx"\ts\t2\n'
    assert "task.quoting=none" in read(written(tmp_path / "y.tsv", swallowed)).notes[0]
    with pytest.raises(UserError, match="task.quoting=no: must be one of quotes, none"):
        Files(quoting="no")


def test_a_typed_backslash_n_begins_a_step_at_each_line(tmp_path: Path) -> None:
    rows: list[Any] = [("q", "one\ntwo\n\nthree", "1"), ("r", r"\times\none", "1")]
    path = written(tmp_path / "x.jsonl", as_jsonl(rows))
    found = read(path, step_start=r"\n")
    assert [example.steps for example in found] == [(0, 3, 7), (0, 6)]
    assert read(path, step_start="\n")[0].steps == (0, 3, 7)


# --- paths of a run


SHORT = (
    "schedule=no_cot", "model.layers=1", "model.heads=2", "model.width=16", "data.batch_size=8", "trainer.duration=2steps",
    "data.cache_dir=null", "schedule.rewarmup_steps=1",
)  # fmt: skip


@pytest.mark.long
def test_a_run_finds_its_data_and_tokenizer_from_elsewhere_and_after_a_move(tmp_path: Path) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "data", elsewhere / "data"):
        folder.mkdir(parents=True)
    for name, numbers in (("a", range(20)), ("b", range(20, 40))):
        written(project / "data" / f"{name}.jsonl", as_jsonl([(f"{i % 10} {i // 10}", "1", "2") for i in numbers]))
    written(project / "test.txt", b"".join(b"1 1 %d||1 #### 2\n" % i for i in range(10)))
    # Another file has the same name.
    written(elsewhere / "test.txt", b"7||1 #### 2\n")
    command(
        "train", "task=file", "task.train=[data/a.jsonl,data/b.jsonl]", "task.validation_size=4", f"task.test={project}/test.txt",
        *SHORT, "run_dir=runs/x", cwd=project,
    )  # fmt: skip
    evaluated = command("evaluate", f"run={project}/runs/x", "speed_problems=0", cwd=elsewhere)
    assert "n=10" in evaluated.stdout
    resumed = command("train", f"run_dir={project}/runs/x", "resume=true", "trainer.duration=3steps", cwd=elsewhere)
    assert "resuming at step 2" in resumed.stderr
    several = command("evaluate", f"run={project}/runs/x", f"file=[{project}/test.txt,{elsewhere}/test.txt]", "speed_problems=0")  # fmt: skip
    assert "n=11" in several.stdout

    moved = tmp_path / "moved"
    shutil.move(project, moved)
    assert "n=10" in command("evaluate", f"run={moved}/runs/x", "speed_problems=0", cwd=elsewhere).stdout
    exported = command("export", f"run={moved}/runs/x", cwd=elsewhere)
    assert "cannot be read" not in exported.stdout
    (moved / "runs" / "x" / "environment.json").unlink()
    assert "n=10" in command("evaluate", f"run={moved}/runs/x", "speed_problems=0", cwd=elsewhere).stdout

    shutil.move(moved / "data", tmp_path / "gone")
    out = command("evaluate", f"run={moved}/runs/x", cwd=elsewhere, check=False)
    (line,) = [line for line in out.stderr.splitlines() if line.startswith("error: ")]
    assert "data/a.jsonl" in line
    assert str(moved) in line
    assert "file=<file>" in line
    out = command("evaluate", f"run={moved}/runs/x", f"file={moved}/test.txt", "speed_problems=0", cwd=elsewhere)
    assert "n=10" in out.stdout


def test_the_data_that_a_run_was_trained_on_is_preferred_to_a_file_of_the_same_name(tmp_path: Path) -> None:
    from stepwise_pl.tasks.file_task import DataSearch

    run = tmp_path / "moved" / "runs" / "x"
    for folder, prompt in (("start", "a"), ("moved", "b"), ("moved/data", "c")):
        hub(tmp_path / folder / "set", "x.jsonl", as_jsonl([(prompt, "s", "1")]))
        written(tmp_path / folder / "x.txt", f"{prompt}||s #### 1".encode())
    run.mkdir(parents=True)
    for name, other in (
        ("x.txt", str(tmp_path / "moved" / "x.txt")),
        ("hub:set:train", f"hub:{tmp_path}/moved/set:train"),
    ):
        wanted = [digest(other)] * 3

        def found(starts: list[Path], digests: list[str] | None, name: str = name) -> str:
            task = Files(train=name, validation=name, test=name, allow_overlap=True)
            task.look_in(DataSearch(run, starts, digests))
            return task.load()["train"].slice(0, 1)[0].prompt

        start = tmp_path / "start"
        assert found([start], wanted) == "b"
        assert found([start], None) == "a"  # the run kept no digests
        assert (
            found([start], ["changed"] * 3) == "a"
        )  # no place has the data of the run, so the first is taken; the caller compares digests
        assert found([tmp_path / "gone"], wanted) == "b"
        with pytest.raises(UserError, match="cannot be loaded" if "hub" in name else "looked in"):
            found([], None, name.replace("x.txt", "no.txt").replace("set", "no/such/set"))


def test_a_resumed_run_finds_its_tokenizer_from_elsewhere(tmp_path: Path, tokenizer) -> None:
    tokenizer.save_pretrained(tmp_path / "tokens")
    written(tmp_path / "a.txt", as_lines([(f"{i % 10} * {i // 10}", "1", "2") for i in range(40)]))
    options = ("task.train=a.txt", "task.validation_size=4", "task.test_size=4", "model.tokenizer=tokens")
    command("train", "task=file", *options, *SHORT, "run_dir=x", cwd=tmp_path)
    out = command("train", f"run_dir={tmp_path}/x", "resume=true", "trainer.duration=3steps")
    assert "resuming at step 2" in out.stderr


def test_answers_that_differ_in_a_comma_are_not_right(tmp_path: Path) -> None:
    for name, answer in (("train", b"12"), ("validation", b"1,2"), ("test", b"1,2")):
        # The tokenizer takes its words from the training set.
        more = b"1,2||1 #### 12\n" if name == "train" else b""
        written(tmp_path / f"{name}.txt", more + b"".join(b"%d||1 #### %s\n" % (i % 10, answer) for i in range(40)))
    files = [f"task.{name}={tmp_path}/{name}.txt" for name in SPLITS]
    command(
        "train", "task=file", *files, "task.allow_overlap=true", *SHORT, "trainer.duration=30steps", "optimizer.lr=1e-2",
        f"run_dir={tmp_path}/x",
    )  # fmt: skip
    for file, accuracy in (("test", 0.0), ("train", 1.0)):
        command("evaluate", f"run={tmp_path}/x", f"file={tmp_path}/{file}.txt", "speed_problems=0")
        (found,) = (tmp_path / "x" / "evaluations").glob(f"*file-{file}-*.json")
        assert json.loads(found.read_text())["answer_accuracy"] == accuracy


def test_lines_of_a_text_are_steps_to_remove(tmp_path: Path) -> None:
    rows: list[Any] = [(f"{i % 10} + {i // 10}", f"{i % 10}\n1\n{i // 10}", "3") for i in range(40)]
    path = written(tmp_path / "a.jsonl", as_jsonl(rows))
    out = command(
        "train", "task=file", f"task.train={path}", "task.validation_size=4", "task.test_size=4", r"task.step_start='\n'",
        *(option for option in SHORT if option != "schedule=no_cot"), "method.unit=step", "schedule.delta=1",
        f"run_dir={tmp_path}/x",
    )  # fmt: skip
    assert "test accuracy" in out.stdout


def test_with_splits_takes_a_list(tmp_path: Path) -> None:
    names = [str(written(tmp_path / f"{i}.txt", b"q%d||s #### 1\n" % i)) for i in range(2)]
    assert len(with_splits(tmp_path, names).load()["train"]) == 2  # type: ignore[arg-type]
    assert everything(with_splits(tmp_path, names[0]).load(), "train") == [Example("q0", "s", "1")]


def test_times_of_day_keep_their_nanoseconds(tmp_path: Path) -> None:
    times = pa.array([1_000_001, 5], pa.time64("ns"))
    steps = pa.array([[1_000_001], [5, 7]], pa.list_(pa.time64("ns")))
    path = tmp_path / "times.parquet"
    pq.write_table(pa.table({"question": ["a", "b"], "steps": steps, "answer": times}), path)
    first, second = Files(train=str(path), validation=str(path), test=str(path)).read()["train"]
    assert (first.cot, first.answer) == ("00:00:00.001000001", "00:00:00.001000001")
    assert (second.cot, second.answer) == ("00:00:00.000000005 00:00:00.000000007", "00:00:00.000000005")


@pytest.mark.parametrize(
    "name,text,said",
    [
        ("a.jsonl", '{\n  "question": "1"\n}\n{\n  "question": "2"\n}\n', "line 1: not JSON on one line"),
        ("a.json", '{"question": "1",\n "steps": [], "answer": "1"}', "line 1: not JSON on one line"),
        (
            "a.json",
            '{\n "data": [{"question": "1"}]\n}',
            "line 1: not JSON Lines but one object, which has the examples under 'data'",
        ),
        ("a.json", '[\n{"question": "1"}\n]\n[\n{"question": "2"}\n]\n', "give them as a list instead"),
    ],
)
def test_json_that_is_laid_out_otherwise_is_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    source = str(tmp_path / name)
    with pytest.raises(UserError, match=said) as refused:
        Files(train=source, validation=source, test=source).load()
    assert "\n" not in str(refused.value)
