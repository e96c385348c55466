"""`debug=true`: any recipe, made so small that a run goes through all of its parts in seconds."""

from dataclasses import replace
from typing import Protocol

from stepwise_pl.config.model import LoRAConfig, ModelConfig
from stepwise_pl.config.training import DataConfig, ExpectedConfig, OptimizerConfig, TrainerConfig
from stepwise_pl.methods import Method
from stepwise_pl.schedules import Linear, Schedule
from stepwise_pl.tasks import Task

STEPS = 12  # of the optimizer
STEPS_PER_EPOCH = 4
EXAMPLES = 64  # of the training set
HELD_OUT = 8  # of validation, and of the test
# Keys of model.config that must fit the small width. Other whole numbers and lists may not fit, and are left out.
FIT = {"num_key_value_heads": 2, "intermediate_size": 128, "n_inner": 128, "head_dim": 16}


class Groups(Protocol):
    """The groups of a `Config` that become small; config/run.py imports this module."""

    task: Task
    model: ModelConfig
    schedule: Schedule
    method: Method
    optimizer: OptimizerConfig
    data: DataConfig
    trainer: TrainerConfig
    expected: ExpectedConfig


def shrink(config: Groups) -> None:
    """Make the configuration small, in place. A configuration that is small already stays as it is.

    The kinds of task, schedule, method and optimizer stay those of the recipe. So a debug run meets explicit CoT, removal
    up to no CoT, validations, checkpoints, test and summary, in the recipe's own code.
    """
    trainer, optimizer = config.trainer, config.optimizer
    share = trainer.processes * trainer.accumulate_grad_batches
    batch_size = share * max(1, round(4 / share))
    config.task.keep_few(EXAMPLES, HELD_OUT)
    config.schedule, config.method = config.schedule.hurried(), config.method.hurried()
    if config.method.stage_names and isinstance(config.schedule, Linear) and config.schedule.delta:
        config.schedule = replace(config.schedule, delta=1)  # each stage lasts some steps
    config.model = replace(
        config.model,
        pretrained=False,
        init_from=None,
        lora=LoRAConfig(),
        layers=2,
        heads=4,
        width=64,
        config={
            key: FIT.get(key, value)
            for key, value in config.model.config.items()
            if key in FIT or not isinstance(value, int | list) or isinstance(value, bool)
        },
    )
    config.data = replace(
        config.data,
        batch_size=batch_size,
        epoch_size=STEPS_PER_EPOCH * batch_size,
        eval_batch_size=HELD_OUT,
        # The cache holds whole data sets.
        cache_dir=None,
    )
    config.optimizer = replace(optimizer, warmup_steps=min(optimizer.warmup_steps, 2))
    config.trainer = replace(trainer, duration=f"{STEPS}steps", validate_every_epochs=1, log_every_n_steps=1)
    config.expected = ExpectedConfig()


def debug_line(config: Groups) -> str:
    """Return one line that tells a person how small the run is."""
    return (
        f"debug=true: a smoke test and no result. {STEPS} steps of {config.data.batch_size} examples; a {config.model.type} "
        f"of 2 layers and width 64 with random weights; at most {EXAMPLES} examples to train on and {HELD_OUT} to test; "
        "pretrained weights, model.init_from, model.lora, runs that the method builds on and the expected band are left out"
    )
