"""Write metrics into the run folder: metrics.csv always, TensorBoard files by choice. `wandb_runs` is for W&B."""

import csv
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from stepwise_pl.runs.records import all_rows, is_behind

log = logging.getLogger(__name__)

COLUMNS = (
    "step", "attempt", "epoch", "schedule/removed_tokens", "train/loss", "val/loss", "val/answer_accuracy", "val/token_accuracy",
)  # fmt: skip
# Metrics that a dashboard shows against the number of removed tokens.
VERSUS_REMOVED = (
    "val/answer_accuracy", "val/answer_accuracy_any_length", "val/token_accuracy", "val/loss", "val/perplexity",
    "test/answer_accuracy", "test/answer_accuracy_any_length",
)  # fmt: skip


def as_text(value: float) -> str:
    """A number with seven digits; a whole number with all of its digits."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 2**53 else f"{value:.7g}"


class MetricsFile(Logger):
    """Appends every logged row to one CSV file. A new metric adds a column to the whole file.

    Lightning's CSVLogger deletes the file of an earlier start. Here a resumed run drops the
    rows after its checkpoint, because they come again, and appends to the rest. After a
    rollback of the guard the old rows stay, and the rows that follow have an `attempt` one
    higher (`records.read_metrics` leaves out the rows that were given up).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = list(COLUMNS)
        if path.is_file():
            self.columns = list(csv.DictReader(path.open(encoding="utf-8", newline="")).fieldnames or COLUMNS)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": str(step), **{key: as_text(value) for key, value in metrics.items()}}
        new = [key for key in row if key not in self.columns]
        self.path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed the run folder
        if new or not self.path.is_file():
            rows = all_rows(self.path) if self.path.is_file() else []
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def resume_from(self, step: int, attempt: int) -> None:
        """Drop the rows that come again: this attempt's rows after optimizer step `step`, and the final test."""
        if not self.path.is_file():
            return
        rows = all_rows(self.path)  # without a row that a killed process has cut off
        self._rewrite([row for row in rows if is_behind(row, step, attempt) and not row.get("test/loss")])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


class Throughput:
    """Adds examples per second to training rows. For loggers whose rows may differ between runs of one seed.

    The time is measured from the training row before. If a validation came between, the row
    gets no such value.

    Args:
        batch_size: examples per optimizer step.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._last: tuple[int, float] | None = None

    def added(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """The row, with `train/examples_per_second` if the row before is a training row too."""
        now, before = time.perf_counter(), self._last
        self._last = (step, now) if "train/lr" in metrics else None
        if self._last is None or before is None or step <= before[0]:
            return dict(metrics)
        return {**metrics, "train/examples_per_second": (step - before[0]) * self.batch_size / (now - before[1])}


class TensorBoard(TensorBoardLogger):
    """Event files under `tensorboard/` in the run folder, in one subfolder for each start.

    TensorBoard knows one x-axis, steps. The scalars under `versus_removed_tokens/` therefore
    put the number of removed tokens in place of the step.
    """

    def __init__(self, run_dir: Path, batch_size: int) -> None:
        number = len(list((run_dir / "tensorboard").glob("*")))
        super().__init__(save_dir=run_dir, name="tensorboard", version=f"start{number + 1}")
        self.throughput = Throughput(batch_size)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        pass  # config.yaml has the hyper-parameters

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()  # Lightning's own `save` would also write a file of hyper-parameters

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(self.throughput.added(metrics, int(step or 0)), step)
        for name in VERSUS_REMOVED:
            if name in metrics:
                removed = round(metrics["schedule/removed_tokens"])
                self.experiment.add_scalar(f"versus_removed_tokens/{name}", metrics[name], removed)
