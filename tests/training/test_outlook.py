"""The start of a real run: its announcements come true in metrics.csv, and its pace is measured without its warm-up."""

import logging
import re
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from stepwise_pl.config.request import Request, SweepLength
from stepwise_pl.runs.records import read_metrics
from stepwise_pl.schedules import Linear
from stepwise_pl.train import train
from stepwise_pl.training import progress
from stepwise_pl.training.outlook import Outlook
from tests.config.test_config import composed
from tests.training.test_module import fit

# 8 CoT tokens, and 4 steps in an epoch.
TINY = (
    "task=mult2x2", "task.train_size=64", "task.validation_size=8", "task.test_size=8", "model.layers=1", "model.heads=2",
    "model.width=32", "data.batch_size=16", "data.cache_dir=null", "trainer.log_every_n_steps=1",
    "trainer.validate_every_epochs=3", "trainer.duration=9epochs", "logger=csv",
)  # fmt: skip


def run(folder: Path, *overrides: str, asked: Request | None = None) -> list[dict[str, str]]:
    """Train in this process; return the rows of metrics.csv that training wrote."""
    train(composed(*TINY, f"run_dir={folder}", *overrides), asked or Request("run"))
    return [row for row in read_metrics(folder / "metrics.csv") if row["train/loss"]]


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if text in record.getMessage()]


@pytest.mark.parametrize(
    "overrides,goal",
    [
        (["schedule.delta=1"], 8),
        (["schedule.delta=3"], 8),
        (["schedule.delta=5/3", "schedule.pretrain_epochs=1.5"], 8),
        (["schedule.delta=2", "schedule.remove_all_beyond=3"], 8),
        (["schedule.delta=1", "schedule.remove_at_most=5"], 5),
        (["schedule.delta=1/2", "trainer.duration=30steps"], 8),
        (["schedule.delta=1/5", "trainer.duration=8steps"], 8),
        (["schedule=no_cot"], 8),
        (["schedule=explicit_cot"], 0),
        (["schedule.delta=3", "method.unit=step", "trainer.accumulate_grad_batches=2"], 8),
    ],
)
def test_tokens_are_gone_at_the_step_that_was_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, overrides: list[str], goal: int
) -> None:
    caplog.set_level(logging.INFO)
    rows = run(tmp_path / "run", *overrides)
    steps = int(rows[-1]["step"])
    gone = {int(row["step"]): int(float(row["schedule/removed_tokens"])) for row in rows}
    assert list(gone) == list(range(1, steps + 1))
    assert [record.getMessage() for record in said(caplog, "length: ")] == [
        f"length: {steps} steps of 16 examples: {steps * 16} examples, {steps / 4:g} epochs of 4 steps"
    ]
    (line,) = [one for one in said(caplog, "CoT") if one.name.endswith(".outlook")]
    text, first = line.getMessage(), next((step for step, count in gone.items() if count == goal), None)
    assert line.levelno == (logging.WARNING if first is None else logging.INFO)
    if first is None:
        count = gone[steps]
        assert text.startswith(f"{f'only {count}' if count else 'none'} of 8 CoT tokens will be gone when the run ends")
    elif goal == 0:
        assert text == "CoT: all 8 tokens stay (explicit CoT)"
    elif first == 1:
        assert text == "all 8 CoT tokens are gone from the first step on"
    else:
        assert text.endswith(f"will be gone at step {first} of {steps}")


def test_a_run_introduces_itself_and_a_resumed_one_says_what_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path / "run", "trainer.duration=6steps", "schedule.delta=1")
    assert said(caplog, "device: cpu, precision 32-true") and said(
        caplog, "data: 64 train, 8 validation, 8 test examples"
    )
    (line,) = said(caplog, "model: ")
    assert re.fullmatch(r"model: \d+,\d{3} parameters", line.getMessage())
    caplog.clear()
    asked = Request("run", given=frozenset({"trainer.duration"}))
    rows = run(tmp_path / "run", "trainer.duration=34steps", "schedule.delta=1", "resume=true", asked=asked)
    assert said(
        caplog,
        "length: 34 steps of 16 examples: 544 examples, 8.5 epochs of 4 steps; goes on after step 6, 28 steps left",
    )
    first = next(row["step"] for row in rows if row["schedule/removed_tokens"] == "8")
    assert said(caplog, f"all 8 CoT tokens will be gone at step {first} of 34")
    # The step after the start is not measured.
    assert said(caplog, "the rest of the run takes at most about ") and said(caplog, "(measured over 20 steps")


def test_the_first_job_of_a_sweep_tells_its_length_even_if_it_is_short(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked = Request("run", job="1/3", sweep=SweepLength(3, 1e6, 2))
    run(tmp_path / "run", "trainer.duration=6steps", asked=asked)
    (line,) = said(caplog, "the whole sweep takes")
    assert line.getMessage().endswith("for 3 jobs with 2 at a time, if all keep this pace")
    assert not said(caplog, "the run takes")


def test_a_log_without_validations_is_not_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    run(tmp_path / "run", "trainer.validate_every_epochs=0", "trainer.duration=4steps", "schedule.delta=4")
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    shape = (
        r"step {} of 4, 0:00:\d\d(, [\d,]+ examples per second, 1 s left)?: {} of 8 CoT tokens gone, train loss \d\.\d+"
    )
    for step, line in enumerate(lines[:4], 1):
        assert re.fullmatch(shape.format(step, step - 1) if step < 4 else "step 4 of 4, .*", line)
        assert "accuracy" not in line
    # The validation after the last step.
    assert len(lines) == 5 and re.fullmatch(r"step 4 of 4, .*: 3 of 8 CoT tokens gone, .*, accuracy \d+\.\d%", lines[4])


class Slow(Callback):
    """Takes a known time for the first step, for each later one, and for a validation."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        time.sleep(0.05 if trainer.global_step else 0.5)

    def on_validation_start(self, *args: Any) -> None:
        time.sleep(0.01)

    def on_validation_batch_end(self, *args: Any) -> None:
        time.sleep(0.2)


def test_the_pace_leaves_out_the_first_step_and_counts_validations_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outlook = Outlook(composed("trainer.duration=24steps", "data.batch_size=8"))
    _, spy = fit(tmp_path, Linear(delta=4), steps=24, every_epochs=1, callbacks=(Slow(), outlook))
    count = len(spy.validated)
    assert outlook.measured == 23 and count == 3
    assert 0.05 <= outlook.step_seconds < 0.12
    assert 0.2 * count <= outlook.validation_seconds < 0.2 * count + 1
    assert outlook.seconds(48) == pytest.approx(48 * outlook.step_seconds + 2 * outlook.validation_seconds)
    (line,) = said(caplog, "the run takes at most about")
    assert "; validations come on top" not in line.getMessage()
