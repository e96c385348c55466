"""GSM8K: the original answers become the line files of the paper's authors, and the test set does not change."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks import GSM8K, SPLITS, Example, Splits
from stepwise_pl.tasks.prompts import normal
from tests.conftest import command
from tests.tasks.test_reading import as_csv, as_parquet, hub, offline, written

__all__ = ["offline"]


def everything(splits: Splits, *names: str) -> list[Example]:
    return [example for name in names for example in splits[name].slice(0, len(splits[name]))]


def originals(folder: Path, validation: str, cot: str = "equations") -> Splits:
    """All 7,473 original problems as train and test, and a line file as validation."""
    gsm8k = folder / "gsm8k"
    return GSM8K(
        train=str(gsm8k / "openai_train.jsonl"), validation=str(gsm8k / validation), test=None, test_size=500, cot=cot,
        allow_overlap=True,
    ).load()  # fmt: skip


def raw(folder: Path) -> dict[str, str]:
    """Return the original answers by question."""
    lines = (folder / "gsm8k" / "openai_train.jsonl").read_text(encoding="utf-8").splitlines()
    return {normal((row := json.loads(line))["question"]): row["answer"] for line in lines}


def equations(solution: str) -> list[str]:
    """Return the parts between << and >>, without regular expressions."""
    out = []
    while "<<" in solution:
        inside, _, solution = solution.split("<<", 1)[1].partition(">>")
        out.append(f"<<{inside}>>")
    return out


def test_all_500_validation_lines_come_out_as_the_authors_have_them(shared_data: Path) -> None:
    splits = originals(shared_data, "icot_valid.txt")
    converted = {normal(example.prompt): example for example in everything(splits, "train", "test")}
    lines = everything(splits, "validation")
    assert len(converted) == 7473
    assert len(lines) == 500
    for line in lines:
        assert converted[normal(line.prompt)][1:] == line[1:]  # CoT, answer and where its steps begin


def test_all_original_answers_against_an_independent_conversion(shared_data: Path) -> None:
    solutions = raw(shared_data)
    examples = everything(originals(shared_data, "icot_valid.txt"), "train", "test")
    assert len(examples) == len(solutions) == 7473
    assert sum(not example.cot for example in examples) == 95
    for example in examples:
        solution, answer = solutions[normal(example.prompt)].split("####")
        steps = equations(solution)
        assert (example.cot, example.answer) == (" ".join(steps), answer.strip().replace(",", ""))
        assert [i for i in range(len(example.cot)) if example.cot.startswith("<<", i)] == list(example.steps)
        assert len(example.steps) == len(steps)


def test_natural_language_is_the_same_as_the_authors_have(shared_data: Path) -> None:
    splits = originals(shared_data, "icot_train_natural_language.txt", cot="natural_language")
    examples = everything(splits, "train", "test")
    converted = {normal(example.prompt): example for example in examples}
    lines = everything(splits, "validation")
    found = [(converted[normal(line.prompt)], line) for line in lines if normal(line.prompt) in converted]
    assert len(lines) == len(found) == 6973
    for example, line in found:
        assert (normal(example.cot), example.answer) == (normal(line.cot), line.answer)
    solutions = raw(shared_data)
    for example in examples:
        lines_of = solutions[normal(example.prompt)].split("####")[0].strip().split("\n")
        assert "<<" not in example.cot
        assert len(example.steps) == sum(bool(line.strip()) for line in lines_of)


digits = st.text("0123456789+-*/=. $%\n", max_size=6)
inside = st.text("0123456789+-*/=.<>", max_size=6).filter(lambda text: "<<" not in text and ">" not in text)


@given(st.lists(st.tuples(digits, inside.filter(lambda text: not text.startswith("<"))), max_size=4), digits)
@settings(max_examples=200, deadline=None)
def test_any_solution_is_converted(pieces: list[tuple[str, str]], end: str) -> None:
    solution = "".join(f"{text}<<{equation}>>" for text, equation in pieces) + end
    row = {"question": " q ", "answer": f"{solution}\n#### 1,000 "}
    example = GSM8K().example(row)
    steps = [f"<<{equation}>>" for _, equation in pieces]
    assert example == Example.of_steps("q", steps, "1000")
    sentences = GSM8K(cot="natural_language").example(row)
    text = "".join(text for text, _ in pieces) + end
    assert sentences.cot.split() == text.split()
    assert len(sentences.steps) == sum(bool(line.strip()) for line in text.split("\n"))


def test_the_example_of_the_docstring() -> None:
    answer = "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"
    row = {"question": "Janet?", "answer": answer}
    assert GSM8K().example(row) == Example("Janet?", "<<16-3-4=9>> <<9*2=18>>", "18", (0, 13))
    assert GSM8K(cot="natural_language").example(row) == Example(
        "Janet?", "Janet sells 16 - 3 - 4 = 9 duck eggs a day. She makes 9 * 2 = $18.", "18", (0, 44)
    )
    with pytest.raises(UserError, match="task.cot=words: must be one of equations, natural_language"):
        GSM8K(cot="words")


def row(i: int, answer: str = "<<1+1=2>>2\n#### 2") -> str:
    return json.dumps({"question": f"q{i}", "answer": answer}) + "\n"


def test_line_files_pass_as_they_are_but_for_separators_of_thousands(tmp_path: Path) -> None:
    lines = (
        b"q1||<<1+1=2>> <<2*3=6>> #### 6\nq2||Sentences. <<1+1=2>> #### 1,000\nq3|| #### 5\nq4||No equation. #### 4\n"
    )
    train = str(written(tmp_path / "x.txt", lines))
    valid, test = (str(written(tmp_path / f"{name}.txt", f"{name}||s #### 1".encode())) for name in "vt")
    examples = everything(GSM8K(train=train, validation=valid, test=test).load(), "train")
    assert [example.line() for example in examples] == lines.decode().replace("1,000", "1000").splitlines()
    assert [example.steps for example in examples] == [(0, 10), (0, 11), (), ()]
    words = everything(GSM8K(train=train, validation=valid, test=test, cot="natural_language").load(), "train")
    assert [example[:3] for example in words] == [example[:3] for example in examples]


@pytest.mark.parametrize(
    "line,reason",
    [
        (row(2, "<<1+1=2>>2"), "no '####' before the answer"),
        (row(2, "#### 2 #### 3"), "'####' occurs more than once"),
        (row(2, "<<1+1=2>>2\n####  "), "the answer is empty"),
        (row(2, "a<eos>b #### 2").replace("a<eos>b", "<<<eos>>>"), "the end token '<eos>' occurs in the text"),
        ('{"question": "q2"}\n', "no field 'answer'; it has: question"),
        ('{"question": "q2", "answer": 2}\n', "no '####' before the answer"),
        ('{"question": "q2", "answer": null}\n', "field 'answer' is null, not text"),
        ('{"question": ["q2"], "answer": "#### 2"}\n', "field 'question' is list, not text"),
        ('{"question": "", "answer": "#### 2"}\n', "the prompt is empty"),
        ("q2||<<1+1=2>> #### 2\n", "not JSON"),
    ],
)
def test_malformed_originals_are_named(tmp_path: Path, line: str, reason: str) -> None:
    train = written(tmp_path / "x.jsonl", "".join([row(1), line, *map(row, range(3, 9))]).encode())
    with pytest.raises(UserError) as error:
        GSM8K(train=str(train), validation_size=1, test=None, test_size=1).load(("<eos>",))
    message = str(error.value)
    assert message.startswith(f"task.train={train}: 1 malformed line")
    assert f"line 2: {reason}" in message


def test_original_tables_need_two_columns(tmp_path: Path) -> None:
    answer = "<<1+1=2>>2\n#### 2"
    parquet = as_parquet(question=["q1"], answer=[answer])
    table = as_csv([("q2", "not read", answer)])
    files = [written(tmp_path / f"{i}{ending}", content) for i, (ending, content) in enumerate(
        [(".parquet", parquet), (".csv", table), (".tsv", as_csv([("q3", "", answer)], "\t"))]
    )]  # fmt: skip
    train, validation, test = map(str, files)
    splits = GSM8K(train=train, validation=validation, test=test).load()
    assert everything(splits, *SPLITS) == [Example(f"q{i}", "<<1+1=2>>", "2", (0,)) for i in (1, 2, 3)]


def test_the_test_set_is_exactly_what_is_given(tmp_path: Path) -> None:
    train = written(tmp_path / "train.jsonl", "".join(map(row, range(100))).encode())
    name = hub(tmp_path / "data", "test.jsonl", "".join(map(row, range(200, 230))).encode()).replace(":train", ":test")
    for test in (name, str(tmp_path / "data" / "test.jsonl")):
        for size in (10, 40):
            splits = GSM8K(
                train=str(train), test=test, validation_size=size, test_size=5
            ).load()  # test_size is not used
            assert [example.prompt for example in everything(splits, "test")] == [f"q{i}" for i in range(200, 230)]
            mine = [example.prompt for example in everything(splits, "train", "validation")]
            assert sorted(mine) == sorted(f"q{i}" for i in range(100))
            assert len(splits["validation"]) == size


def test_the_default_is_the_hub_and_no_network_is_one_line(tmp_path: Path) -> None:
    task = GSM8K()
    assert (task.train, task.validation, task.test) == (
        "hub:openai/gsm8k:main:train",
        None,
        "hub:openai/gsm8k:main:test",
    )
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_CACHE": str(tmp_path / "hf" / "d")}
    out = command("train", "task=gsm8k", f"run_dir={tmp_path / 'run'}", check=False, **home)
    assert out.returncode == 2, out.stderr
    assert "Traceback" not in out.stderr
    last = out.stderr.strip().splitlines()[-1]
    assert last.startswith("error: task.train=hub:openai/gsm8k:main:train: cannot be loaded (")
    assert last.endswith("without network give files: task.train=<file>, and so on")
    assert out.stderr.count("error: ") == 1
