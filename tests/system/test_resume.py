"""Runs are killed at any moment and resumed. They have the weights, metrics and decisions of an uninterrupted run."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stepwise_pl.runs.records import read_metrics, read_stage_records
from tests import background, forked
from tests.conftest import REPO, SMALL, command

# A token leaves after steps 20 and 40. An epoch has 20 steps and ends with a validation. A step has 2 micro-batches.
RUN = (
    *SMALL, "model.dropout=0.1", "trainer.duration=4epochs", "trainer.accumulate_grad_batches=2", "schedule.smoothing=1",
    "trainer.checkpoint_every_n_steps=7", "trainer.log_every_n_steps=1", "data.cache_dir=null",
)  # fmt: skip


def start(
    folder: Path, *more: str, end: str = "never,0,SIGKILL", options: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Train under `tests/driver.py`, and end as its options say."""
    arguments = [*options, f"--end={end}", "--", *RUN, f"run_dir={folder}", *more]
    return forked.run("tests.driver", arguments, REPO, {**os.environ, "OMP_NUM_THREADS": "1", **env}, 300)


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def assert_the_same(one: Path, other: Path) -> None:
    """Two runs agree bit for bit: weights, optimizer, schedule, module, metrics and validations, with no row twice."""
    first, second = state(one), state(other)
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key]), key
    moments = [s["optimizer_states"][0]["state"] for s in (first, second)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(v, moments[1][i][k]) for i, s in moments[0].items() for k, v in s.items())
    for key in ("removed", "reset_step", "schedule", "limits", "rollbacks"):
        assert first["stepwise"][key] == second["stepwise"][key]
    assert first["global_step"] == second["global_step"]
    assert metrics(one) == metrics(other)
    assert (one / "stages.jsonl").read_text() == (other / "stages.jsonl").read_text()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for key in ("test_accuracy", "removed_tokens", "steps", "checkpoint", "rollbacks", "collapsed", "collapsed_at"):
        assert summaries[0][key] == summaries[1][key]


@pytest.fixture(scope="module", params=[0])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    out = start(folder)
    assert out.returncode == 0, out.stderr[-2000:]
    return folder


MOMENTS = [
    ("after the step", 19), ("before the step", 20), ("after the step", 21), ("inside the step", 26), ("end of epoch", 40),
    ("between micro-batches", 33), ("before validation", 40), ("in validation", 40), ("writing a checkpoint", 40),
    ("writing a checkpoint", 28), ("before the step", 3), ("after the step", 79), ("in validation", 80),
]  # fmt: skip
CODES = {"SIGKILL": (-9,), "SIGTERM": (143,), "exception": (1,)}


def killed_and_resumed(folder: Path, moment: str, step: int, how: str, *more: str) -> None:
    out = start(folder, *more, end=f"{moment},{step},{how}")
    assert out.returncode in CODES[how], (out.returncode, out.stderr[-2000:])
    assert not (folder / "summary.json").exists()
    out = start(folder, *more, "resume=true")
    assert out.returncode == 0, out.stderr[-2000:]


@pytest.mark.parametrize(
    "moment,step,how",
    [
        ("after the step", 21, "SIGKILL"), ("between micro-batches", 33, "SIGTERM"),
        pytest.param("in validation", 40, "SIGKILL", marks=pytest.mark.long),
        pytest.param("writing a checkpoint", 40, "SIGKILL", marks=pytest.mark.long),
        pytest.param("before the step", 3, "SIGKILL", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one(
    whole: Path, tmp_path: Path, moment: str, step: int, how: str
) -> None:
    killed_and_resumed(tmp_path / "run", moment, step, how)
    assert_the_same(whole, tmp_path / "run")


@pytest.mark.longest
@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", CODES)
@pytest.mark.parametrize("moment,step", MOMENTS)
def test_a_run_killed_and_resumed_equals_an_uninterrupted_one_in_all_combinations(
    whole: Path, tmp_path: Path, moment: str, step: int, how: str, workers: int
) -> None:
    killed_and_resumed(tmp_path / "run", moment, step, how, f"data.num_workers={workers}")
    assert_the_same(whole, tmp_path / "run")


@pytest.mark.long
def test_a_run_killed_twice_equals_an_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(folder, end="after the step,23,SIGKILL").returncode == -9
    assert start(folder, "resume=true", end="inside the step,50,SIGKILL").returncode == -9
    assert start(folder, "resume=true").returncode == 0
    assert_the_same(whole, folder)
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 21, 49]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["auxiliary", "icot_kd"])
def test_a_run_killed_in_every_stage_of_a_method_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    """A stage has 20 steps. The kills fall inside a step and between micro-batches, on the first step of a stage, and in a validation."""
    more = [f"method={kind}", "trainer.duration=3epochs", "trainer.log_signals_every_n_steps=5"]
    if kind == "icot_kd":
        explicit = ("model.layers=2", "schedule=explicit_cot", "trainer.duration=30steps")
        command("train", *SMALL, *explicit, f"run_dir={tmp_path / 'teacher'}")
        more += [
            "model.layers=2",
            f"method.teacher={tmp_path / 'teacher'}",
            "schedule.smoothing=inf",
            "trainer.keep_every_removed=1",
        ]
    assert start(tmp_path / "whole", *more).returncode == 0
    folder, resumed = tmp_path / "run", ()
    for moment in ("inside the step,13", "between micro-batches,20", "in validation,40", "after the step,55"):
        assert start(folder, *more, *resumed, end=f"{moment},SIGKILL").returncode == -9
        resumed = ("resume=true",)
    assert start(folder, *more, *resumed).returncode == 0
    assert_the_same(tmp_path / "whole", folder)
    names = [record.get("stage") for record in read_stage_records(folder / "stages.jsonl")]
    assert names == (["read", "emulate", "couple"] if kind == "icot_kd" else [None] * 3)
    signals = [row for row in read_metrics(folder / "metrics.csv") if row["signals/loss"]]
    # A named stage has the targets of the next one.
    assert len(signals) == 12 and ("signals/next_stage_loss" in signals[0]) is (kind != "icot_kd")


@pytest.mark.long
def test_a_row_that_was_cut_off_is_dropped(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(folder, end="after the step,30,SIGKILL").returncode == -9
    with (folder / "metrics.csv").open("a") as file:
        file.write("2")  # the first character of row 29
    with (folder / "stages.jsonl").open("a") as file:
        file.write('{"step": 4')
    assert start(folder, "resume=true").returncode == 0
    assert_the_same(whole, folder)


def test_other_data_is_refused(tmp_path: Path) -> None:
    command("write_data", "task=mult2x2", "task.digits=1", f"out={tmp_path / 'data'}")
    files = [f"task.{name}={tmp_path / 'data' / name}.txt" for name in ("train", "validation", "test")]
    arguments = (*SMALL[3:], "task=file", *files, f"run_dir={tmp_path / 'run'}")
    command("train", *arguments, "trainer.duration=4steps")
    train = tmp_path / "data" / "train.txt"
    lines = train.read_text().splitlines()
    train.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    out = command("train", f"run_dir={tmp_path / 'run'}", "resume=true", "trainer.duration=8steps", check=False)
    assert out.returncode == 2
    assert "is of another run: it was trained on other data" in out.stderr.splitlines()[-1]
    out = command("evaluate", f"run={tmp_path / 'run'}", check=False)
    assert out.returncode == 2
    assert "a data file has changed since the run" in out.stderr.splitlines()[-1]
    command("evaluate", f"run={tmp_path / 'run'}", f"file={tmp_path / 'data' / 'test.txt'}", "speed_problems=0")


@pytest.mark.long
def test_the_same_command_twice_gives_the_same_run(whole: Path, tmp_path: Path) -> None:
    """The same configuration and seed give the same weights and metrics, also with workers; another seed gives others."""
    assert start(tmp_path / "again", "data.num_workers=2").returncode == 0
    assert_the_same(whole, tmp_path / "again")
    assert start(tmp_path / "other", "seed=1").returncode == 0
    assert metrics(tmp_path / "other") != metrics(whole)


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def refused(folder: Path, *more: str) -> str:
    """The line that refuses a resume in the folder."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = command("train", f"run_dir={folder}", "resume=true", "trainer.duration=5epochs", *more, check=False)
    assert (out.returncode, "Traceback" in out.stderr) == (2, False), out.stderr
    for path, content in before.items():
        assert path.name == ".lock" or path.read_bytes() == content, f"{path} was changed"
    return out.stderr.strip().splitlines()[-1]


@pytest.mark.long
def test_damaged_and_foreign_checkpoints_are_refused(whole: Path, copied: Path, tmp_path: Path) -> None:
    last = copied / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    from_best = f"start another run with another run_dir, from its best weights with model.init_from={copied}"
    for damaged in (
        content[: len(content) // 2],
        b"",
        b"something else",
        content[:1000] + b"x" * 2000 + content[3000:],
    ):
        last.write_bytes(damaged)
        line = refused(copied)
        assert "last.ckpt: damaged" in line and line.endswith(from_best)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1  # inside a tensor
    last.write_bytes(flipped)
    assert "last.ckpt: damaged: its checksum is wrong" in refused(copied)
    for foreign in ({"state_dict": {}}, torch.load(copied / "checkpoints" / "best.ckpt", weights_only=True)):
        torch.save(foreign, last)
        assert "is not a checkpoint that this version of stepwise_pl can go on from" in refused(copied)
    on_other_data = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    on_other_data["stepwise"]["config"]["derived"]["data"] = "0"
    torch.save(on_other_data, last)
    assert "is of another run: it was trained on other data" in refused(copied)
    # The line names the differences from another run.
    other = tmp_path / "other"
    assert start(other, "model.width=32", "optimizer.lr=1e-3", "trainer.duration=1epochs").returncode == 0
    shutil.copy(other / "checkpoints" / "last.ckpt", last)
    line = refused(copied)
    assert "last.ckpt: is of another run" in line
    assert "model.width is 32 there, 64 in config.yaml; optimizer.lr is 0.001 there, 0.005 in config.yaml." in line
    # With the run's own checkpoint back in place, the run resumes.
    shutil.copy(whole / "checkpoints" / "last.ckpt", last)
    command("train", f"run_dir={copied}", "resume=true", "trainer.duration=5epochs")
    (copied / "checkpoints" / "best.ckpt").write_bytes(b"")
    out = command("train", f"run_dir={copied}", "resume=true", "trainer.duration=5epochs", check=False)
    assert out.returncode == 2 and "best.ckpt: damaged" in out.stderr and "Traceback" not in out.stderr
    # A command line that asks for something else is refused as well.
    assert "optimizer.lr was 0.005, is 0.1" in refused(copied, "optimizer.lr=0.1")


class Ran:
    """Leaves a trace when its pickle is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["TRACE"],)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt", "good.ckpt"])
def test_no_code_in_a_checkpoint_is_run(
    copied: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    torch.save({"state_dict": Ran(), "stepwise": {}}, copied / "checkpoints" / name)
    if name == "last.ckpt":
        assert "last.ckpt: damaged, or not a checkpoint of weights only" in refused(copied)
    if name == "good.ckpt":  # only the guard reads it
        out = start(copied, "resume=true", "trainer.duration=6epochs", "guard=halve", options=("--weights=nan,0,81",))
        assert out.returncode == 2 and "good.ckpt: damaged, or not a checkpoint of weights only" in out.stderr
    for entry in ("evaluate", "export"):
        out = command(entry, f"run={copied}", f"checkpoint={name.removesuffix('.ckpt')}", check=False)
        assert (out.returncode, "damaged, or not a checkpoint of weights only" in out.stderr) == (2, True), out.stderr
    assert not (tmp_path / "trace").exists()


def test_names_from_the_configuration_stay_inside_the_outputs(tmp_path: Path) -> None:
    """Overrides make the name of the folder. Paths in them must not lead out of the outputs."""
    outside = tmp_path / "a" / "b"
    outside.mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("".join(f"{a} * {b}||{a} + 0 #### {b}\n" for a in range(9) for b in range(9)))
    overrides = ["task=file", "task.train=../../mine.txt", "task.test_size=5", "task.validation_size=5", *SMALL[4:]]
    command("train", *overrides, "trainer.duration=2steps", cwd=outside, PYTHONPATH=str(REPO))
    (run,) = (path.parent for path in outside.rglob("config.yaml"))
    assert outside / "outputs" in run.parents
    command("evaluate", f"run={run}", "file=../../mine.txt", "speed_problems=0", cwd=outside, PYTHONPATH=str(REPO))
    assert {path.name for path in tmp_path.iterdir()} == {"a", "mine.txt"}
    assert {path.name for path in outside.iterdir()} == {"outputs"}


@pytest.mark.parametrize("moment", ["before the step", "between micro-batches", "after the step"])
def test_a_stop_waits_for_the_end_of_the_step_and_keeps_it(tmp_path: Path, moment: str) -> None:
    """The stop may also come in the first micro-batch of the step."""
    folder = tmp_path / "run"
    assert start(folder, end=f"{moment},33,SIGTERM").returncode == 143
    done = {"after the step": 33}.get(moment, 34)
    assert (state(folder)["global_step"], int(metrics(folder)[-1]["step"])) == (done, done)


@pytest.mark.long
def test_a_run_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["-m", "stepwise_pl.train", *RUN, "trainer.duration=1000epochs", f"run_dir={folder}"]
    first = background.start(*arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if (folder / "checkpoints" / "last.ckpt").exists():
                break
            time.sleep(0.2)
        out = command("train", *RUN, f"run_dir={folder}", "resume=true", check=False)
        assert out.returncode == 2
        assert f"another process is at work in it (process {first.pid} on " in out.stderr.splitlines()[-1]
    finally:
        first.send_signal(signal.SIGINT)  # Ctrl-C
        first.wait(60)
    assert first.returncode == 128 + signal.SIGINT
    before = state(folder)["global_step"]
    assert before == int(metrics(folder)[-1]["step"])  # the run stopped after a step, and kept the step
    out = command("train", f"run_dir={folder}", "resume=true", f"trainer.duration={before + 3}steps")
    assert state(folder)["global_step"] == before + 3
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, before]
    assert sessions[0]["process"] == first.pid


@pytest.mark.long
def test_a_removed_run_folder_comes_back(tmp_path: Path) -> None:
    """Somebody removes the folder in the middle of the run. The run still saves its checkpoint."""
    folder = tmp_path / "run"
    arguments = ["-m", "stepwise_pl.train", *RUN, "trainer.duration=40epochs", f"run_dir={folder}"]
    process = background.start(*arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(300):
        if (folder / "checkpoints" / "best.ckpt").exists():
            break
        time.sleep(0.2)
    folder.rename(tmp_path / "elsewhere")
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr[-2000:]
    command("evaluate", f"run={folder}", "checkpoint=last", "speed_problems=0")
    assert [one["step"] for one in read_stage_records(folder / "stages.jsonl")][-1] == 800


@pytest.mark.long
def test_checkpoints_are_kept_for_the_speed_curve(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command("train", *RUN, f"run_dir={folder}", "trainer.keep_every_removed=1", "trainer.duration=3epochs")
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["best.ckpt", "good.ckpt", "last.ckpt", "removed-0.ckpt", "removed-1.ckpt", "removed-2.ckpt"]
    # `keep_at_most` keeps only the newest ones.
    command(
        "train", *RUN, f"run_dir={tmp_path / 'few'}", "trainer.keep_every_removed=1", "trainer.keep_at_most=1", "trainer.duration=3epochs"
    )  # fmt: skip
    kept = sorted(path.name for path in (tmp_path / "few" / "checkpoints").iterdir())
    assert kept == ["best.ckpt", "good.ckpt", "last.ckpt", "removed-2.ckpt"]
    found = [path.stat() for path in (tmp_path / "few" / "checkpoints").iterdir()]
    sizes = sum({one.st_ino: one.st_size for one in found}.values())
    assert json.loads((tmp_path / "few" / "summary.json").read_text())["checkpoint_bytes"] == sizes
    for removed in range(3):
        found = torch.load(folder / "checkpoints" / f"removed-{removed}.ckpt", weights_only=True)
        assert (found["stepwise"]["removed"], "optimizer_states" in found) == (removed, False)
    command("evaluate", f"run={folder}", "checkpoint=removed-1", "speed_problems=0")
    result = json.loads((folder / "evaluations" / "removed-1-test-removed1.json").read_text())
    assert result["removed_tokens"] == 1


def test_the_environment_is_recorded(whole: Path) -> None:
    (session,) = json.loads((whole / "environment.json").read_text())["sessions"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPO, capture_output=True, text=True).stdout.strip()
    assert session["git"] is None or session["git"]["commit"] == head
    assert session["packages"]["torch"] == torch.__version__
    assert f"run_dir={whole}" in session["command"]
    assert session["machine"]["cores"] >= 1
