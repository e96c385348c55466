"""`harness`: the problems of a run as a task of lm-evaluation-harness."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from stepwise_pl.common.errors import UserError
from stepwise_pl.evaluate import EvaluateConfig, evaluate
from stepwise_pl.evaluation.harness import ANSWER, LOADER, PROBLEMS
from stepwise_pl.harness import HarnessConfig, harness
from stepwise_pl.models.export import write_model
from stepwise_pl.runs.predictions import Prediction, read_predictions
from tests.conftest import OFFLINE, SMALL, command
from tests.environments import EXTRAS, environment


class _Loader(yaml.SafeLoader):
    """Reads `!function` as its text."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_problems_are_those_of_the_split_and_an_exported_model_reads_them(kept_run: Path, tmp_path: Path) -> None:
    out = harness(HarnessConfig(run=str(kept_run), out=str(tmp_path / "task"), checkpoint="removed-2"))
    task = yaml.load((out / "stepwise_pl_multiplication.yaml").read_text(), _Loader)
    assert task["task"] == "stepwise_pl_multiplication" and task["custom_dataset"] == "problems.load"
    space = {"__file__": str(out / "problems.py")}
    exec((out / "problems.py").read_text(), space)
    (split,) = space["load"]().items()  # type: ignore[operator]
    documents = list(split[1])
    write_model(kept_run, "removed-2", tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    shown = re.search(r"tokenizer\('(.*)', return", (tmp_path / "exported" / "README.md").read_text())
    assert shown and documents[0]["prompt"] == shown[1]
    for document in documents:
        one, other = re.fullmatch(r" (\d) \* (\d) <eos><eos>", document["prompt"]).groups()  # type: ignore[union-attr]
        assert int(document["answer"].replace(" ", "")[::-1]) == int(one) * int(other)
        assert tokenizer.unk_token_id not in tokenizer(document["prompt"])["input_ids"]
    assert split[0] == task["test_split"] and len(documents) == 17
    assert task["generation_kwargs"]["until"] == [tokenizer.eos_token]
    assert task["filter_list"][0]["filter"][0]["regex_pattern"] == ANSWER


@given(st.text().filter(lambda text: "####" not in text))
def test_the_answer_stands_behind_the_first_mark(text: str) -> None:
    assert re.findall(ANSWER, f"written before #### {text}")[0].strip() == text.strip()


def test_a_limit_and_a_name_are_kept(kept_run: Path, tmp_path: Path) -> None:
    words = {"split": "train", "limit": 5, "name": "digits"}
    out = harness(HarnessConfig(run=str(kept_run), out=str(tmp_path / "task"), checkpoint="last", **words))  # type: ignore[arg-type]
    assert yaml.load((out / "digits.yaml").read_text(), _Loader)["task"] == "digits"
    assert len((out / "problems.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("name", ["1.5", "007", "no", "null", "2024-01-01", "1e5"])
def test_a_name_that_yaml_would_read_as_something_else_is_a_text(kept_run: Path, tmp_path: Path, name: str) -> None:
    out = harness(HarnessConfig(run=str(kept_run), out=str(tmp_path), checkpoint="removed-2", limit=1, name=name))
    assert yaml.load((out / f"{name}.yaml").read_text(), _Loader)["task"] == name


def test_the_function_reads_a_problem_with_any_mark_for_the_end_of_a_line(tmp_path: Path) -> None:
    problem = {"prompt": "one\u2028two\x85three\x0bfour\rfive\nsix", "answer": "7"}
    (tmp_path / PROBLEMS).write_text(f"{json.dumps(problem, ensure_ascii=False)}\n" * 2, encoding="utf-8")
    space = {"__file__": str(tmp_path / "problems.py")}
    exec(LOADER, space)
    assert list(space["load"]()["test"]) == [problem, problem]  # type: ignore[operator]


def test_what_cannot_be_scored_is_refused(kept_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="removed-1.ckpt writes CoT, 1 of 2 tokens are gone; lm-evaluation-harness stops at the first"
    ):
        harness(HarnessConfig(run=str(kept_run), out=str(tmp_path / "task"), checkpoint="removed-1"))
    assert not (tmp_path / "task").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty; choose another folder"):
        harness(HarnessConfig(run=str(kept_run), out=str(tmp_path / "full")))
    for words, message in (
        ({"out": ""}, "out is not set"), ({"name": "a,b"}, "name=a,b: may hold letters"), ({"limit": 0}, "must be positive"),
        ({"split": "easy"}, "split=easy"), ({"run": "nowhere"}, "nowhere"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            HarnessConfig(**{"run": str(kept_run), "out": "task", **words})  # type: ignore[arg-type]


def sayings(path: Path) -> None:
    """Write problems of free text, with answers of several words and a comma."""
    answers = ("1,000 red apples", "no", "42", "it's 3.5 kg")
    texts = [f"Sam asks for {number}: {'abcd'[number % 4]}" for number in range(160)]
    path.write_text(
        "".join(f"{text}||it is {text[-1]} #### {answers[place % 4]}\n" for place, text in enumerate(texts))
    )


@pytest.mark.long
def test_the_tool_and_evaluate_agree_on_each_problem(kept_run: Path, byte_folder: Path, tmp_path: Path) -> None:
    """Digits with the small tokenizer, and free text with bytes; both models are half trained."""
    programs = environment(tmp_path / "env", *EXTRAS["harness"])
    sayings(tmp_path / "sayings.txt")
    text = tmp_path / "text"
    command(
        "train", "task=file", f"task.train={tmp_path / 'sayings.txt'}", "task.validation_size=20", "task.test_size=60",
        "schedule=no_cot", *SMALL[3:5], "model.width=64", "model.positions=256", f"model.tokenizer={byte_folder}", "data.batch_size=8",
        "data.epoch_size=80", "optimizer.lr=3e-3", "trainer.duration=12epochs", f"run_dir={text}",
    )  # fmt: skip
    accuracies = []
    for run, checkpoint, split, name in ((kept_run, "removed-2", "train", "digits"), (text, "last", "test", "sayings")):
        ours = evaluated(run, checkpoint, split)
        write_model(run, checkpoint, tmp_path / f"{name}-model")
        words = {"checkpoint": checkpoint, "split": split, "name": name}
        command("harness", f"run={run}", f"out={tmp_path / name}", *(f"{key}={value}" for key, value in words.items()))
        theirs, samples = scored(programs / "lm_eval", tmp_path, name)
        assert theirs == sum(sample["exact_match"] for sample in samples) / len(ours)
        # A model that does not end its CoT by itself gives `evaluate` no answer. The tool's prompt ends the CoT.
        finished = [(one, sample) for one, sample in zip(ours, samples, strict=True) if one.prediction is not None]
        assert [bool(sample["exact_match"]) for _, sample in finished] == [one.right for one, _ in finished]
        assert len(finished) >= 0.9 * len(ours)
        accuracies.append(theirs)
    assert all(0.05 < accuracy < 1 for accuracy in accuracies), accuracies


def evaluated(run: Path, checkpoint: str, split: str) -> list[Prediction]:
    """The predictions of `evaluate`, in the order of the problems."""
    evaluate(EvaluateConfig(run=str(run), checkpoint=checkpoint, split=split, speed_problems=0))
    (file,) = (run / "evaluations").glob(f"{checkpoint}-{split}-*.jsonl")
    return read_predictions(file)


def scored(program: Path, folder: Path, name: str) -> tuple[float, list[dict]]:  # type: ignore[type-arg]
    """The accuracy that lm_eval prints into its results, and its samples in the order of the problems."""
    out = folder / f"{name}-out"
    words = [
        "--model",
        "hf",
        "--model_args",
        f"pretrained={folder / f'{name}-model'}",
        "--include_path",
        str(folder / name),
    ]
    more = ["--tasks", name, "--batch_size", "16", "--device", "cpu", "--output_path", str(out), "--log_samples"]
    env = {**os.environ, **OFFLINE, "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": "", "HF_HOME": str(folder / "hf")}
    ran = subprocess.run([str(program), *words, *more], capture_output=True, text=True, env=env, cwd=folder)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (results,) = out.rglob("results_*.json")
    (samples,) = out.rglob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"][name]["exact_match,answer"], sorted(
        lines, key=lambda line: line["doc_id"]
    )


def test_the_command_that_is_shown_can_be_typed(
    kept_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = harness(HarnessConfig(run=str(kept_run), out=str(tmp_path / "it's mine"), checkpoint="removed-2", limit=1))
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[words.index("--include_path") + 1] == str(out)
