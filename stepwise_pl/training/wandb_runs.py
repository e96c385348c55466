"""Weights & Biases, by choice: a run's metrics, tables and model. A failure of W&B never stops a run."""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from stepwise_pl.common.disk import read_json, write_text
from stepwise_pl.common.errors import UserError, first_line, go_on_without
from stepwise_pl.common.statistics import wilson
from stepwise_pl.config.training import LoggerConfig
from stepwise_pl.runs.predictions import Prediction
from stepwise_pl.runs.records import read_stage_records
from stepwise_pl.training.loggers import VERSUS_REMOVED, Throughput

log = logging.getLogger(__name__)

PREDICTIONS = 200  # of an evaluation, at most, that are sent to W&B


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo W&B's changes to the process, so that the next job of a sweep starts clean.

    Lightning's logger sets WANDB_MODE for good, and the next logger would reuse an unfinished run.
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
    """End the open W&B run, if there is one, and note the steps that W&B has. A failure is only logged."""
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
    """A W&B logger whose failures do not stop the run: metrics.csv has every row anyway.

    After a resume, steps come again. A row that W&B surely has is not logged again: a session
    that ends its W&B run notes how far W&B has come. A session that is killed leaves no such
    note, and its rows are logged again, with the same values.

    Args:
        notes: a JSON file in the run folder with the id of the W&B run, and the last step that
            W&B has of each attempt and kind of row.
        batch_size: examples per optimizer step.
    """

    def __init__(self, notes: Path, batch_size: int, **settings: Any) -> None:
        self.notes, self.failed = notes, False
        self.throughput = Throughput(batch_size)
        self.has: dict[str, int] = {}
        run_id = None
        if notes.is_file():
            found = read_json(notes)
            run_id, self.has = found["id"], found["has"]
        self._before = dict(self.has)
        super().__init__(id=run_id, **settings)

    @rank_zero_only
    def note(self) -> None:
        """Write the id of the W&B run, and the last steps that W&B has, into `notes`."""
        write_text(self.notes, json.dumps({"id": self.version, "has": self.has}) + "\n")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        kind = next((name for name in ("train", "val", "test") if f"{name}/loss" in metrics), "guard")
        key, step = f"{metrics.get('attempt', 0):.0f} {kind}", int(step or 0)
        if self.failed or step <= self._before.get(key, -1):
            return
        try:
            super().log_metrics(self.throughput.added(metrics, step), step)
            self.has[key] = step
        except Exception as error:
            self.failed = True
            log.warning(
                "W&B takes no more metrics (%s); training goes on, and metrics.csv has them all", first_line(error)
            )


_OPEN: list[CarefulWandbLogger] = []


def wandb_logger(cfg: LoggerConfig, run_dir: Path, config: Mapping[str, Any]) -> WandbLogger:
    """Start a W&B run, with the number of removed tokens as the x-axis of validation metrics.

    The run folder keeps the id of the W&B run, so that a resumed run continues the same one.

    Args:
        config: the run's configuration in plain containers; `derived` holds what follows from it.

    Raises:
        UserError: W&B does not start.
    """
    try:
        logger = CarefulWandbLogger(
            run_dir / "wandb.json", config["data"]["batch_size"], save_dir=run_dir, offline=cfg.offline, resume="allow",
            job_type="train", config=dict(config), **_settings(cfg, config["derived"]),
        )  # fmt: skip
        run = logger.experiment
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            run.define_metric("schedule/removed_tokens")
            for metric in VERSUS_REMOVED:
                run.define_metric(metric, step_metric="schedule/removed_tokens")
            write_text(run_dir / "wandb.json", json.dumps({"id": run.id, "has": logger.has}) + "\n")
            _OPEN[:] = [logger]
    except Exception as error:
        raise _not_started("logger=wandb", "logger.offline=true", error) from None
    return logger


def _settings(cfg: LoggerConfig, derived: Mapping[str, Any]) -> dict[str, Any]:
    """The W&B settings that training and evaluations of a run share."""
    import wandb

    return {
        "project": cfg.project, "entity": cfg.entity, "name": derived["name"], "group": derived.get("group"),
        "tags": derived.get("tags"),
        "settings": wandb.Settings(finish_timeout=cfg.finish_timeout, finish_timeout_raises=True),
    }  # fmt: skip


def _not_started(key: str, offline: str, error: Exception) -> UserError:
    return UserError(f"{key}: W&B does not start ({first_line(error)}); log in, or add {offline}")


def add_result(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Add the result of training to the open W&B run, if there is one. A failure is only logged.

    The numbers of `summary` go to the run's own summary, the lines of stages.jsonl to the
    tables `stages` and `samples` and to the chart of accuracy versus removed tokens.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    run = wandb.run
    with go_on_without("W&B's copy of the result"):
        low, high = summary["test_interval"]
        numbers = {"test_low": low, "test_high": high, "rollbacks": len(summary["rollbacks"])}
        keys = ("test_accuracy", "removed_tokens", "max_cot_tokens", "steps", "examples_seen", "examples_per_token",
                "seconds", "collapsed")  # fmt: skip
        run.summary.update(
            {f"result/{key}": value for key, value in {**{k: summary[k] for k in keys}, **numbers}.items()}
        )
        run.log({"stages": stage_table(run_dir), "samples": sample_table(run_dir)})
    title = "accuracy versus removed tokens"
    with go_on_without(f"W&B's chart of {title}"):
        stages = stage_table(run_dir)
        if stages.data:
            run.log({title: accuracy_chart(stages, title)})


def add_model(summary: Mapping[str, Any], model: Path) -> None:
    """Add an exported folder to the open W&B run, if there is one, as an artifact."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    low, high = summary["test_interval"]
    known = {"test_low": low, "test_high": high, "rollbacks": len(summary["rollbacks"]), "name": summary["name"]}
    artifact = wandb.Artifact(f"model-{wandb.run.id}", type="model", metadata=known)
    artifact.add_dir(str(model))
    wandb.run.log_artifact(artifact)


def accuracy_chart(stages: Any, title: str) -> Any:
    """A chart of accuracy over removed tokens, with a second line for answers of any length if that line differs."""
    import wandb

    x, accuracy, any_length = (
        stages.get_column(name) for name in ("removed_tokens", "accuracy", "accuracy_any_length")
    )
    if all(loose in (None, exact) for loose, exact in zip(any_length, accuracy, strict=True)):
        return wandb.plot.line(stages, "removed_tokens", "accuracy", title=title)
    keys = ["accuracy", "right at any length"]
    return wandb.plot.line_series([x, x], [accuracy, any_length], keys=keys, title=title, xname="removed_tokens")


def stage_table(run_dir: Path) -> Any:
    """A W&B table with a row per validation. Digits that no answer had are empty."""
    import wandb

    records = read_stage_records(path) if (path := run_dir / "stages.jsonl").is_file() else []
    digits = max((len(record["digits"]) for record in records), default=0)
    named = any("stage" in record for record in records)
    columns = ["accuracy", "low", "high", "examples", "accuracy_any_length"]
    table = wandb.Table(
        columns=[
            "step",
            "attempt",
            "removed_tokens",
            *["stage"] * named,
            *columns,
            *(f"digit {place + 1}" for place in range(digits)),
        ]
    )
    for record in records:
        low, high = wilson(record["accuracy"], record["examples"])
        missing = [None] * (digits - len(record["digits"]))
        table.add_data(
            record["step"], record["attempt"], record["removed_tokens"], *[record.get("stage")] * named,
            record["accuracy"], low, high, record["examples"], record.get("accuracy_any_length"), *record["digits"], *missing,
        )  # fmt: skip
    return table


def sample_table(run_dir: Path) -> Any:
    """A W&B table with the sample predictions of every validation."""
    import wandb

    records = read_stage_records(path) if (path := run_dir / "stages.jsonl").is_file() else []
    table = wandb.Table(columns=["step", "removed_tokens", "prompt", "target", "prediction", "right"])
    for record in records:
        for sample in record["samples"]:
            answer = (sample["prompt"], sample["target"], sample["prediction"], sample["right"])
            table.add_data(record["step"], record["removed_tokens"], *answer)
    return table


def start_run(
    run_dir: Path,
    cfg: LoggerConfig,
    config: Mapping[str, Any],
    *,
    job_type: str,
    offline: bool,
    about: Mapping[str, Any],
) -> Any:
    """Start a W&B run beside that of training, with its project, name, group and tags.

    Args:
        config: the configuration of the run, in plain containers.
        about: more that its configuration in W&B says.

    Raises:
        UserError: W&B does not start.
    """
    import wandb

    try:
        return wandb.init(
            dir=run_dir, job_type=job_type, mode="offline" if offline else "online", config={**config, **about},
            **_settings(cfg, config["derived"]),
        )  # fmt: skip
    except Exception as error:
        raise _not_started("wandb=true", "offline=true", error) from None


def log_evaluation(
    run_dir: Path,
    cfg: LoggerConfig,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    predictions: Sequence[Prediction],
    offline: bool,
) -> None:
    """Log an evaluation as a W&B run of job type `eval`: its numbers, and the first predictions.

    Raises:
        UserError: W&B does not start.
    """
    import wandb

    about = {k: summary[k] for k in ("checkpoint", "removed_tokens", "data_digest")}
    run = start_run(run_dir, cfg, config, job_type="eval", offline=offline, about={"evaluation": about})
    with go_on_without("W&B's copy of the evaluation"):
        run.summary.update(
            {f"eval/{k}": v for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        )
        table = wandb.Table(columns=["index", "prompt", "target", "prediction", "right"])
        for prediction in predictions[:PREDICTIONS]:
            table.add_data(
                prediction.index, prediction.prompt, prediction.target, prediction.prediction, prediction.right
            )
        run.log({"predictions": table})
