"""Where metrics go: metrics.csv always, Weights & Biases by choice."""

import csv
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from stepwise_pl.config import LoggerConfig
from stepwise_pl.errors import UserError, first_line

log = logging.getLogger(__name__)

COLUMNS = (
    "step", "epoch", "schedule/removed_tokens", "train/loss", "val/loss", "val/answer_accuracy", "val/token_accuracy",
)  # fmt: skip
# Metrics that a dashboard shows against the number of removed tokens.
VERSUS_REMOVED = (
    "val/answer_accuracy", "val/token_accuracy", "val/loss", "val/perplexity", "test/answer_accuracy",
)  # fmt: skip


class MetricsFile(Logger):
    """Appends every logged row to one CSV file. A new metric adds a column to the whole file.

    Lightning's CSVLogger deletes the file of an earlier start; here a resumed run goes on
    in it, and rows after the step it resumes from are dropped, because they come again.
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
        row = {"step": str(step), **{key: f"{value:.7g}" for key, value in metrics.items()}}
        new = [key for key in row if key not in self.columns]
        self.path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed the run folder
        if new or not self.path.is_file():
            rows = read_metrics(self.path) if self.path.is_file() else []
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def resume_from(self, step: int) -> None:
        """Drop the rows of optimizer steps after `step`, which come again, and those of the final test."""
        if self.path.is_file():
            text = self.path.read_text(encoding="utf-8")
            if not text.endswith("\n"):  # killed while writing a row
                self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
            rows = read_metrics(self.path)
            self._rewrite([row for row in rows if int(row["step"]) <= step and not row.get("test/loss")])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; cells are text, empty where a row has no such metric."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what W&B does to the process, so that the next job of a sweep starts clean.

    Lightning's logger sets WANDB_MODE for good, and an unfinished run would be reused by the next logger.
    """
    before = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
    try:
        yield
    finally:
        if (wandb := sys.modules.get("wandb")) is not None:
            wandb.finish()
        for key in [key for key in os.environ if key.startswith("WANDB_")]:
            del os.environ[key]
        os.environ.update(before)


class CarefulWandbLogger(WandbLogger):
    """A W&B logger whose failures do not stop the run: what it would log is in metrics.csv all the same."""

    failed = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self.failed:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:
            self.failed = True
            log.warning(
                "W&B takes no more metrics (%s); training goes on, and metrics.csv has them all", first_line(error)
            )


def wandb_logger(cfg: LoggerConfig, run_dir: Path, name: str, config: Mapping[str, Any]) -> WandbLogger:
    """A W&B run whose validation metrics have the number of removed tokens as their x-axis.

    Its id is kept in the run folder, so that a resumed run goes on in it.
    """
    id_file = run_dir / "wandb_id.txt"
    run_id = id_file.read_text().strip() if id_file.is_file() else None
    logger = CarefulWandbLogger(
        name=name, save_dir=run_dir, project=cfg.project, entity=cfg.entity, group=cfg.group, offline=cfg.offline,
        id=run_id, resume="allow", job_type="train", config=dict(config),
    )  # fmt: skip
    try:
        run = logger.experiment
    except Exception as error:
        raise UserError(
            f"logger=wandb: W&B does not start ({first_line(error)}); log in, or add logger.offline=true"
        ) from None
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        id_file.write_text(run.id)
        run.define_metric("schedule/removed_tokens")
        for metric in VERSUS_REMOVED:
            run.define_metric(metric, step_metric="schedule/removed_tokens")
    return logger
