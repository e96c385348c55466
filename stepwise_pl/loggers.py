"""Where metrics go: metrics.csv always, Weights & Biases by choice."""

import csv
import json
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
from stepwise_pl.disk import write_text
from stepwise_pl.errors import UserError, first_line
from stepwise_pl.records import all_rows as all_rows
from stepwise_pl.records import is_behind
from stepwise_pl.records import read_attempts as read_attempts
from stepwise_pl.records import read_metrics as read_metrics

log = logging.getLogger(__name__)

COLUMNS = (
    "step", "attempt", "epoch", "schedule/removed_tokens", "train/loss", "val/loss", "val/answer_accuracy", "val/token_accuracy",
)  # fmt: skip
# Metrics that a dashboard shows against the number of removed tokens.
VERSUS_REMOVED = (
    "val/answer_accuracy", "val/token_accuracy", "val/loss", "val/perplexity", "test/answer_accuracy",
)  # fmt: skip


class MetricsFile(Logger):
    """Appends every logged row to one CSV file. A new metric adds a column to the whole file.

    Lightning's CSVLogger deletes the file of an earlier start; here a resumed run goes on
    in it, and rows after the step it resumes from are dropped, because they come again.
    Where the guard goes back, rows stay, and `attempt` of the rows that follow is one more
    (`read_metrics` leaves out what was given up).
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
            rows = all_rows(self.path) if self.path.is_file() else []
            self.columns += new
            self._rewrite(rows)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def resume_from(self, step: int, attempt: int) -> None:
        """Drop the rows of this attempt's optimizer steps after `step`, which come again, and those of the final test."""
        if not self.path.is_file():
            return
        text = self.path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # killed while writing a row
            write_text(self.path, text[: text.rfind("\n") + 1])
        rows = all_rows(self.path)
        self._rewrite([row for row in rows if is_behind(row, step, attempt) and not row.get("test/loss")])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what W&B does to the process, so that the next job of a sweep starts clean.

    Lightning's logger sets WANDB_MODE for good, and an unfinished run would be reused by the next logger.
    """
    before = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
    try:
        yield
    finally:
        finish_wandb()
        for key in [key for key in os.environ if key.startswith("WANDB_")]:
            del os.environ[key]
        os.environ.update(before)


def finish_wandb() -> None:
    """End the W&B run there is, if any, and note what it has; a failure is said, and costs nothing."""
    wandb = sys.modules.get("wandb")
    run = None if wandb is None else wandb.run
    if wandb is None or run is None:
        return
    folder = Path(run.dir).parent
    try:
        wandb.finish()
    except Exception as error:
        log.warning(
            "W&B has not taken all of the run (%s; `wandb sync %s` may send it later); metrics.csv has it all",
            first_line(error), folder,
        )  # fmt: skip
        return
    while _OPEN:
        _OPEN.pop().note()


class CarefulWandbLogger(WandbLogger):
    """A W&B logger whose failures do not stop the run: what it would log is in metrics.csv all the same.

    Rows of steps that come again after a resume are not logged again, as far as it is known
    that W&B has them: up to the last time that a session ended its W&B run. After a SIGKILL
    that is not known, and the rows since are logged again, with the same values.

    Args:
        notes: a JSON file in the run folder with the run's id, and the last step that W&B
            has of each attempt and kind of row.
    """

    def __init__(self, notes: Path, **settings: Any) -> None:
        self.notes, self.failed = notes, False
        self.has: dict[str, int] = {}
        run_id = None
        if notes.is_file():
            found = json.loads(notes.read_text(encoding="utf-8"))
            run_id, self.has = found["id"], found["has"]
        self._before = dict(self.has)
        super().__init__(id=run_id, **settings)

    @rank_zero_only
    def note(self) -> None:
        """Write down what W&B has."""
        write_text(self.notes, json.dumps({"id": self.version, "has": self.has}) + "\n")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        kind = next((name for name in ("train", "val", "test") if f"{name}/loss" in metrics), "guard")
        key, step = f"{metrics.get('attempt', 0):.0f} {kind}", int(step or 0)
        if self.failed or step <= self._before.get(key, -1):
            return
        try:
            super().log_metrics(metrics, step)
            self.has[key] = step
        except Exception as error:
            self.failed = True
            log.warning(
                "W&B takes no more metrics (%s); training goes on, and metrics.csv has them all", first_line(error)
            )


_OPEN: list[CarefulWandbLogger] = []


def wandb_logger(cfg: LoggerConfig, run_dir: Path, name: str, config: Mapping[str, Any]) -> WandbLogger:
    """A W&B run whose validation metrics have the number of removed tokens as their x-axis.

    Its id is kept in the run folder, so that a resumed run goes on in it.

    Raises:
        UserError: W&B does not start.
    """
    import wandb

    try:
        logger = CarefulWandbLogger(
            run_dir / "wandb.json", name=name, save_dir=run_dir, project=cfg.project, entity=cfg.entity,
            group=cfg.group, offline=cfg.offline, resume="allow", job_type="train", config=dict(config),
            settings=wandb.Settings(finish_timeout=cfg.finish_timeout, finish_timeout_raises=True),
        )  # fmt: skip
        run = logger.experiment
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            run.define_metric("schedule/removed_tokens")
            for metric in VERSUS_REMOVED:
                run.define_metric(metric, step_metric="schedule/removed_tokens")
            write_text(run_dir / "wandb.json", json.dumps({"id": run.id, "has": logger.has}) + "\n")
            _OPEN[:] = [logger]
    except Exception as error:
        raise UserError(
            f"logger=wandb: W&B does not start ({first_line(error)}); log in, or add logger.offline=true"
        ) from None
    return logger
