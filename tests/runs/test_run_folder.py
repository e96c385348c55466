"""Nothing measured is written over, a start that fails leaves its folder as it was, and signals end a run saved."""

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stepwise_pl.common import processes
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import save_yaml, to_plain
from stepwise_pl.config.request import Request
from stepwise_pl.config.run import Config
from stepwise_pl.methods import Stepwise
from stepwise_pl.runs import marks, resumed_config
from stepwise_pl.runs.at_work import at_work, lock, unlock
from stepwise_pl.runs.folder import choose_run_dir, how_to_go_on, require_checkpoint_or_nothing
from stepwise_pl.runs.records import all_rows
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Multiplication
from stepwise_pl.train import on_validation
from tests import background
from tests.conftest import REPO, SMALL, command
from tests.system.test_resume import RUN, assert_the_same, metrics, start, state

TINY = (*SMALL, "trainer.duration=1epochs", "data.cache_dir=null")


def chosen(**settings: Any) -> Path:
    """The folder that a run of seed 0 named `mine` gets."""
    return choose_run_dir(
        Config(task=Multiplication(), schedule=Linear(), method=Stepwise(), **settings), Request("mine")
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    command("train", *TINY, f"run_dir={folder}")
    command("evaluate", f"run={folder}", "speed_problems=0")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes | None]:
    """Of every file in it; the lock says who was there last."""
    paths = (path for path in folder.rglob("*") if path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def refused(folder: Path, *arguments: str, **more: Any) -> str:
    """The one line with which it is refused; nothing in the folder has changed."""
    before = content(folder)
    out = command("train", *arguments, check=False, **more)
    assert (out.returncode, "Traceback" in out.stderr) == (2, False), out.stderr
    assert content(folder) == before
    (line,) = [line for line in out.stderr.splitlines() if line.startswith("error: ")]
    assert "resume=true goes on" not in out.stderr.replace(line, "")
    return line


@pytest.mark.long
@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/last.ckpt"])
def test_a_run_without_its_last_checkpoint_is_not_begun_anew(run: Path, gone: str) -> None:
    shutil.rmtree(run / gone) if gone == "checkpoints" else (run / gone).unlink()
    line = refused(run, f"run_dir={run}", "resume=true")
    assert f"run_dir={run}: cannot go on: checkpoints/last.ckpt is not there, but metrics.csv, stages.jsonl, " in line
    assert ("copy good.ckpt there" in line) == (gone != "checkpoints")
    assert "holds metrics.csv, stages.jsonl, summary.json" in refused(run, *TINY, f"run_dir={run}")


@pytest.mark.parametrize("kept", ["metrics.csv", "stages.jsonl", "summary.json", "evaluations", "accuracy.png"])
def test_each_thing_measured_keeps_others_out(run: Path, kept: str) -> None:
    for path in run.iterdir():
        if path.name not in (kept, "config.yaml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=f"holds {kept}"):
        chosen(run_dir=str(run), resume=False)
    assert chosen(run_dir=str(run), resume=True) == run
    with pytest.raises(UserError, match=f"not there, but {kept}"):
        require_checkpoint_or_nothing(run)


def test_names_that_are_made_up_pass_over_what_is_left_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = Path("outputs/mine")
    for name in ("seed0", "seed0-2", "seed0-3"):
        (base / name / "checkpoints").mkdir(parents=True)
    (base / "seed0/metrics.csv").write_text("step\n1\n")
    (base / "seed0-2/summary.json").write_text("{}")
    (base / "seed0-3/checkpoints/last.ckpt").write_bytes(b"")
    assert chosen(resume=False) == base / "seed0-4"
    assert chosen(resume=True) == base / "seed0-3"


@pytest.mark.long
def test_a_sweep_leaves_jobs_alone_whose_checkpoints_are_gone(tmp_path: Path) -> None:
    """Finished ones stay finished; one that is to train for longer cannot, and says so."""
    folder = tmp_path / "sweep"
    arguments = ("-m", *TINY, "trainer.log_every_n_steps=1", "seed=0,1", f"run_dir={folder}")
    command("train", *arguments, "trainer.duration=2steps")
    shutil.rmtree(folder / "seed0/checkpoints")
    before = content(folder / "seed0")
    out = command("train", *arguments, "trainer.duration=2steps", "resume=true")
    assert "2 finished already" in out.stdout
    assert content(folder / "seed0")["metrics.csv"] == before["metrics.csv"]
    out = command("train", *arguments, "trainer.duration=4steps", "resume=true", check=False)
    assert out.returncode == 2 and "1 of 2 jobs failed" in out.stderr
    assert "cannot go on: checkpoints/last.ckpt is not there" in out.stderr and "this job begins anew" in out.stderr
    for name in ("metrics.csv", "stages.jsonl", "summary.json"):
        assert content(folder / "seed0")[name] == before[name]


@pytest.mark.long
@pytest.mark.parametrize("link", ["checkpoints", "."])
def test_a_dangling_link_is_named(run: Path, tmp_path: Path, link: str) -> None:
    place = run / link
    shutil.rmtree(place)
    place.symlink_to(tmp_path / "not-mounted")
    for more in ((), ("resume=true",)):
        out = command("train", *TINY, f"run_dir={run}", *more, check=False)
        assert out.returncode == 2 and "Traceback" not in out.stderr
        line = out.stderr.splitlines()[-1]
        assert "File exists" not in line and ("holds metrics.csv" in line or "not there" in line)
    assert place.is_symlink() and not (tmp_path / "not-mounted").exists()


@pytest.mark.long
def test_without_its_metrics_a_run_goes_on_and_invents_nothing(run: Path) -> None:
    (run / "metrics.csv").unlink()
    out = command("train", f"run_dir={run}", "resume=true", "trainer.duration=2epochs")
    assert "metrics.csv is missing: the new one begins at step 20" in out.stderr
    assert {int(row["step"]) for row in all_rows(run / "metrics.csv")} == {25, 30, 35, 40}
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["val_accuracy"], summary["removed_at_95"], summary["steps"]) == (None, None, 40)
    assert summary["test_accuracy"] is not None
    (run / "metrics.csv").unlink()  # and where nothing is left to be trained
    command("train", f"run_dir={run}", "resume=true")
    assert [row["step"] for row in all_rows(run / "metrics.csv")] == ["40"]


@pytest.mark.long
def test_a_run_stopped_before_its_first_checkpoint_begins_anew_on_resume_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(folder, end="before the step,3,SIGKILL").returncode == -9
    assert [row["step"] for row in metrics(folder)] == ["1", "2", "3"]
    line = refused(folder, *RUN, f"run_dir={folder}")
    assert "holds a run that has no checkpoint yet; resume=true begins it anew" in line
    # Once there was one, it does not any more.
    assert start(folder, "resume=true", "trainer.duration=1epochs").returncode == 0
    shutil.rmtree(folder / "checkpoints")
    assert "cannot go on" in refused(folder, *RUN, "trainer.duration=1epochs", f"run_dir={folder}", "resume=true")


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("model.type=nonsense",), "model.type=nonsense"),
        *(
            pytest.param(arguments, words, marks=pytest.mark.long)
            for arguments, words in [
                (("logger=wandb",), "logger=wandb: W&B does not start"),
                (("task=file", "task.train=nowhere.jsonl"), "nowhere.jsonl"),
                (("trainer=gpu", "trainer.devices=512", "data.batch_size=512"), "CUDA device"),
            ]
        ),
    ],
)
def test_a_start_that_fails_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    env = {"PYTHONPATH": str(REPO), "WANDB_MODE": "online", "WANDB_API_KEY": "", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    own = [one for one in SMALL if not one.startswith("task") or "task=file" not in arguments]
    for run_dir in ((), ("run_dir=new/deeper/run",)):
        assert words in refused(tmp_path, *own, *arguments, *run_dir, cwd=tmp_path, **env)
    # The user's own stays: a folder, and notes.
    (tmp_path / "new").mkdir()
    (tmp_path / "new/notes.txt").write_text("mine")
    refused(tmp_path, *own, *arguments, "run_dir=new", cwd=tmp_path, **env)


def test_a_start_that_fails_touches_nothing_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what came into the folder in the meantime nor large files of the user's that lie there are its business."""
    monkeypatch.setattr(processes, "share_folder", lambda path: None)
    folder = tmp_path / "run"
    with pytest.raises(ValueError), at_work(folder):
        (folder / "model").mkdir()
        (folder / "model/config.json").write_text("{}")
        (folder / "config.yaml").write_text("of the start")
        (folder / "notes.txt").write_text("mine")
        raise ValueError
    assert content(folder) == {"notes.txt": b"mine"} and not (folder / ".lock").exists()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"reads {path}"))
    with at_work(folder):
        pass


def test_a_first_checkpoint_that_was_not_noted_is_noted_when_training_goes_on(tmp_path: Path) -> None:
    marks.training_begins(tmp_path)
    assert marks.has_no_checkpoint_yet(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    marks.training_begins(tmp_path)
    assert not marks.has_no_checkpoint_yet(tmp_path)


def test_a_resume_that_fails_leaves_the_run_as_it_was(run: Path) -> None:
    line = refused(
        run, f"run_dir={run}", "resume=true", "trainer.duration=2epochs", "logger=wandb", WANDB_MODE="online",
        WANDB_API_KEY="", HOME=str(run.parent),
    )  # fmt: skip
    assert "W&B does not start" in line


STOPS = ("SIGUSR1", "SIGHUP", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGQUIT")


@pytest.mark.parametrize("name", [STOPS[0], *(pytest.param(name, marks=pytest.mark.long) for name in STOPS[1:])])
def test_every_signal_that_ends_a_program_ends_a_run_after_its_step(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    out = start(folder, end=f"between micro-batches,33,{name}")
    assert out.returncode == 128 + getattr(signal, name), out.stderr[-2000:]
    assert out.stderr.endswith(f"stopped; the same command with run_dir={folder} resume=true goes on\n")
    assert (state(folder)["global_step"], int(metrics(folder)[-1]["step"])) == (34, 34)


@pytest.mark.long
def test_a_run_stopped_by_a_hangup_goes_on_as_if_uninterrupted(tmp_path: Path) -> None:
    assert start(tmp_path / "whole").returncode == 0
    assert start(tmp_path / "run", end="in validation,40,SIGHUP").returncode == 128 + signal.SIGHUP
    assert start(tmp_path / "run", "resume=true").returncode == 0
    assert_the_same(tmp_path / "whole", tmp_path / "run")


def endless(folder: Path, **popen: Any) -> subprocess.Popen[str]:
    arguments = ["-m", "stepwise_pl.train", *RUN, "trainer.duration=100000epochs", f"run_dir={folder}"]
    popen = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, **popen}
    return background.start(*arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, **popen)


def until(there: Path) -> None:
    for _ in range(600):
        if there.exists():
            return
        time.sleep(0.2)
    raise TimeoutError(str(there))


@pytest.mark.long
def test_under_nohup_a_hangup_is_ignored(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = endless(folder, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    until(folder / "checkpoints/last.ckpt")
    process.send_signal(signal.SIGHUP)
    before = state(folder)["global_step"]
    for _ in range(300):
        if state(folder)["global_step"] > before + 7:
            break
        time.sleep(0.2)
    assert process.poll() is None and state(folder)["global_step"] > before + 7
    process.send_signal(signal.SIGUSR1)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, stderr


@pytest.mark.long
def test_a_terminal_that_is_closed_ends_a_run_saved(tmp_path: Path) -> None:
    """The terminal answers with an error to all that the progress bar writes from then on."""
    folder = tmp_path / "run"
    ours, theirs = pty.openpty()
    process = endless(folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    for _ in range(600):
        try:
            os.read(ours, 1 << 16)
        except BlockingIOError:
            time.sleep(0.05)
        if (folder / "checkpoints/last.ckpt").exists():
            break
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert state(folder)["global_step"] == int(metrics(folder)[-1]["step"])


@pytest.mark.long
def test_a_sweep_stops_on_a_hangup_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = [
        "-m",
        "stepwise_pl.train",
        "-m",
        *RUN,
        "trainer.duration=100000epochs",
        "seed=0,1",
        f"run_dir={folder}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = background.start(*arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    until(folder / "seed0/checkpoints/last.ckpt")
    process.send_signal(signal.SIGHUP)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP, stderr
    assert stderr.endswith("stopped; the same command with resume=true goes on\n")
    assert state(folder / "seed0")["global_step"] == int(metrics(folder / "seed0")[-1]["step"])
    assert not (folder / "seed1/config.yaml").exists()


@pytest.mark.long
def test_what_is_said_of_a_stopped_run_is_true(tmp_path: Path) -> None:
    """Before the first checkpoint, in the middle, and where a loss that is not finite would only come again."""
    early = start(tmp_path / "early", end="before the step,3,exception")
    assert f"stopped before the first checkpoint; the same command with run_dir={tmp_path / 'early'} resume=true begins anew" in early.stderr  # fmt: skip
    later = start(tmp_path / "later", end="before the step,30,exception")
    assert f"stopped; the same command with run_dir={tmp_path / 'later'} resume=true goes on" in later.stderr
    diverged = start(tmp_path / "diverged", options=("--weights=nan,0,33",))
    assert diverged.returncode == 2 and "stopped;" not in diverged.stderr


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before the test"])
def test_killed_at_the_very_end_the_row_of_the_test_is_the_same(tmp_path: Path, moment: str) -> None:
    assert start(tmp_path / "whole").returncode == 0
    assert start(tmp_path / "run", end=f"{moment},80,SIGKILL").returncode == -9
    assert start(tmp_path / "run", "resume=true").returncode == 0
    assert_the_same(tmp_path / "whole", tmp_path / "run")
    assert metrics(tmp_path / "run")[-1]["epoch"] == "3"


def test_what_a_killed_write_of_a_checkpoint_left_is_gone(run: Path) -> None:
    (run / "checkpoints/removed-1.tmp").write_bytes(b"half")
    command("train", f"run_dir={run}", "resume=true", "trainer.duration=22steps")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "good.ckpt", "last.ckpt"]
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 22


def test_a_stopped_run_is_told_how_it_goes_on(tmp_path: Path) -> None:
    assert how_to_go_on(tmp_path) == "stopped before training began; the same command begins anew"
    (tmp_path / "checkpoints").mkdir()
    marks.training_begins(tmp_path)
    before_the_first = how_to_go_on(tmp_path)
    assert before_the_first.startswith("stopped before the first checkpoint; ")
    assert before_the_first.endswith(f"run_dir={tmp_path} resume=true begins anew")
    (tmp_path / "checkpoints/last.ckpt").touch()
    marks.checkpoint_written(tmp_path)
    assert how_to_go_on(tmp_path) == f"stopped; the same command with run_dir={tmp_path} resume=true goes on"


def test_a_folder_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="holds a sweep; give its command again, with --multirun and resume=true"):
        chosen(run_dir=str(tmp_path), resume=True)
    begun = tmp_path / "begun"
    begun.mkdir()
    marks.training_begins(begun)
    (begun / "metrics.csv").write_text("step\n1\n")
    with pytest.raises(UserError, match="holds a run that has no checkpoint yet; resume=true begins it anew"):
        chosen(run_dir=str(begun))
    with pytest.raises(UserError, match="nothing to resume, checkpoints/last.ckpt is not there; leave resume=true out"):
        chosen(run_dir=str(tmp_path / "nowhere"), resume=True)


def test_a_folder_in_which_another_process_works_is_refused_until_that_process_ends(tmp_path: Path) -> None:
    code = """
import pathlib, sys
from stepwise_pl.runs.at_work import lock
lock(pathlib.Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""
    other = background.start("-c", code, str(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=f"another process is at work in it \\(process {other.pid} on "):
        lock(tmp_path)
    other.communicate("")
    lock(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    unlock(tmp_path)


def test_a_finished_run_is_one_with_the_configuration_of_now(tmp_path: Path) -> None:
    config = Config(task=Multiplication(), schedule=Linear(), method=Stepwise())
    save_yaml(to_plain(config), tmp_path / "config.yaml")
    assert resumed_config.finished(tmp_path, config) is None
    (tmp_path / "summary.json").write_text('{"steps": 4}')
    assert resumed_config.finished(tmp_path, config) == {"steps": 4}
    elsewhere = Config(task=Multiplication(), schedule=Linear(), method=Stepwise(), run_dir="elsewhere")
    assert resumed_config.finished(tmp_path, elsewhere) == {"steps": 4}  # the folder changes no weights
    faster = Config(task=Multiplication(), schedule=Linear(delta=2), method=Stepwise())
    assert resumed_config.finished(tmp_path, faster) is None


def test_a_run_that_lost_its_metrics_invents_no_objective(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,attempt,schedule/removed_tokens,val/answer_accuracy,val/answer_accuracy_any_length,val/examples\n40,0,2,1,1,500\n"
    )
    (tmp_path / "environment.json").write_text('{"sessions": [{"from_step": 0}]}')
    assert on_validation(tmp_path) == {"val_accuracy": 1.0, "val_accuracy_any_length": 1.0, "removed_at_95": 2}
    (tmp_path / "environment.json").write_text(
        '{"sessions": [{"from_step": 0}, {"from_step": 20, "metrics_lost": true}]}'
    )
    assert set(on_validation(tmp_path).values()) == {None}


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_takes_no_folder_of_an_exported_model(tmp_path: Path, resume: bool) -> None:
    for name in ("config.json", "model.safetensors", "accuracy.png"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="holds an exported model; choose another run_dir"):
        chosen(run_dir=str(tmp_path), resume=resume)
