"""The card of an exported model: the Hub reads its header, its numbers are those of the checkpoint, its recipe is that of the run."""

import dataclasses
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.registry import load_all
from stepwise_pl.common.statistics import wilson
from stepwise_pl.config.keys import flat, is_aside
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.plain import to_plain
from stepwise_pl.export import push
from stepwise_pl.methods import Stepwise
from stepwise_pl.models.card import card
from stepwise_pl.models.card_facts import base_model_of, datasets_of, facts_for_card
from stepwise_pl.models.trained_run import TrainedRun, load_run
from stepwise_pl.runs.predictions import digest_of
from stepwise_pl.runs.recipe import command_again
from stepwise_pl.runs.results import accuracy_of, suite_shares
from stepwise_pl.runs.saved_config import saved_config
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Example
from stepwise_pl.tasks.files import Files
from stepwise_pl.tasks.gsm8k import GSM8K
from tests.config.test_config import composed
from tests.conftest import command


@pytest.fixture(scope="module")
def run(run_dir: Path) -> TrainedRun:
    return load_run(str(run_dir), "best")


def of(run: TrainedRun, example: Example | None = None, license: str | None = None) -> str:
    return card(facts_for_card(run, "a run", example, False, license))


def test_the_hub_reads_the_result_from_the_header(run_dir: Path, tmp_path: Path) -> None:
    command("export", f"run={run_dir}", f"out={tmp_path / 'hf'}", "license=mit")
    read = ModelCard.load(tmp_path / "hf" / "README.md")
    summary = json.loads((run_dir / "summary.json").read_text())
    right, n = round(summary["test_accuracy"] * 17), 17
    (result,) = read.data.eval_results
    assert (read.data.library_name, read.data.pipeline_tag, read.data.license) == (
        "transformers",
        "text-generation",
        "mit",
    )
    assert (result.task_type, result.metric_type, result.dataset_type) == (
        "text-generation",
        "accuracy",
        "multiplication",
    )
    assert result.metric_value == pytest.approx(right / n, abs=1e-6) and summary["test_examples"] == n
    assert (result.metric_args["n"], result.metric_args["right"]) == (n, right)
    assert result.metric_args["interval"] == pytest.approx(wilson(right / n, n), abs=1e-6)
    assert result.verified is None and "verif" not in read.content
    assert read.data.base_model is None and read.data.datasets is None
    # huggingface_hub writes the same header from what it has read.
    assert ModelCard(str(read)).data.to_dict() == read.data.to_dict()
    assert f"({right} of n=17; 95% Wilson interval [" in read.text
    assert "2 of 2 tokens of the chain of thought are removed" in read.text
    assert "![Answer accuracy" in read.text
    assert (tmp_path / "hf" / "accuracy.png").read_bytes() == (run_dir / "accuracy.png").read_bytes()


@pytest.mark.parametrize("accuracy", [None, "0.5", math.nan, math.inf, 1.5, -0.1, []])
def test_a_damaged_result_is_none(run: TrainedRun, tmp_path: Path, accuracy: object) -> None:
    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    shutil.copyfile(run.checkpoint, checkpoint)
    summary = {"checkpoint": "best.ckpt", "test_accuracy": accuracy, "test_examples": 17}
    evaluation = {"checkpoint_digest": digest_of(checkpoint), "as_trained": True}
    (tmp_path / "evaluations").mkdir()
    for name, more in (
        ("a", {"suite": "ood", "strata": {"part": {"one": {"accuracy": accuracy, "n": 5}, "two": 3}}}),
        ("b", {"split": "test", "answer_accuracy": accuracy, "examples": 17}),
    ):
        (tmp_path / "evaluations" / f"{name}.json").write_text(json.dumps(evaluation | more))
    for written in (summary, {"checkpoint": "best.ckpt"}):
        (tmp_path / "summary.json").write_text(json.dumps(written))
        assert accuracy_of(tmp_path, checkpoint) is None and suite_shares(tmp_path, checkpoint, "ood") == {}
    found = dataclasses.replace(run, path=tmp_path, checkpoint=checkpoint)
    assert "Not evaluated" in of(found)


def test_the_card_names_no_folder_of_this_machine(run_dir: Path, tmp_path: Path) -> None:
    command("export", f"run={run_dir}", f"out={tmp_path / 'hf'}")
    for name in ("README.md", "stepwise_pl.json"):
        text = (tmp_path / "hf" / name).read_text()
        assert str(run_dir.parent) not in text and str(tmp_path) not in text and str(Path.home()) not in text


def test_the_example_is_a_problem_of_the_test_split_with_its_tokens(run: TrainedRun) -> None:
    example = run.config.task.load()["test"].slice(0, 1)[0]
    text = of(run, example)
    lines = dict(line.split("  ", 1) for line in text.split("```text\n")[1].split("\n```")[0].splitlines())
    prompt = f" {example.prompt} <eos><eos>"
    assert lines["text"].strip() == repr(prompt)
    tokens = json.loads(lines["tokens"])
    assert run.tokenizer.convert_tokens_to_ids(tokens) == run.tokenizer(prompt)["input_ids"]
    first, second = (int(digits[::-1]) for digits in example.prompt.replace(" ", "").split("*"))
    assert lines["answer"].strip() == f"{example.answer!r}  ({first} * {second} is {first * second})"
    assert "your own in place of `your prompt`" in of(run)


def test_a_prompt_with_backticks_stays_inside_its_block(run: TrainedRun) -> None:
    text = of(run, Example("```python\nx```", "", "1"))
    assert re.findall(r"^`{4}(\w*)$", text, re.M) == ["text", "", "python", ""]


def test_the_recipe_composes_to_what_the_run_learned_by(run: TrainedRun) -> None:
    line = of(run).split("```sh\n")[1].split("\n```")[0]
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "stepwise_pl.train"] and "run_dir" not in line
    again, saved = (flat(to_plain(config)) for config in (composed(*words[3:]), saved_config(run.path)))
    assert {key: value for key, value in again.items() if not is_aside(key)} == {
        key: value for key, value in saved.items() if not is_aside(key)
    }
    assert again["seed"] == saved["seed"]


def test_only_the_results_of_exactly_this_checkpoint_count(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    last = load_run(str(folder), "last")
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    # The summary of a run is about best.ckpt.
    assert accuracy_of(folder, last.checkpoint) is None
    best = accuracy_of(folder, folder / "checkpoints" / "best.ckpt")
    assert best is not None and best.n == 17
    assert "Not evaluated" in of(last) and "model-index" not in of(last)
    shutil.copy(folder / "checkpoints" / "last.ckpt", tmp_path / "best.ckpt")
    assert accuracy_of(folder, tmp_path / "best.ckpt") is None
    command("evaluate", f"run={folder}", "checkpoint=last", "split=validation", "speed_problems=0")
    command("evaluate", f"run={folder}", "checkpoint=last", "limit=5", "speed_problems=0")
    command("evaluate", f"run={folder}", "checkpoint=last", "removed_tokens=0", "speed_problems=0")
    assert accuracy_of(folder, last.checkpoint) is None
    command("evaluate", f"run={folder}", "checkpoint=last", "speed_problems=0")
    file = folder / "evaluations" / "last-test-removed2.json"
    found, measured = accuracy_of(folder, last.checkpoint), json.loads(file.read_text())
    assert found is not None and (found.accuracy, found.n) == (pytest.approx(measured["answer_accuracy"]), 17)
    assert f"({found.right} of n=17" in of(last)
    file.write_text(json.dumps({**measured, "checkpoint_digest": "of other weights"}))
    assert accuracy_of(folder, last.checkpoint) is None


def test_results_out_of_the_distribution_become_a_table(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    run = load_run(str(folder), "best")
    assert "It was not evaluated on problems unlike these" in of(run)
    command("evaluate", f"run={folder}", "suite=ood", "suite_size=60")
    parts = suite_shares(folder, run.checkpoint, "ood")
    assert "test" in parts and len(parts) > 1
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (.+?) \|", of(run), re.M)
    assert rows == [(part, str(s.n), f"{s.accuracy:.1%}" if s.n >= 50 else "too few") for part, s in parts.items()]
    file = next((folder / "evaluations").glob("best-ood-*.json"))
    summary = json.loads(file.read_text())
    summary["strata"]["part"]["test"] |= {"n": 100, "accuracy": 0.25}
    file.write_text(json.dumps(summary))
    assert "| test | 100 | 25.0% | [17.5%, 34.3%] |" in of(run)


def changed(run: TrainedRun, **settings: object) -> TrainedRun:
    """The run as if it had been started with another task or model."""
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **settings))  # type: ignore[arg-type]


def pretrained(name: str) -> ModelConfig:
    return ModelConfig(name=name, pretrained=True, tokenizer=name)


def test_weights_and_data_of_the_hub_are_named_and_local_ones_are_not(run: TrainedRun, tmp_path: Path) -> None:
    assert base_model_of(run) is None and datasets_of(run) == []
    named = changed(run, model=pretrained("mistralai/Mistral-7B-v0.1"), task=GSM8K())
    read = ModelCard(of(named)).data
    assert (read.base_model, read.datasets) == ("mistralai/Mistral-7B-v0.1", ["openai/gsm8k"])
    (result,) = read.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("openai/gsm8k", "main", "test")
    secret = tmp_path / "private" / "weights"
    files = Files(train=str(tmp_path / "private" / "train.txt"), validation="v.txt", test="t.txt")
    local = changed(run, model=pretrained(str(secret)), task=files)
    read = ModelCard(of(local)).data
    assert (read.base_model, read.datasets) == (None, None)
    assert "a local copy, `weights`" in of(local) and "private" not in of(local)


def test_a_baseline_is_not_said_to_have_internalized_its_steps(run: TrainedRun) -> None:
    assert "Trained with stepwise_pl by Stepwise Internalization" in of(run)
    for settings, words in (
        ({"remove_all_beyond": 0}, "without a chain of thought from the first step"),
        ({"remove_at_most": 0}, "with the whole chain of thought to the end"),
    ):
        text = of(changed(run, schedule=Linear(delta=0, **settings)))
        assert f"as a baseline of Stepwise Internalization (arXiv 2405.14838), {words}." in text
        assert "2 of 2" not in text.split("## Result")[0] and "implicit-chain-of-thought" not in text


def start_with(folder: Path, *words: str) -> None:
    start = {"command": ["train.py", *words], "packages": {}, "git": None}
    (folder / "environment.json").write_text(
        json.dumps({"sessions": [start, {"command": ["train.py", "resume=true"]}]})
    )


def test_the_recipe_has_no_folders_and_no_accounts(tmp_path: Path) -> None:
    assert command_again(tmp_path, 3) is None
    start_with(
        tmp_path, "experiment=/home/me/lab/mine.yaml", "task=file", "task.train=[/home/me/a.txt,~/b.txt]", "task.test=data/t.txt",
        "model.name=mistralai/Mistral-7B-v0.1", "model.init_from=outputs/first/seed0", "run_dir=/home/me/run", "resume=true",
        "logger=wandb", "logger.entity=my-company", "name=x", "plugins=./secret/p.py", "+model.config.n_inner=64",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "task.validation=[hub:openai/gsm8k:main:test,hub:/home/me/set:test]", "schedule.delta=1/2",
    )  # fmt: skip
    assert command_again(tmp_path, 3) == (
        "python -m stepwise_pl.train experiment=mine.yaml task=file 'task.train=[a.txt,b.txt]' task.test=t.txt "
        "model.name=mistralai/Mistral-7B-v0.1 model.init_from=seed0 plugins=p.py +model.config.n_inner=64 "
        "'task.validation=[hub:openai/gsm8k:main:test,hub:set:test]' schedule.delta=1/2 seed=3"
    )
    start_with(
        tmp_path, "task=file", "task.train=/home/me/secret lab/my data.txt", "task.validation='/home/me, 2/secret lab/b.txt'",
        'task.test=["/home/me/secret lab/c d.txt", ~/secret lab/e.txt]', "model.config={a: /secret/f g, b: 2}",
    )  # fmt: skip
    assert shlex.split(command_again(tmp_path, 3) or "")[3:] == [
        "task=file", "task.train=my data.txt", "task.validation='b.txt'", 'task.test=["c d.txt", e.txt]',
        "model.config={a: f g, b: 2}", "seed=3",
    ]  # fmt: skip
    # A job of a sweep has its own words, and environment.json those of the whole sweep.
    (tmp_path / "job.json").write_text(json.dumps({"overrides": ["experiment=quickstart", "seed=4"]}))
    assert command_again(tmp_path, 4) == "python -m stepwise_pl.train experiment=quickstart seed=4"


def test_settings_that_were_changed_on_the_way_are_named(run: TrainedRun, tmp_path: Path) -> None:
    moved = dataclasses.replace(run, path=tmp_path)
    start_with(tmp_path, "experiment=quickstart")
    assert "This command trains it again. It was stopped and resumed 1 time." in of(moved)
    starts = json.loads((tmp_path / "environment.json").read_text())
    starts["sessions"][1]["changed"] = {"trainer.duration": ["8steps", "12steps"], "schedule.keep": [0.9, 0.8]}
    (tmp_path / "environment.json").write_text(json.dumps(starts))
    assert "This command began the run." in of(moved)
    assert "Settings were changed on the way: `schedule.keep`, `trainer.duration`." in of(moved)


def test_every_method_but_the_papers_own_names_its_paper() -> None:
    methods = {kind: method for (group, kind), method in load_all().items() if group == "method"}
    assert Stepwise.paper == "" and len(methods) > 5
    for kind, method in methods.items():
        if kind == "stepwise" or not method.__module__.startswith("stepwise_pl.methods"):
            continue
        module = __import__(method.__module__, fromlist=[""])
        number = re.search(r"arXiv (\d{4}\.\d{5})", module.__doc__ or "")
        assert number is not None and method.paper.endswith(f"arXiv {number[1]}"), kind


def test_marks_in_a_problem_and_in_a_name_break_no_line_of_the_card(run: TrainedRun) -> None:
    example = Example("say `x`\n``` # y", "", "7")
    text = card(facts_for_card(run, "one\n---\nlicense: mit", example, False, None))
    assert "with your own in place of ```` say `x` ``` # y ````:" in text
    assert "\n# one --- license: mit\n" in text and ModelCard(text).data.license is None


def test_a_card_that_is_no_text_is_told_before_the_push(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"README.md: is no text in UTF-8"):
        push(tmp_path, "me/model", "hf_x", private=True)
