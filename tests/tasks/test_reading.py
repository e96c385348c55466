"""Every format gives the same examples, with the right line or row numbers."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks import Example, ExampleList, Files
from stepwise_pl.tasks.base import parse_line, write_lines
from stepwise_pl.tasks.reading import READERS, Source

COLUMNS = ("question", "steps", "answer")
Row = tuple[str, Any, str]  # prompt; CoT as one text or a list of steps; answer


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cut the `datasets` library off from the network, and give it an empty cache."""
    home = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"HF_HOME": home, "HF_DATASETS_CACHE": home / "datasets", "HF_HUB_OFFLINE": 1}.items():
            patch.setenv(key, str(value))
        import datasets
        import huggingface_hub

        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home / "datasets"))
        patch.setattr(datasets.config, "HF_MODULES_CACHE", str(home / "modules"))
        patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(home / "downloads"))
        yield


def as_lines(rows: list[Row]) -> bytes:
    return "".join(f"{prompt}||{cot} #### {answer}\n" for prompt, cot, answer in rows).encode()


def as_jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows).encode()


def as_csv(rows: list[Row], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=quoting).writerows([COLUMNS, *rows])  # type: ignore[arg-type]
    return out.getvalue().encode()


def as_parquet(row_group_size: int | None = None, **columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=row_group_size)
    return out.getvalue()


def rows_as_parquet(rows: list[Row], row_group_size: int | None = None) -> bytes:
    text = pa.string()
    cot = pa.list_(text) if rows and isinstance(rows[0][1], list) else text
    columns = {name: pa.array([row[i] for row in rows], cot if i == 1 else text) for i, name in enumerate(COLUMNS)}
    return as_parquet(row_group_size, **columns)


def read(name: str | Path, **options: Any) -> ExampleList:
    """Return the examples of one file, with its malformed lines."""
    with TemporaryDirectory() as folder:
        nothing = str(written(Path(folder) / "nothing.txt", b""))
        found = Files(train=str(name), validation=nothing, test=nothing, **options).read(("<eos>",))["train"]
    assert isinstance(found, ExampleList)
    return found


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def hub(folder: Path, name: str, content: bytes) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    written(folder / name, content)
    return f"hub:{folder}:train"


special = st.sampled_from(list(" ,;\"'\t\\|#<>{}[]é中🙂\u00a0\u2028\u0085\x0b\x0c\x1c\x00"))
# A byte-order mark inside a text is malformed.
one_line = st.text(special | st.characters(exclude_categories=["Cs"], exclude_characters="\n\ufeff"), max_size=12)
any_text = st.text(
    special | st.sampled_from("\n\r") | st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"),
    max_size=12,
)


def clean(text: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return text.map(str.strip).filter(lambda part: "<eos>" not in part)  # Hypothesis takes this literal from the file


def rows_of(text: st.SearchStrategy[str], cot: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[list[Row]]:
    """Return valid rows: stripped, with a prompt and an answer."""
    needed = clean(text).filter(bool)
    return st.lists(st.tuples(needed, clean(text) if cot is None else cot, needed), min_size=1, max_size=5)


def fits_a_line(rows: list[Row]) -> bool:
    bars = all("||" not in part for row in rows for part in row) and not any(row[0].endswith("|") for row in rows)
    marks = any("####" in part for _, *parts in rows for part in parts)
    return bars and not marks and not any("\n" in part for row in rows for part in row)


@given(rows_of(any_text) | rows_of(one_line), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
@settings(max_examples=100, deadline=None)
def test_every_format_gives_the_same_examples(tmp_path_factory, rows: list[Row], quoting: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    contents = {
        "a.jsonl": as_jsonl(rows), "a.json": as_jsonl(rows), "a.NDJSON": as_jsonl(rows), "a.csv": as_csv(rows, ",", quoting),
        "a.tsv": as_csv(rows, "\t", quoting), "a.parquet": rows_as_parquet(rows, 2),
    }  # fmt: skip
    if fits_a_line(rows):
        contents["a.txt"] = as_lines(rows)
    for name, content in contents.items():
        found = read(written(folder / name, content))
        assert found.malformed == []
        assert found == [Example(*row) for row in rows], name
        if found.unit == "row" or name.lower().endswith(("json", "jsonl", "txt")):
            assert found.numbers == list(range(1, len(rows) + 1))


steps = st.lists(clean(any_text).filter(bool), max_size=4)


@given(rows_of(any_text, steps))
@settings(max_examples=60, deadline=None)
def test_lists_of_steps_keep_their_offsets(tmp_path_factory, rows: list[Row]) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name, content in {"s.jsonl": as_jsonl(rows), "s.parquet": rows_as_parquet(rows)}.items():
        found = read(written(folder / name, content))
        assert found == [Example.of_steps(*row) for row in rows]
        for (_, cot, _), example in zip(rows, found, strict=True):
            ends = [*(begin - 1 for begin in example.steps[1:]), len(example.cot)]
            pieces = [example.cot[a:b] for a, b in zip(example.steps, ends, strict=False)]
            assert (pieces, len(example.steps)) == (cot, len(cot))


def test_the_hub_reader_gives_the_same_examples(tmp_path: Path) -> None:
    rows: list[Row] = [(f"q {i}, “{i}”\n", [f"a {i}", "é"][: i % 3], str(i)) for i in range(2500)]  # several batches
    expected = [Example.of_steps(prompt.strip(), cot, answer) for prompt, cot, answer in rows]
    for name, content in {"train.jsonl": as_jsonl(rows), "train.parquet": rows_as_parquet(rows)}.items():
        found = read(hub(tmp_path / name, name, content))
        assert (found, found.malformed) == (expected, [])
        assert (found.unit, found.numbers) == ("row", list(range(1, 2501)))


def test_a_hub_subset_and_a_malformed_row(tmp_path: Path) -> None:
    hub(tmp_path, "x.jsonl", as_jsonl([("a", "b", "c"), ("", "b", "c"), ("d", "", "<eos>")]))
    config = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: x.jsonl\n---\n"
    (tmp_path / "README.md").write_text(config)
    found = read(f"hub:{tmp_path}:main:train")
    assert found == [Example("a", "b", "c")]
    assert found.malformed == ["row 2: the prompt is empty", "row 3: the end token '<eos>' occurs in the text"]
    with pytest.raises(UserError, match=r"task.train=hub:.*:other:train: cannot be loaded \(.*task.train=<file>"):
        read(f"hub:{tmp_path}:other:train")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_blank_lines_marks_and_line_ends(tmp_path: Path, end: str, mark: str) -> None:
    record = {
        "txt": "a||b #### {}", "jsonl": '{{"question": "a", "steps": "b", "answer": "{}"}}', "csv": "a,b,{}", "tsv": "a\tb\t{}",
    }  # fmt: skip
    for ending, row in record.items():
        head = {"csv": ["question,steps,answer"], "tsv": ["question\tsteps\tanswer"]}.get(ending, [])
        bad = row.format("")
        lines = [*head, row.format(1), "", row.format(2), "", "", bad, row.format(3)]
        found = read(written(tmp_path / f"x.{ending}", (mark + end.join(lines)).encode()))
        first = len(head) + 1
        assert found == [Example("a", "b", str(i)) for i in (1, 2, 3)]
        assert found.numbers == [first, first + 2, first + 6], ending
        assert [line.split(":")[0] for line in found.malformed] == [f"line {first + 5}"]


def test_quoted_line_breaks_do_not_shift_line_numbers(tmp_path: Path) -> None:
    text = 'question,steps,answer\n"a\nb\n\nc",x,1\nd,y,\n"e\r\nf",z,3\n\n"g",w\nh,"v\n",5\n'
    found = read(written(tmp_path / "x.csv", text.encode()))
    assert [(n, e.prompt, e.answer) for n, e in zip(found.numbers, found, strict=True)] == [
        (2, "a\nb\n\nc", "1"), (7, "e\r\nf", "3"), (11, "h", "5"),
    ]  # fmt: skip
    assert found.malformed == ["line 6: the answer is empty", "line 10: 2 fields where the header has 3"]
    text = 'question,steps,answer\n"a\nb\nc"d,x,1\ne,y,2\n'
    found = read(written(tmp_path / "x.csv", text.encode()))
    assert found.numbers == [5]
    assert [line.split()[1] for line in found.malformed] == [
        "2:",
        "3:",
        "4:",
    ]  # the lines behind the open quote count too


def test_row_numbers_go_on_over_batches_and_row_groups(tmp_path: Path) -> None:
    answers = [str(i) for i in range(70_000)]
    answers[66_999] = " "
    columns = {"question": ["q"] * 70_000, "steps": [None] * 70_000, "answer": answers}
    found = read(written(tmp_path / "x.parquet", as_parquet(1000, **columns)))
    assert found.malformed == ["row 67000: the answer is empty"]
    assert found.numbers == [*range(1, 67_000), *range(67_001, 70_001)]


def test_numbers_become_text_and_other_columns_are_not_read(tmp_path: Path) -> None:
    line = '{"id": [1], "question": 2, "steps": ["a", 3], "answer": -0.5, "more": {"answer": 4}}'
    assert read(written(tmp_path / "x.jsonl", line.encode())) == [Example("2", "a 3", "-0.5", (0, 2))]
    table = as_parquet(more=[b"\xff"], answer=[7], steps=["s"], question=pa.array(["q"]).dictionary_encode())
    assert read(written(tmp_path / "x.parquet", table)) == [Example("q", "s", "7")]
    content = "answer;steps,more,answer, question,steps\n-,x,4,q,s\n"
    assert read(written(tmp_path / "x.csv", content.encode())) == [Example("q", "s", "4")]
    fields = {"prompt_field": "in", "cot_field": "why", "answer_field": "out"}
    table = as_parquet(**{"in": ["q"], "why": [["s", "t"]], "out": ["a"]})
    assert read(written(tmp_path / "y.parquet", table), **fields) == [Example("q", "s t", "a", (0, 2))]


def digest(name: str | Path) -> str:
    return Source(str(name), "task.train", dict.fromkeys(COLUMNS, "")).digest()


def test_the_digest_changes_with_the_content(tmp_path: Path) -> None:
    one: list[Row] = [("a", "b", "1"), ("c", "d", "2")]
    other: list[Row] = [("a", "b", "1"), ("c", "e", "2")]
    makers = {"txt": as_lines, "jsonl": as_jsonl, "csv": as_csv, "tsv": as_csv, "parquet": rows_as_parquet}
    for ending, make in makers.items():
        path = tmp_path / f"x.{ending}"
        seen = [digest(written(path, make(rows))) for rows in (one, other, one[::-1], one)]  # type: ignore[operator]
        assert len(set(seen)) == 3
        assert seen[0] == seen[3]


@pytest.mark.parametrize("subset", [False, True])
def test_a_folder_that_changes_is_read_again(tmp_path: Path, subset: bool) -> None:
    if subset:  # most data sets on the Hub list their files so
        config = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: x.jsonl\n---\n"
        (tmp_path / "README.md").write_text(config)
    seen = []
    for prompt in ("a", "b"):
        name = hub(tmp_path, "x.jsonl", as_jsonl([(prompt, "b", "1")]))
        seen.append((read(name)[0].prompt, digest(name)))
    assert [prompt for prompt, _ in seen] == ["a", "b"]
    assert seen[0][1] != seen[1][1]


piped = st.text("a |#\n\r", max_size=5).map(str.strip)


@given(st.lists(st.tuples(piped.filter(bool), piped, piped.filter(bool)), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_written_lines_read_back_or_are_refused(tmp_path_factory, rows: list[tuple[str, str, str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.txt"
    examples = ExampleList(Example(*row) for row in rows)
    try:
        write_lines(examples, path)
    except UserError:
        return
    assert read(path) == examples


def test_parts_of_a_line_are_stripped() -> None:
    assert parse_line(" 1 + 1 \t|| 2####\t2\r") == Example("1 + 1", "2", "2")
    assert parse_line("who?||#### me") == Example("who?", "", "me")


def test_every_reader_is_tested_here() -> None:
    assert set(READERS) == {"txt", "jsonl", "json", "ndjson", "csv", "tsv", "parquet", "hub"}
