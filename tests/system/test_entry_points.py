"""The commands as a user runs them: real processes, real files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import stepwise_pl
from stepwise_pl.config.plain import read_yaml, save_yaml
from stepwise_pl.runs.predictions import read_predictions
from stepwise_pl.runs.records import read_metrics, read_stage_records
from tests import background
from tests.conftest import COMMANDS, OFFLINE, REPO, SMALL, command


def test_the_run_folder_has_all_documented_files(run_dir: Path) -> None:
    for name in (
        "config.yaml", "metrics.csv", "summary.json", "accuracy.png", "accuracy.svg", "checkpoints/last.ckpt",
        "checkpoints/best.ckpt", "model/config.json", "model/tokenizer.json",
    ):  # fmt: skip
        assert (run_dir / name).stat().st_size > 0, name
    rows = read_metrics(run_dir / "metrics.csv")
    columns = [
        "step", "attempt", "epoch", "schedule/removed_tokens", "train/loss", "val/loss", "val/answer_accuracy",
        "val/token_accuracy",
    ]  # fmt: skip
    assert list(rows[0])[:8] == columns
    assert [int(r["step"]) for r in rows if r["train/loss"]] == list(range(5, 121, 5))
    validated = [(int(r["step"]), float(r["schedule/removed_tokens"])) for r in rows if r["val/loss"]]
    assert validated == [(20, 0), (40, 1), (60, 2), (80, 2), (100, 2), (120, 2)]
    assert all(r["schedule/removed_tokens"] and r["epoch"] for r in rows)


def test_the_summary_is_readable_and_true(run_dir: Path) -> None:
    text = (run_dir / "stdout.txt").read_text()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["removed_tokens"] == summary["max_cot_tokens"] == 2
    assert summary["examples_per_token"] == 640
    assert summary["test_examples"] == 17
    assert summary["steps"] == 120
    assert "640 examples per removed token" in text
    assert "run folder      small\n" in text
    assert "[95% Wilson interval]" in text
    progress = (run_dir / "stderr.txt").read_text()
    assert "train: 48 of the 808000 problems asked for" in progress  # a shortage is reported, but not recorded
    assert "run folder: small\n" in progress
    assert "step 120 of 120, 0:00:" in progress and ": 2 of 2 CoT tokens gone, train loss " in progress
    assert "all 2 CoT tokens will be gone at step 41 of 120\n" in progress
    rows = [line.split() for line in text.splitlines() if "n=16" in line]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert "examples_per_token: 640" in (run_dir / "config.yaml").read_text()


@pytest.mark.long
def test_the_same_seed_gives_the_same_numbers_and_another_seed_gives_others(run_dir: Path, tmp_path) -> None:
    for seed in (0, 1):
        command("train", *SMALL, f"run_dir={tmp_path / str(seed)}", f"seed={seed}")
    first, again, other = (
        [{**r, "seconds": ""} for r in read_metrics(folder / "metrics.csv")]
        for folder in (run_dir, tmp_path / "0", tmp_path / "1")
    )
    assert first == again
    assert first != other


def test_every_validation_is_recorded_with_its_digits_and_some_answers(run_dir: Path) -> None:
    records = read_stage_records(run_dir / "stages.jsonl")
    rows = [row for row in read_metrics(run_dir / "metrics.csv") if row["val/loss"]]
    for record, row in zip(records, rows, strict=True):
        assert list(record) == [
            "step", "attempt", "removed_tokens", "examples", "accuracy", "accuracy_any_length", "digits", "samples"
        ]  # fmt: skip
        where = (record["step"], record["attempt"], record["removed_tokens"], record["examples"])
        assert where == tuple(int(row[key]) for key in ("step", "attempt", "schedule/removed_tokens", "val/examples"))
        assert record["accuracy"] == float(row["val/answer_accuracy"])
        assert record["accuracy_any_length"] == float(row["val/answer_accuracy_any_length"])
        assert len(record["digits"]) == 2
        assert all(digit * 16 == pytest.approx(round(digit * 16)) for digit in record["digits"])
    assert records[0]["digits"] != records[-1]["digits"]
    # The checkpoint of the last validation gives the recorded answers.
    command("evaluate", f"run={run_dir}", "checkpoint=last", "split=validation", "speed_problems=0")
    answered = read_predictions(run_dir / "evaluations" / "last-validation-removed2.jsonl")
    wanted = [one for right in (True, False) for one in [one for one in answered if one.right is right][:4]]
    assert records[-1]["samples"] == [
        {"prompt": one.prompt, "target": one.target, "prediction": one.prediction, "right": one.right} for one in wanted
    ]
    assert {one["right"] for one in records[-1]["samples"]} == {True, False}


def test_evaluate_agrees_with_the_run(run_dir: Path) -> None:
    out = command("evaluate", f"run={run_dir}", "speed_problems=4").stdout
    summary = json.loads((run_dir / "summary.json").read_text())
    result = json.loads((run_dir / "evaluations" / "best-test-removed2.json").read_text())
    assert result["answer_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert result["examples"] == 17
    assert result["problems_per_second_batch_1"] > 0
    assert result["problems_per_second_batch_200"] > result["problems_per_second_batch_1"]
    assert "problems per second at batch 1 (cpu)\n" in out
    command("evaluate", f"run={run_dir}", "removed_tokens=0", "checkpoint=last", "split=validation", "speed_problems=0")
    command("evaluate", f"run={run_dir}", "limit=5", "speed_problems=0")
    limited = json.loads((run_dir / "evaluations" / "best-test-first5-removed2.json").read_text())
    assert (limited["examples"], limited["limit"]) == (5, 5)
    result = json.loads((run_dir / "evaluations" / "last-validation-removed0.json").read_text())
    assert (result["removed_tokens"], result["examples"]) == (0, 16)


def answers_of(folder: Path, run_dir: Path) -> None:
    """The exported folder answers every problem of the training split as the run does."""
    from stepwise_pl.data.encoding import encode
    from stepwise_pl.evaluation.answers import answers
    from stepwise_pl.models.decoding import generate
    from stepwise_pl.models.trained_run import load_run
    from stepwise_pl.schedules.spread import ALL

    run = load_run(str(run_dir), "best")
    internalized = run.internalized
    train = run.config.task.load()["train"]
    examples = train.slice(0, 40)
    batch = encode(train, run.tokenizer, "train").collate(torch.arange(40).numpy())
    batch = batch.remove(ALL if internalized else run.removed)
    own = answers(generate(run.model, batch, run.tokenizer.eos_token_id, 20), run.tokenizer)
    assert len(set(own)) > 5
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "gpt2"
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    generator = pipeline("text-generation", model=str(folder))
    for example, answer in zip(examples, own, strict=True):
        prompt = f" {example.prompt} <eos>" + ("<eos>" if internalized else "")
        text = generator(prompt, return_full_text=False)[0]["generated_text"]
        # `evaluate` counts an unfinished answer as none; the text shows its beginning.
        assert answer is None or text.partition("####")[2].strip() == answer
    assert sum(answer is not None for answer in own) > 30


def run_readme(folder: Path) -> list[str]:
    code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.splitlines()


def test_export_gives_the_same_answers_in_plain_transformers(run_dir: Path, tmp_path) -> None:
    command("export", f"run={run_dir}", f"out={tmp_path / 'hf'}")
    answers_of(tmp_path / "hf", run_dir)
    assert len(run_readme(tmp_path / "hf")[0].split()) == 2  # two digits of a product
    again = command("export", f"run={run_dir}", f"out={tmp_path / 'hf'}", check=False)
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)


@pytest.mark.long
def test_export_of_a_model_that_writes_its_cot(tmp_path) -> None:
    folder = tmp_path / "explicit"
    command("train", *SMALL, "schedule=explicit_cot", f"run_dir={folder}")
    command("export", f"run={folder}")
    answers_of(folder / "export", folder)
    cot, answer = run_readme(folder / "export")
    assert (len(cot.split()), len(answer.split())) == (2, 2)


def test_a_run_is_not_overwritten_and_resumes(run_dir: Path, tmp_path) -> None:
    out = command("train", *SMALL, f"run_dir={run_dir}", check=False)
    assert out.returncode == 2
    assert "holds a run already; resume=true goes on with it" in out.stderr
    folder = tmp_path / "part"
    command("train", *SMALL, f"run_dir={folder}", "trainer.duration=3epochs")
    out = command("train", *SMALL, f"run_dir={folder}", "resume=true", "method.side=right", check=False)
    assert "another configuration: method.side was left, is right" in out.stderr
    out = command("train", f"run_dir={folder}", "resume=true", "data.batch_size=64", check=False)
    assert "another configuration: data.batch_size was 32, is 64" in out.stderr
    out = command("train", "experiment=quickstart", f"run_dir={folder}", "resume=true", check=False)
    assert "another configuration: data.batch_size was 32, is 64; " in out.stderr
    # The folder has the configuration; the user gives only the changes.
    command(
        "train", f"run_dir={folder}", "resume=true", "trainer.duration=6epochs", "logger=wandb", "logger.offline=true"
    )
    assert (folder / "wandb.json").is_file()
    whole, resumed = (
        [r for r in read_metrics(path / "metrics.csv") if not r["test/loss"]] for path in (run_dir, folder)
    )
    assert [{k: v for k, v in r.items() if v} for r in resumed] == [{k: v for k, v in r.items() if v} for r in whole]
    one, two = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (run_dir, folder))
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())


LINEAR = [*SMALL, "schedule.smoothing=1"]
CLOSED_LOOP = [
    *(one for one in SMALL if not one.startswith(("schedule.delta", "schedule.rewarmup"))), "optimizer=muon",
    "schedule=adaptive", "schedule.keep=0.5", "schedule.check_every=2", "schedule.max_stay=4", "schedule.smoothing=0.7",
    "optimizer.average=0.9",
]  # fmt: skip
UNEQUAL_LENGTHS = [
    *(one for one in SMALL if not one.startswith("task")), "task=word_problems", "task.train_size=640",
    "task.validation_size=33", "task.test_size=17", "schedule.delta=4", "schedule.smoothing=1",
]  # fmt: skip


@pytest.mark.longest
@pytest.mark.long  # the processes wait for each other; beside other tests on two cores that can take minutes
@pytest.mark.parametrize(
    "args,shared",
    [
        (LINEAR, "ddp"), (CLOSED_LOOP, "ddp"), (UNEQUAL_LENGTHS, "ddp"),
        ([*LINEAR, "trainer.accumulate_grad_batches=2"], "ddp"),
        (LINEAR, "fsdp2"), (UNEQUAL_LENGTHS, "fsdp2"), ([*LINEAR, "trainer.precision=bf16-mixed"], "fsdp2"), ([*LINEAR, "trainer.precision=bf16-true"], "fsdp2"),
        ([*LINEAR, "trainer.accumulate_grad_batches=2", "model.gradient_checkpointing=true"], "fsdp2"),
    ],
)  # fmt: skip
def test_two_processes_train_one_run(tmp_path, args: list[str], shared: str) -> None:
    args = [*args, "trainer.log_every_n_steps=1", "data.batch_size=32"]
    low_precision = any(one.startswith("trainer.precision=bf16") for one in args)
    two_processes = ("trainer.devices=2", f"trainer.strategy={shared}")
    command("train", *args, f"run_dir={tmp_path / 'one'}", "trainer.duration=8steps")
    progress = command("train", *args, f"run_dir={tmp_path / 'two'}", "trainer.duration=8steps", *two_processes).stderr
    assert [progress.count(text) for text in ("device: 2 x cpu", "length: 8 steps", "step 8 of 8, ")] == [1, 1, 1]
    assert "distributed" not in progress  # Lightning's own lines
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert [(r["step"], r["schedule/removed_tokens"], r["schedule/reset_step"]) for r in one] == [
        (r["step"], r["schedule/removed_tokens"], r["schedule/reset_step"]) for r in two
    ]
    for column in ("train/loss", "val/loss", "test/loss"):
        assert [float(r[column]) for r in two if r[column]] == pytest.approx(
            [float(r[column]) for r in one if r[column]], rel=5e-2 if low_precision else 1e-3
        )
    stages = [read_stage_records(tmp_path / name / "stages.jsonl") for name in ("one", "two")]
    if not low_precision:
        assert stages[0] == stages[1]  # one record for all processes, written once
    summary, alone = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("two", "one"))
    assert stages[1][-1]["examples"] == alone["validation_examples"] and len(stages[1][-1]["samples"]) >= 4
    assert summary["test_examples"] == alone["test_examples"] == 17  # no example twice
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    assert "schedule=adaptive" not in args or len({r["schedule/removed_tokens"] for r in one}) > 1

    # After a stop in the middle, the two processes continue exactly. One process can load their checkpoint.
    command("train", *args, f"run_dir={tmp_path / 'cut'}", "trainer.duration=5steps", *two_processes)
    command("train", f"run_dir={tmp_path / 'cut'}", "resume=true", "trainer.duration=8steps")
    cut, whole = (read_metrics(tmp_path / name / "metrics.csv") for name in ("cut", "two"))
    assert [r["train/loss"] for r in cut if r["train/loss"]] == [r["train/loss"] for r in whole if r["train/loss"]]
    states = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("cut", "two")]
    assert all(torch.equal(value, states[1]["state_dict"][key]) for key, value in states[0]["state_dict"].items())
    said = command("evaluate", f"run={tmp_path / 'two'}", "speed_problems=0").stdout
    assert f"n={summary['test_examples']}" in said and f"{summary['test_accuracy']:.1%}" in said


@pytest.mark.longest
@pytest.mark.long
@pytest.mark.parametrize("shared", ["ddp", "fsdp2"])
@pytest.mark.parametrize("number,everywhere", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_two_processes_stop_together(tmp_path, shared: str, number: signal.Signals, everywhere: bool) -> None:
    """Ctrl-C reaches all processes of a terminal, `kill` only the first. The run is saved, and resumes exactly."""
    args = [*LINEAR, "trainer.log_every_n_steps=1", "trainer.devices=2", f"trainer.strategy={shared}"]
    folder = tmp_path / "cut"
    process = background.start(
        "-m", "stepwise_pl.train", *args, f"run_dir={folder}", "trainer.duration=100000steps",
        env={**os.environ, **OFFLINE}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    for _ in range(1200):
        if (folder / "metrics.csv").is_file() and len((folder / "metrics.csv").read_text().splitlines()) > 4:
            break
        time.sleep(0.1)
    (os.killpg if everywhere else os.kill)(process.pid, number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, out[-2000:]
    assert "resume=true goes on" in out and "Traceback" not in out
    steps = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] + 3
    command("train", f"run_dir={folder}", "resume=true", f"trainer.duration={steps}steps")
    command("train", *args, f"run_dir={tmp_path / 'whole'}", f"trainer.duration={steps}steps")
    cut, whole = (read_metrics(tmp_path / name / "metrics.csv") for name in ("cut", "whole"))
    assert [r["train/loss"] for r in cut if r["train/loss"]] == [r["train/loss"] for r in whole if r["train/loss"]]


@pytest.mark.long
def test_a_run_from_before_a_key_existed_resumes(tmp_path) -> None:
    folder = tmp_path / "run"
    command("train", *SMALL, f"run_dir={folder}", "trainer.duration=4steps")
    gone = {"trainer": "strategy", "data": "max_tokens"}
    plain = read_yaml(folder / "config.yaml")
    last = folder / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    for config in (plain, state["stepwise"]["config"]):
        del config["expected"]
        for group, key in gone.items():
            del config[group][key]
    save_yaml(plain, folder / "config.yaml")
    torch.save(state, last)
    command("train", *SMALL, "trainer=cpu", f"run_dir={folder}", "trainer.duration=6steps", "resume=true", "expected.accuracy=[0,1]",
            "expected.source=me")  # fmt: skip
    assert json.loads((folder / "summary.json").read_text())["expected"]["accuracy_inside"] is True


@pytest.mark.long
def test_default_run_folders_do_not_collide(tmp_path) -> None:
    for _ in range(2):
        command("train", *SMALL, "trainer.duration=2steps", cwd=tmp_path, PYTHONPATH=str(REPO))
    runs = sorted(path.parent.relative_to(tmp_path) for path in tmp_path.rglob("summary.json"))
    assert [path.name for path in runs] == ["seed0", "seed0-2"]
    assert runs[0].parts[:2] == ("outputs", "mult2x2-tiny-stepwise")
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}  # nothing is written anywhere else


def test_multirun_runs_a_sweep(tmp_path) -> None:
    command(
        "train", "-m", *SMALL, "trainer.duration=2steps", "schedule.delta=4,1/2", "schedule.smoothing=2,inf",
        cwd=tmp_path, PYTHONPATH=str(REPO),
    )  # fmt: skip
    configs = [path.read_text() for path in sorted(tmp_path.rglob("config.yaml"))]
    assert len(configs) == 4
    seen = {(c.split("  delta: ")[1].split("\n")[0], c.split("smoothing: ")[1].split("\n")[0]) for c in configs}
    assert seen == {("4", "2.0"), ("4", ".inf"), ("1/2", "2.0"), ("1/2", ".inf")}


@pytest.mark.long
def test_gpt2_with_random_weights_trains_two_steps_on_7x7(shared_data, tmp_path) -> None:
    out = command(
        "train", "model=gpt2", "task=mult7x7", "model.pretrained=false",
        f"model.tokenizer={shared_data / 'gpt2-tokenizer'}", "task.train_size=200", "task.validation_size=1",
        "task.test_size=1", "data.batch_size=2", "trainer.duration=2steps", f"run_dir={tmp_path / 'run'}",
        "trainer.log_every_n_steps=1",
    )  # fmt: skip
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    losses = [float(r["train/loss"]) for r in rows if r["train/loss"]]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert "2 steps" in out.stdout


@pytest.mark.long
def test_files_train_like_generated_data(tmp_path) -> None:
    command("write_data", "task=mult2x2", "task.digits=1", f"out={tmp_path / 'data'}")
    files = [f"task.{name}={tmp_path / 'data' / name}.txt" for name in ("train", "validation", "test")]
    command("train", *SMALL[3:], "task=file", *files, f"run_dir={tmp_path / 'run'}", "trainer.duration=4steps")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["max_cot_tokens"] == 2
    # The export needs only the run folder; the data gives the README an example of a prompt.
    (tmp_path / "data" / "train.txt").unlink()
    out = command("export", f"run={tmp_path / 'run'}")
    assert "the README shows no prompt of the data" in out.stderr and "train.txt" in out.stderr, out.stderr
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


@pytest.mark.long
def test_a_stopped_sweep_resumes(tmp_path) -> None:
    """The first of two runs is unfinished, and the second has not begun."""
    args = ("train", "-m", *SMALL, "schedule.smoothing=2,inf")
    command(*args, "trainer.duration=4steps", cwd=tmp_path, PYTHONPATH=str(REPO))
    first, second = sorted(path.parent for path in tmp_path.rglob("summary.json"))
    shutil.rmtree(second)
    command(*args, "trainer.duration=8steps", "resume=true", cwd=tmp_path, PYTHONPATH=str(REPO))
    assert sorted(path.parent for path in tmp_path.rglob("summary.json")) == [first, second]
    assert {json.loads((path / "summary.json").read_text())["steps"] for path in (first, second)} == {8}
    sessions = json.loads((first / "environment.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 4]


PLUGIN = """
from dataclasses import dataclass

from stepwise_pl.common.registry import register
from stepwise_pl.schedules import Schedule


@register("schedule")
@dataclass
class Stairs(Schedule):
    kind: str = "stairs"

    def removed(self, step: int) -> int:
        return step
"""


@pytest.mark.long
def test_the_wheel_runs_every_command_from_any_folder(tmp_path) -> None:
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(REPO)], check=True)
    wheel = next(tmp_path.glob("*.whl"))
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    subprocess.run([*pip, "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)], check=True)
    elsewhere.mkdir()
    there = {str(path.relative_to(REPO / "conf")) for path in (REPO / "conf").rglob("*.yaml")}
    shipped = site / "stepwise_pl" / "conf"
    assert {str(path.relative_to(shipped)) for path in shipped.rglob("*.yaml")} == there
    (about,) = site.glob("stepwise_pl-*.dist-info")
    assert (about / "licenses" / "LICENSE").read_text() == (REPO / "LICENSE").read_text()
    assert "License-Expression: Apache-2.0\n" in (about / "METADATA").read_text()

    def run(*words: str) -> str:
        env = {**os.environ, **OFFLINE, "PYTHONPATH": str(site)}
        out = subprocess.run([sys.executable, *words], cwd=elsewhere, env=env, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        return out.stdout

    assert run("-c", "import stepwise_pl; print(stepwise_pl.__file__)").startswith(str(site))
    for name in COMMANDS:
        assert f"python -m stepwise_pl.{name}" in run("-m", f"stepwise_pl.{name}", "--help")
    (elsewhere / "stairs.py").write_text(PLUGIN)
    small = [word for word in SMALL if not word.startswith("schedule.")]
    words = ("plugins=./stairs.py", "schedule=stairs", "trainer.duration=2steps", "run_dir=run")
    run("-m", "stepwise_pl.train", *small, *words)
    run("-m", "stepwise_pl.evaluate", "run=run", "speed_problems=0")
    run("-m", "stepwise_pl.export", "run=run", "out=exported")
    run("-m", "stepwise_pl.report", "run")
    for made in ("run/summary.json", "run/evaluations", "exported/model.safetensors", "report.html"):
        assert (elsewhere / made).exists(), made


def test_the_citation_can_be_read() -> None:
    """The keys that the citation file format 1.2.0 requires are there, and the version is that of the package."""
    cited = read_yaml(REPO / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["license"]) == (stepwise_pl.__version__, "Apache-2.0")
    for work in (cited, *cited["references"]):
        assert work["type"] in ("software", "article") and work["title"]
        assert all(author.keys() in ({"name"}, {"family-names", "given-names"}) for author in work["authors"])


@pytest.mark.long
@pytest.mark.longest
def test_the_wheel_installs_into_a_clean_environment(tmp_path: Path) -> None:
    """Its own environment with the locked versions, no developer's package, and the console script."""
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(REPO)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    inside, wheel = tmp_path / "env" / "bin", next(tmp_path.glob("*.whl"))
    locked = ["--constraint", str(REPO / "requirements.lock"), str(wheel)]
    subprocess.run([str(inside / "pip"), "install", "--quiet", *locked], check=True)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | OFFLINE

    def run(*words: str) -> str:
        out = subprocess.run(
            [str(inside / words[0]), *words[1:]], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert out.returncode == 0, out.stderr
        return out.stdout

    assert run("python", "-c", "import importlib.util as u; print(u.find_spec('pytest'))").strip() == "None"
    assert all(f"  {name}" in run("stepwise-pl") for name in COMMANDS)
    run("stepwise-pl", "train", "experiment=quickstart", "debug=true", "run_dir=run")
    run("stepwise-pl", "train", "-m", "experiment=quickstart", "debug=true", "seed=0,1", "run_dir=sweep")
    run("stepwise-pl", "evaluate", "run=run", "speed_problems=0")
    run("stepwise-pl", "evaluate", "run=sweep/seed1", "speed_problems=0")
    run("stepwise-pl", "compare", "run", "sweep/seed1")
    run("stepwise-pl", "sweep", "sweep")
    run("stepwise-pl", "report", "run", "out=page.html")
    run("stepwise-pl", "export", "run=run", "out=model")
    run("stepwise-pl", "write_data", "experiment=quickstart", "task.train_size=20", "out=data")
    run("stepwise-pl", "check_data", "experiment=quickstart", "task.train_size=100", "task.validation_size=20")
