"""A run is as long as `trainer.duration` says, whatever else changes, and the learning rate falls at its true end."""

import csv
from pathlib import Path

import pytest

from tests.conftest import command

TINY = (
    "experiment=quickstart", "task.train_size=400", "task.validation_size=8", "task.test_size=8", "data.cache_dir=null",
    "model.layers=1", "model.heads=1", "model.width=8", "data.eval_batch_size=8", "trainer.log_every_n_steps=1",
    "schedule.check_every=1000", "trainer.keep_every_removed=0",
)  # fmt: skip


@pytest.mark.parametrize(
    "words,steps",
    [
        (("trainer.duration=12steps", "data.batch_size=256"), 12),
        (("trainer.duration=2epochs", "data.epoch_size=384"), 12),
        (("trainer.duration=2.5epochs", "data.epoch_size=256", "trainer.validate_every_epochs=0"), 10),
        (("trainer.duration=768 examples",), 12),
    ],
)
def test_a_run_has_its_whole_fall(words: tuple[str, ...], steps: int, tmp_path: Path) -> None:
    command("train", *TINY, *words, "optimizer.warmup_steps=0", f"run_dir={tmp_path / 'run'}")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["train/lr"]) for row in rows if row["train/lr"]]
    fall = round(steps / 4)
    assert len(rates) == steps
    factors = [1.0] * (steps - fall) + [(fall - n) / fall for n in range(fall)]
    assert [rate / rates[0] for rate in rates] == pytest.approx(factors)
    # The last step is validated once, also in the middle of an epoch.
    assert [int(row["step"]) for row in rows if row["val/answer_accuracy"]][-1:] == [steps]
    assert sum(bool(row["val/answer_accuracy"]) and int(row["step"]) == steps for row in rows) == 1
