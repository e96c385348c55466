"""The configurations of the commands that do not train.

Free of torch, as `stepwise_pl.config` is, and for the same reason.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepwise_pl.config import DataConfig, ModelConfig, require_task_and_schedule
from stepwise_pl.errors import UserError, one_of, require
from stepwise_pl.tasks import Task


@dataclass
class EvaluateConfig:
    """One evaluation of a trained run: `python -m stepwise_pl.evaluate run=<folder>`."""

    # The run folder.
    run: str = ""
    # `best`, `last`, or a checkpoint file.
    checkpoint: str = "best"
    # What to answer, one of three: `train`, `validation` or `test` of the run's task (null: test);
    split: str | None = None
    # any file, pattern, Hub data set or list of these, in a format of stepwise_pl/tasks/reading.py, with
    # the columns of the run's task if that reads files, else of task=file;
    file: Any = None
    # or `ood`: the test split, and problems unlike those trained on, in parts (multiplication only).
    suite: str | None = None
    # Problems in each part of a suite, where there are so many.
    suite_size: int = 500
    # CoT tokens to remove (reasoning steps, if the run has schedule.unit=step); null: as many as
    # the checkpoint was trained with.
    removed_tokens: int | None = None
    removed_steps: int | None = None
    # Examples to score, from the start; null: all.
    limit: int | None = None
    batch_size: int = 200
    # Problems decoded one at a time to measure the speed a user feels; 0: no speed measurement.
    speed_problems: int = 50
    accelerator: str = "cpu"
    # A W&B run of job type `eval` beside that of the training, in the project of the run's logger; offline: no account.
    wandb: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        require_run(self.run, "evaluate")
        given = [f"{key}={value}" for key in ("split", "file", "suite") if (value := getattr(self, key)) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: give one of split, file and suite")
        if self.split is not None:
            one_of("split", self.split, ("train", "validation", "test"))
        if self.offline and not self.wandb:
            raise UserError("offline=true: is about W&B; add wandb=true")
        if self.suite is not None:
            one_of("suite", self.suite, ("ood",))
            require(self.limit is None, "limit", self.limit, "is not for a suite; give suite_size")
        require(self.suite_size >= 1, "suite_size", self.suite_size, "must be at least 1")
        one_of("accelerator", self.accelerator, ("cpu", "gpu"))
        require(self.batch_size >= 1, "batch_size", self.batch_size, "must be at least 1")
        require(self.speed_problems >= 0, "speed_problems", self.speed_problems, "must be at least 0")
        for key, least in (("removed_tokens", 0), ("removed_steps", 0), ("limit", 1)):
            value = getattr(self, key)
            require(value is None or value >= least, key, value, f"must be at least {least}")


@dataclass
class ExportConfig:
    """A standard Hugging Face folder from a run: `python -m stepwise_pl.export run=<folder>`."""

    run: str = ""
    checkpoint: str = "best"
    # Where to write; null: `export` in the run folder.
    out: str | None = None

    def __post_init__(self) -> None:
        require_run(self.run, "export")


@dataclass
class CompareConfig:
    """Paired comparison of runs' predictions: `python -m stepwise_pl.compare <run> <run> ...`."""

    # The run folders.
    runs: list[str] = field(default_factory=list)
    # Which evaluation of each: that of this checkpoint on this split, with as many tokens removed as it was trained with;
    checkpoint: str = "best"
    split: str = "test"
    # or by the name of the file in `evaluations/`, without its ending.
    name: str | None = None
    # and of a suite, which part.
    part: str | None = None
    # Write the numbers to this JSON file as well.
    out: str | None = None

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise UserError("two or more runs are needed: python -m stepwise_pl.compare <run folder> <run folder> ...")
        for run in self.runs:
            require_run(run, "compare")
            require(self.runs.count(run) == 1, "runs", run, "is given twice")
        one_of("split", self.split, ("train", "validation", "test"))


@dataclass
class SweepConfig:
    """Table and figures of a sweep, as far as it has come: `python -m stepwise_pl.sweep <sweep folder>`."""

    # The sweep folder.
    sweep: str = ""

    def __post_init__(self) -> None:
        if not self.sweep:
            raise UserError("sweep is not set: python -m stepwise_pl.sweep <sweep folder>")


@dataclass
class ReportConfig:
    """A page about runs: `python -m stepwise_pl.report <run or sweep folder> ...`."""

    # Run folders, or folders above them, such as that of a sweep.
    runs: list[str] = field(default_factory=list)
    # The HTML file to write.
    out: str = "report.html"
    # Write every figure as PNG and SVG into this folder as well; null: do not.
    figures: str | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no folder is given: python -m stepwise_pl.report <run or sweep folder> ...")
        require(bool(self.out), "out", self.out, "must be the name of a file")


@dataclass
class WriteDataConfig:
    """Write a task's splits as text files: `python -m stepwise_pl.write_data task=mult4x4 out=data`."""

    task: Task = field(default_factory=Task)
    out: str = ""

    def __post_init__(self) -> None:
        require_task_and_schedule(self.task, None)
        if not self.out:
            raise UserError("out is not set: python -m stepwise_pl.write_data task=<task> out=<folder>")


@dataclass
class CheckDataConfig:
    """A look at a task's data: `python -m stepwise_pl.check_data task=<task>`."""

    task: Task = field(default_factory=Task)
    # Its tokenizer counts the tokens, its positions bound them.
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        require_task_and_schedule(self.task, None)


@dataclass
class DashboardConfig:
    """A W&B workspace for the runs of a project: `python -m stepwise_pl.dashboard entity=<account or team>`."""

    entity: str = ""
    project: str = "stepwise_pl"
    name: str = "Stepwise Internalization"
    # The batch size that `evaluate` measured speed at, besides 1.
    batch_size: int = 200

    def __post_init__(self) -> None:
        if not self.entity:
            raise UserError("entity is not set: the W&B account or team whose project it is")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "must be at least 1")


def require_run(run: str, command: str) -> None:
    """Raise `UserError` unless `run` is a run folder."""
    if not run:
        raise UserError(f"run is not set: python -m stepwise_pl.{command} run=<run folder>")
    if not (Path(run) / "config.yaml").is_file():
        raise UserError(f"run={run}: no config.yaml there; give the folder of a training run")
