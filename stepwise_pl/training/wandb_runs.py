"""Weights & Biases: a run's metrics, tables and model, for those who choose it. Its failures cost nothing else."""

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

PREDICTIONS = 200  # of an evaluation, that W&B gets


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
        """Write down what W&B has."""
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
    """A W&B run whose validation metrics have the number of removed tokens as their x-axis.

    Its id is kept in the run folder, so that a resumed run goes on in it.

    Args:
        config: of the run, in plain containers, with what follows from it under `derived`.

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
    """What training and evaluations of a run have in common."""
    import wandb

    return {
        "project": cfg.project, "entity": cfg.entity, "name": derived["name"], "group": derived.get("group"),
        "tags": derived.get("tags"),
        "settings": wandb.Settings(finish_timeout=cfg.finish_timeout, finish_timeout_raises=True),
    }  # fmt: skip


def _not_started(key: str, offline: str, error: Exception) -> UserError:
    return UserError(f"{key}: W&B does not start ({first_line(error)}); log in, or add {offline}")


def add_result(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Give the open W&B run, if there is one, the result of its training; a failure is said, and costs nothing.

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
    """Give the open W&B run, if there is one, an exported folder as an artifact."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    low, high = summary["test_interval"]
    known = {"test_low": low, "test_high": high, "rollbacks": len(summary["rollbacks"]), "name": summary["name"]}
    artifact = wandb.Artifact(f"model-{wandb.run.id}", type="model", metadata=known)
    artifact.add_dir(str(model))
    wandb.run.log_artifact(artifact)


def accuracy_chart(stages: Any, title: str) -> Any:
    """A line over removed tokens, and one of answers of any length where those differ."""
    import wandb

    x, accuracy, at_all = (stages.get_column(name) for name in ("removed_tokens", "accuracy", "accuracy_any_length"))
    if all(one in (None, other) for one, other in zip(at_all, accuracy, strict=True)):
        return wandb.plot.line(stages, "removed_tokens", "accuracy", title=title)
    keys = ["accuracy", "right at any length"]
    return wandb.plot.line_series([x, x], [accuracy, at_all], keys=keys, title=title, xname="removed_tokens")


def stage_table(run_dir: Path) -> Any:
    """A W&B table with a row per validation; digits of the answer that none had are empty."""
    import wandb

    records = read_stage_records(path) if (path := run_dir / "stages.jsonl").is_file() else []
    digits = max((len(one["digits"]) for one in records), default=0)
    columns = ["step", "attempt", "removed_tokens", "accuracy", "low", "high", "examples", "accuracy_any_length"]
    table = wandb.Table(columns=[*columns, *(f"digit {place + 1}" for place in range(digits))])
    for one in records:
        low, high = wilson(one["accuracy"], one["examples"])
        row = [one["step"], one["attempt"], one["removed_tokens"], one["accuracy"], low, high, one["examples"]]
        table.add_data(*row, one.get("accuracy_any_length"), *one["digits"], *[None] * (digits - len(one["digits"])))
    return table


def sample_table(run_dir: Path) -> Any:
    """A W&B table with the sample predictions of every validation."""
    import wandb

    records = read_stage_records(path) if (path := run_dir / "stages.jsonl").is_file() else []
    table = wandb.Table(columns=["step", "removed_tokens", "prompt", "target", "prediction", "right"])
    for one in records:
        for sample in one["samples"]:
            answer = (sample["prompt"], sample["target"], sample["prediction"], sample["right"])
            table.add_data(one["step"], one["removed_tokens"], *answer)
    return table


def log_evaluation(
    run_dir: Path,
    cfg: LoggerConfig,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    predictions: Sequence[Prediction],
    offline: bool,
) -> None:
    """A W&B run of job type `eval` beside the run that was evaluated: its numbers, and the first predictions.

    Raises:
        UserError: W&B does not start.
    """
    import wandb

    try:
        run = wandb.init(
            dir=run_dir, job_type="eval", mode="offline" if offline else "online",
            config={**config, "evaluation": {k: summary[k] for k in ("checkpoint", "removed_tokens", "data_digest")}},
            **_settings(cfg, config["derived"]),
        )  # fmt: skip
    except Exception as error:
        raise _not_started("wandb=true", "offline=true", error) from None
    with go_on_without("W&B's copy of the evaluation"):
        run.summary.update(
            {f"eval/{k}": v for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        )
        table = wandb.Table(columns=["index", "prompt", "target", "prediction", "right"])
        for one in predictions[:PREDICTIONS]:
            table.add_data(one.index, one.prompt, one.target, one.prediction, one.right)
        run.log({"predictions": table})
