"""The configuration of a training run. Its groups are in `model.py`, `training.py`, `tasks`, `schedules` and `methods`.

Free of torch, so that a bad configuration is refused before anything heavy is imported.
The defaults are the paper's multiplication recipe (arXiv 2405.14838). Groups `task`,
`schedule` and `method` are the dataclasses in `stepwise_pl.tasks`, `stepwise_pl.schedules` and `stepwise_pl.methods`.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.config.debug import shrink
from stepwise_pl.config.model import ModelConfig
from stepwise_pl.config.training import (
    OBJECTIVES,
    DataConfig,
    ExpectedConfig,
    GuardConfig,
    LoggerConfig,
    OptimizerConfig,
    TrainerConfig,
)
from stepwise_pl.methods import Method
from stepwise_pl.schedules import Schedule
from stepwise_pl.tasks import Task


@dataclass
class Config:
    """One training run."""

    task: Task = field(default_factory=Task)
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: Schedule = field(default_factory=Schedule)
    method: Method = field(default_factory=Method)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    # A mark of a group holds for all its keys.
    guard: GuardConfig = setting(factory=GuardConfig, changeable=True)
    logger: LoggerConfig = setting(factory=LoggerConfig, changeable=True, aside=True)
    expected: ExpectedConfig = setting(factory=ExpectedConfig, changeable=True, aside=True)
    # Lightning callbacks, `<module>.<class>` each, made without arguments. Their state is kept in the checkpoints.
    callbacks: list[str] = field(default_factory=list)
    # Modules and files of one's own: `[my_package.my_module,./my_task.py]` (docs/extending.md).
    plugins: list[str] = setting(factory=list, changeable=True, aside=True, path=True)
    # Seed of weights, order of examples, offsets and dropout; 0 to 2**32 - 1.
    seed: int = setting(0, aside=True)
    # The run's name, in tables, figures and W&B, and its folder: outputs/<name>/seed<seed>. Letters, digits, `_`,
    # `.`, `+` and `-`. null: a name made of the settings. With --multirun: the name of the sweep.
    name: str | None = setting(None, aside=True)
    # A smoke test: a few steps of everything, with few examples and a tiny model, in seconds (stepwise_pl/config/debug.py).
    debug: bool = False
    # Everything the run writes goes here; null: a new folder under outputs/ named after the run. With --multirun: the
    # sweep folder, with a run folder for every job in it.
    run_dir: str | None = setting(None, changeable=True, aside=True, path=True)
    # Go on from checkpoints/last.ckpt in run_dir. `resume=auto`, on a command line with run_dir: go on if there is something to go on
    # with, else begin. With --multirun: skip the jobs that are finished, go on with the others.
    resume: bool = setting(False, changeable=True, aside=True)
    # The result of a job for Hydra's sweeper, one or a list of: `val_accuracy`, `test_accuracy`, of the
    # checkpoint that is tested; `removed_at_95`, the most removed tokens with 95% accuracy on validation (-1: none);
    # `seconds` of training. The first three are to be maximised.
    objective: Any = setting("val_accuracy", changeable=True, aside=True)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed", self.seed, "must be at least 0 and below 2**32")
        require_folder_name(self.name)
        require_chosen(task=self.task, schedule=self.schedule, method=self.method)
        if twice := sorted({name for name in self.callbacks if self.callbacks.count(name) > 1}):
            raise UserError(f"callbacks={twice[0]}: is named twice, but its state has one place in a checkpoint")
        for name in self.objective if isinstance(self.objective, list) and self.objective else [self.objective]:
            one_of("objective", name, OBJECTIVES)
        share = self.trainer.processes * self.trainer.accumulate_grad_batches
        require(self.data.batch_size % share == 0, "data.batch_size", self.data.batch_size,
                f"must be a multiple of trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches = {share}")  # fmt: skip
        if self.model.lora.rank and self.optimizer.matrices == "muon":
            raise UserError(
                f"optimizer.matrices=muon with model.lora.rank={self.model.lora.rank}: Muon is for whole matrices, LoRA trains "
                "factors of their change; choose optimizer=adamw"
            )
        if self.trainer.strategy == "fsdp2" and self.optimizer.matrices == "muon":
            raise UserError(
                "optimizer.matrices=muon with trainer.strategy=fsdp2: Muon needs whole matrices; optimizer=adamw"
            )
        if self.trainer.strategy == "fsdp2" and self.optimizer.average:
            raise UserError(
                f"optimizer.average={self.optimizer.average} with trainer.strategy=fsdp2: the average of shared-out weights is "
                "not kept yet; optimizer.average=0, or trainer.strategy=ddp"
            )
        if self.logger.artifact and self.method.keep_position:
            raise UserError("logger.artifact=true: a model trained with method.keep_position=true cannot be exported")
        if self.logger.artifact and not self.method.exports:
            raise UserError(
                f"logger.artifact=true: a model trained with method={self.method.kind} does not answer alone, so that it cannot be "
                "exported; set it to false"
            )
        if self.method.keep_position and not self.task.cot_length_known():
            raise UserError(
                "method.keep_position=true needs a task whose CoT length follows from the prompt, because "
                f"generation must know how far to jump; task {self.task.kind} has none: set it to false"
            )
        for name in self.method.quantities():
            self.task.require_quantity(name)
        if self.schedule.mix and self.method.stage_names:
            raise UserError(
                f"schedule.mix={self.schedule.mix}: gives the examples of a batch stages of their own, and the stages of "
                f"method={self.method.kind} are phases of the whole run; set it to 0"
            )
        # The checks that every schedule and method shares; a class of one's own may have a `__post_init__` without them.
        Schedule.__post_init__(self.schedule)
        Method.__post_init__(self.method)
        # Here, so that the run folder of a debug run is read as the small run that it holds.
        if self.debug:
            shrink(self)


def require_folder_name(name: str | None) -> None:
    """Raise `UserError` if a run's name is no plain name of a folder on every file system."""
    if name is not None and not (re.fullmatch(r"\w([\w.+-]*[\w+-])?", name) and len(name) <= 100):
        raise UserError(
            f"name={name}: must be a plain folder name of at most 100 letters, digits, `_`, `.`, `+` and `-`, which begins "
            "with a letter or digit"
        )
    if name is not None and name.lower() == "sweeps":
        raise UserError(f"name={name}: is the folder of the sweeps; choose another name")


def require_chosen(**parts: Task | Schedule | Method) -> None:
    """Raise `UserError` for `task=null`, `schedule=null` or `method=null`; parts by the names of their groups."""
    for group, part in parts.items():
        if not part.kind:
            raise UserError(f"{group} is not set: choose one with {group}=<name>; --help lists them")
