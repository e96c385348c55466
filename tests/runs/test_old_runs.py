"""A run and a sweep that an earlier version wrote (commit cd7dcba) are read, evaluated, reported and gone on with.

tests/runs/old/cd7dcba.tar.xz was made there by `train` with the arguments in its environment.json, without figures.
"""

import csv
import json
import tarfile
from pathlib import Path

import pytest

from stepwise_pl.config.run import Config
from stepwise_pl.methods import Stepwise
from stepwise_pl.runs.saved_config import saved_config
from tests.conftest import command

# The arguments of that run, as this version takes them.
SAME = (
    "task=mult2x2", "task.digits=1", "task.split=ordered", "task.validation_size=8", "task.test_size=8", "model.layers=1",
    "model.heads=1", "model.width=8", "model.positions=16", "data.batch_size=8", "data.epoch_size=64", "data.cache_dir=null",
    "optimizer.lr=5e-3", "trainer.log_every_n_steps=4", "schedule.rewarmup_steps=2",
    "trainer.keep_every_removed=1",
)  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "old" / "cd7dcba.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_its_configuration_is_brought_up_to_date(old: Path) -> None:
    config = saved_config(old / "run")
    assert isinstance(config, Config)
    assert config.method == Stepwise(unit="token", side="left", keep_position=False)
    assert (config.schedule.smoothing, config.schedule.mix) == (4.0, 0.0)


def test_it_is_evaluated_as_it_was(old: Path) -> None:
    before = json.loads((old / "run" / "evaluations" / "best-test-removed2.json").read_text())
    command("evaluate", "run", cwd=old)
    after = json.loads((old / "run" / "evaluations" / "best-test-removed2.json").read_text())
    for key in ("loss", "token_accuracy", "answer_accuracy", "removed_tokens", "examples", "step"):
        assert after[key] == pytest.approx(before[key], rel=1e-5), key


def test_run_and_sweep_are_reported(old: Path) -> None:
    out = command("report", "run", "sweep", "out=page.html", cwd=old).stdout
    page = (old / "page.html").read_text()
    assert "report of 3 runs" in out and "Δ=1, λ=4" in page and "Δ=2, λ=4" in page


def test_it_is_gone_on_with(old: Path) -> None:
    command("train", *SAME, "schedule.delta=1", "trainer.duration=4epochs", "run_dir=run", "resume=true", cwd=old)
    with (old / "run" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == list(range(4, 33, 4))


def test_its_sweep_is_read_and_grows(old: Path) -> None:
    assert "2 jobs" in command("sweep", "sweep", cwd=old).stdout.replace("2 of 2 jobs", "2 jobs")
    arguments = ("trainer.duration=3epochs", "schedule.delta=1,2", "seed=0,1", "run_dir=sweep", "resume=true")
    out = command("train", "-m", *SAME, *arguments, cwd=old).stdout
    assert "2 finished already" in out and (old / "sweep" / "delta-2" / "seed1" / "summary.json").is_file()
