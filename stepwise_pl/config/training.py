"""Settings of data, optimizer, trainer, guard, logger and expectation."""

import math
import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.config.duration import Duration, seconds_of

MOST_WORKERS = 256
AUTO = "auto"
EVAL_BATCH_SIZE = 200
PAPER_EXAMPLES_PER_TOKEN = 808_000 / 8

# A run may be asked to be good at one of these keys of its summary.json.
OBJECTIVES = ("val_accuracy", "test_accuracy", "removed_at_95", "seconds")


@dataclass
class DataConfig:
    """Settings of batches: size, length, workers and cache."""

    # Examples per optimizer step, over all devices and accumulated micro-batches together.
    batch_size: int = 32
    # Examples per epoch; null: the size of the training set. Δ counts tokens per epoch.
    epoch_size: int | None = None
    # Examples scored at a time in validation and test; at least 1. `auto`: as many as the memory of a CUDA device holds by an
    # estimate, and 200 on any other device.
    eval_batch_size: Any = setting(EVAL_BATCH_SIZE, changeable=True, aside=True)
    # Processes that prepare batches; 0 to 256, 0: the main process does it.
    num_workers: int = setting(0, changeable=True, aside=True)
    # Share of the task's easy examples in training (task.zeros makes them for multiplication) at the first step; 0 to 1.
    easy_first: float = 0.0
    # The same share at the last step of the run; 0 to 1, linear in between.
    easy_last: float = 0.0
    # The examples of N successive steps are grouped by length, for less padding. 1: no grouping.
    length_pool: int = 100
    # Training examples with more tokens (the whole CoT included) are left out, and counted. null: all are kept.
    max_tokens: int | None = None
    # Tokenised data is kept in this folder for the next start. null: nowhere. The environment variable
    # STEPWISE_PL_CACHE sets the default.
    cache_dir: str | None = setting(
        factory=lambda: os.environ.get("STEPWISE_PL_CACHE", "~/.cache/stepwise_pl") or None,
        changeable=True,
        aside=True,
        path=True,
    )

    @property
    def scored_at_a_time(self) -> int:
        """Examples scored at a time, if nothing is known of the memory of the device."""
        return EVAL_BATCH_SIZE if self.eval_batch_size == AUTO else int(self.eval_batch_size)

    def steps_per_epoch(self, train_examples: int) -> int:
        """T: optimizer steps in an epoch, at least 1."""
        return max(1, (self.epoch_size or train_examples) // self.batch_size)

    def __post_init__(self) -> None:
        require(
            self.max_tokens is None or self.max_tokens >= 1, "data.max_tokens", self.max_tokens, "must be at least 1"
        )
        require(self.length_pool >= 1, "data.length_pool", self.length_pool, "must be at least 1")
        for key in ("easy_first", "easy_last"):
            require(0 <= getattr(self, key) <= 1, f"data.{key}", getattr(self, key), "must be between 0 and 1")
        require(self.batch_size >= 1, "data.batch_size", self.batch_size, "must be at least 1")
        size = self.eval_batch_size
        is_count = isinstance(size, int) and not isinstance(size, bool) and size >= 1
        require(size == AUTO or is_count, "data.eval_batch_size", size, f"must be a number of at least 1, or {AUTO}")
        # Each worker is a process: a slip of the keyboard would fill the machine with them.
        rule = f"must be at least 0 and at most {MOST_WORKERS}"
        require(0 <= self.num_workers <= MOST_WORKERS, "data.num_workers", self.num_workers, rule)
        if self.epoch_size is not None:
            require(self.epoch_size >= self.batch_size, "data.epoch_size", self.epoch_size,
                    f"must be at least data.batch_size={self.batch_size}")  # fmt: skip


@dataclass
class OptimizerConfig:
    """The optimizer and its learning rate: warm-up, constant, and by choice a linear fall at the end."""

    # AdamW's learning rate after the warm-up; above 0.
    lr: float = 5e-5
    # `adamw` for every parameter, as in the paper; `muon`: Muon for the matrices that multiply hidden states, and AdamW
    # for embeddings, output head, norms and biases (stepwise_pl/training/optimizers.py).
    matrices: str = "adamw"
    # Muon's learning rate, which warms up and falls as `lr` does; above 0.
    matrix_lr: float = 2e-3
    # Muon's momentum; at least 0 and below 1.
    momentum: float = 0.95
    # AdamW's two decay rates of the moments; each at least 0 and below 1.
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    # AdamW's ε, added to the denominator; above 0.
    eps: float = 1e-8
    # Decoupled weight decay, multiplied by the learning rate; at least 0.
    weight_decay: float = 0.01
    # Decay biases and norms too, as plain AdamW (and the paper) does; false: matrices and embeddings only.
    decay_all: bool = True
    # Optimizer steps over which the learning rate climbs from 0; 0: none.
    warmup_steps: int = 0
    # Share of the run's steps, 0 to 1, over which the learning rate falls linearly to 0 at the end. 0: no fall.
    decay: float = setting(0.0, changeable=True)
    # Decay of an exponential average of the weights: each optimizer step keeps this part of it (0.99: about the last 100
    # steps). The average is validated, selected, tested and exported, and the plain weights train on; 0: there is none.
    average: float = 0.0

    def __post_init__(self) -> None:
        for key in ("lr", "matrix_lr"):
            require(
                0 < getattr(self, key) < math.inf, f"optimizer.{key}", getattr(self, key), "must be above 0 and finite"
            )
        one_of("optimizer.matrices", self.matrices, ("adamw", "muon"))
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "must be at least 0 and below 1")
        require(len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                "optimizer.betas", self.betas, "must be two numbers of at least 0 and below 1")  # fmt: skip
        require(0 <= self.average < 1, "optimizer.average", self.average, "must be at least 0 and below 1")
        require(self.eps > 0, "optimizer.eps", self.eps, "must be above 0")
        for key in ("weight_decay", "warmup_steps"):
            require(getattr(self, key) >= 0, f"optimizer.{key}", getattr(self, key), "must be at least 0")
        rule = "must be a share of the run, from 0 to 1"
        require(0 <= self.decay <= 1, "optimizer.decay", self.decay, rule)

    def decay_steps(self, steps: int) -> int:
        """Return the number of steps over which the learning rate falls in a run of `steps` optimizer steps: the nearest."""
        return round(Fraction(str(self.decay)) * steps)


ACCELERATORS = ("cpu", "gpu", "mps", "auto")


@dataclass
class TrainerConfig:
    """Settings of the Lightning trainer."""

    # The device to train on: `cpu`, `gpu` (CUDA), `mps` (Apple), or `auto`, the first of gpu, mps and cpu that is there.
    accelerator: str = setting("cpu", changeable=True, aside=True)
    # Processes of each machine, one for each device. Several processes share every batch, as `strategy` says.
    devices: int = setting(1, aside=True)
    # Machines. For more than one, torchrun or srun starts the processes (docs/gpus.md).
    num_nodes: int = setting(1, aside=True)
    # `ddp`: each process holds the whole model. `fsdp2`: each holds a part of every weight, for models too large for a device.
    strategy: str = setting("ddp", aside=True)
    # `32-true`; `bf16-mixed`: computes in bf16, weights in fp32; `bf16-true`: weights in bf16 too.
    precision: str = "32-true"
    # Multiply float32 matrices in TF32, which keeps 10 bits of the fraction instead of 23. GPUs from Ampere on are faster at it.
    tf32: bool = False
    # Compile the blocks of the model (torch.compile), on one GPU with CUDA graphs: `true`, `false`, or `auto`, on a GPU where it is
    # possible. On the CPU it does not pay. With dropout a compiled run draws other random numbers (docs/gpus.md).
    compile: str = setting("auto", changeable=True, aside=True)
    # Use kernels that give the same bits every time, where torch has them. The CPU needs none of them; on a GPU they may take longer.
    deterministic: bool = setting(False, changeable=True, aside=True)
    # Length of the run, with its unit: `4000steps` (of the optimizer), `200epochs`, `0.5epochs` or `256000examples`.
    duration: str = setting("200epochs", changeable=True)
    # End the run after the optimizer step at which training has read so many tokens, in all passes of the model, and before `duration`
    # is over. null: no limit. `optimizer.decay` counts the steps of `duration` all the same. Tokens that the guard gave up count, too.
    max_tokens_read: int | None = setting(None, changeable=True)
    # Stop after this time, hours:minutes:seconds (02:50:00, with days 1-00:00:00), as a signal does: after the step, with a checkpoint and
    # status 142; resume goes on. null: no limit.
    max_time: str | None = setting(None, changeable=True, aside=True)
    # Micro-batches of an optimizer step, which share data.batch_size; at least 1.
    accumulate_grad_batches: int = 1
    # The norm of the gradient is clipped to this; 0: not at all.
    gradient_clip_val: float = 1.0
    # Validate every N epochs. 0: only when `validate_every_removed` or the schedule asks for it.
    validate_every_epochs: int = setting(1, changeable=True)
    # Validate also each time N more tokens are about to leave. 0: never.
    validate_every_removed: int = setting(0, changeable=True)
    # Log the training metrics every N steps; at least 1.
    log_every_n_steps: int = setting(50, changeable=True, aside=True)
    # Log signals that may tell a collapse early every N steps (stepwise_pl/training/signals.py); about one more step each time. 0: never.
    log_signals_every_n_steps: int = setting(0, changeable=True, aside=True)
    # Write checkpoints/last.ckpt every N steps (and at every validation).
    checkpoint_every_n_steps: int = setting(1000, changeable=True, aside=True)
    # Keep a checkpoint of the weights at every N removed tokens (or reasoning steps, or named stages of a method). 0: none.
    keep_every_removed: int = setting(0, changeable=True, aside=True)
    # Keep only the newest N of these checkpoints; at least 1. null: all.
    keep_at_most: int | None = setting(None, changeable=True, aside=True)

    def __post_init__(self) -> None:
        one_of("trainer.accelerator", self.accelerator, ACCELERATORS)
        require(
            self.accelerator != "mps" or self.processes == 1,
            "trainer.accelerator",
            self.accelerator,
            "trains on one device",
        )
        one_of("trainer.strategy", self.strategy, ("ddp", "fsdp2"))
        require(self.strategy == "ddp" or self.processes > 1, "trainer.strategy", self.strategy,
                "needs trainer.devices of at least 2")  # fmt: skip
        one_of("trainer.precision", self.precision, ("32-true", "bf16-mixed", "bf16-true"))
        self.compile = str(self.compile).lower()  # YAML reads true and false as booleans
        one_of("trainer.compile", self.compile, ("auto", "true", "false"))
        # Runs are compared by their configuration: `4000 steps` becomes `4000steps`.
        self.duration = str(Duration.parse(self.duration))
        if self.max_time is not None:
            seconds_of(self.max_time)
        require(self.max_tokens_read is None or self.max_tokens_read >= 1, "trainer.max_tokens_read", self.max_tokens_read,
                "must be at least 1, or null for no limit")  # fmt: skip
        for key in ("devices", "num_nodes", "accumulate_grad_batches", "log_every_n_steps", "checkpoint_every_n_steps"):
            require(getattr(self, key) >= 1, f"trainer.{key}", getattr(self, key), "must be at least 1")
        for key in (
            "gradient_clip_val",
            "log_signals_every_n_steps",
            "validate_every_epochs",
            "validate_every_removed",
            "keep_every_removed",
        ):
            require(getattr(self, key) >= 0, f"trainer.{key}", getattr(self, key), "must be at least 0")
        require(self.keep_at_most is None or self.keep_at_most >= 1, "trainer.keep_at_most", self.keep_at_most,
                "must be at least 1, or null for all")  # fmt: skip

    @property
    def processes(self) -> int:
        """Processes of the run, on all machines."""
        return self.devices * self.num_nodes


@dataclass
class GuardConfig:
    """The answer to a collapse: what is done when accuracy collapses under removal, or the loss is no longer finite (`stepwise_pl.training.guard`)."""

    # `warn` says so and goes on; `halve` goes back to the last good checkpoint and on from there with half of Δ;
    # `wait` goes back and removes nothing for a while. With either, every number of removed tokens is validated,
    # whatever trainer.validate_every_removed says. If the loss is not finite, `warn` stops; the others go back and halve
    # the learning rate. The others also halve it if the good checkpoint is of the same stage, because slower removal
    # would change nothing then.
    action: str = "warn"
    # A validation is low if its answer accuracy at any length is surely (95% Wilson interval) below this part of the best.
    collapsed: float = 0.25
    # The guard acts after N low validations in a row. It judges at the end of a stage, not right after a token has left.
    patience: int = 2
    # A checkpoint is good, and worth going back to, if its accuracy is at least this part of the best so far.
    good: float = 0.75
    # Judge a stage early, too: if accuracy is below this part of the best a few steps after a token has left, that is a collapse at once.
    # Accuracy is that of the weights that train, on 64 validation problems, each token given those before it. null: not.
    early: float | None = None
    # Optimizer steps after a token has left at which a stage is judged early; at least 1.
    early_after: int = 10
    # The guard goes back N times. At the next collapse the run ends, at its last good checkpoint.
    max_rollbacks: int = 4
    # Epochs that `wait` waits the first time; each further wait is twice as long.
    wait_epochs: float = 1

    def __post_init__(self) -> None:
        one_of("guard.action", self.action, ("warn", "halve", "wait"))
        require(0 < self.collapsed < 1, "guard.collapsed", self.collapsed, "must be above 0 and below 1")
        require(self.collapsed <= self.good <= 1, "guard.good", self.good,
                f"must be at least guard.collapsed={self.collapsed} and at most 1")  # fmt: skip
        require(self.patience >= 1, "guard.patience", self.patience, "must be at least 1")
        require(
            self.early is None or 0 < self.early < 1, "guard.early", self.early, "must be above 0 and below 1, or null"
        )
        require(self.early_after >= 1, "guard.early_after", self.early_after, "must be at least 1")
        require(self.max_rollbacks >= 1, "guard.max_rollbacks", self.max_rollbacks,
                "must be at least 1 (guard.action=warn never goes back)")  # fmt: skip
        require(0 < self.wait_epochs < math.inf, "guard.wait_epochs", self.wait_epochs, "must be above 0")


@dataclass
class LoggerConfig:
    """Further places for metrics. The run folder's metrics.csv is always written."""

    # Log to Weights & Biases (logger=wandb sets it).
    wandb: bool = False
    # Use W&B without network or account; `wandb sync` uploads the folder later.
    offline: bool = False
    # W&B's project.
    project: str = "stepwise_pl"
    # W&B's account or team; null: your own.
    entity: str | None = None
    # W&B's group. null: the runs of a sweep are a group with its name.
    group: str | None = None
    # W&B's tags, besides the names of task, model and schedule.
    tags: list[str] = field(default_factory=list)
    # Keep the exported model as an artifact.
    artifact: bool = False
    # Seconds to wait at the end of a run until W&B has taken everything; the rest stays on the disk.
    finish_timeout: int = 60
    # Event files for TensorBoard, in `tensorboard` of the run folder.
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require(self.finish_timeout >= 1, "logger.finish_timeout", self.finish_timeout, "must be at least 1")
        for key in ("offline", "artifact"):
            if getattr(self, key) and not self.wandb:
                raise UserError(f"logger.{key}=true: is about W&B; add logger=wandb")


@dataclass
class ExpectedConfig:
    """The result that a recipe in conf/experiment comes to; the end of a run and its evaluation say whether it falls inside."""

    # Accuracy on the test set, from and to. null: nothing is expected.
    accuracy: list[float] | None = None
    # Minutes of training, from and to, on this machine.
    minutes: list[float] | None = None
    # The machine on which the minutes were measured.
    machine: str = ""
    # The source of these numbers: the folder of the experiment, or the paper's table.
    source: str = ""
    # The kind of answer that the accuracy counts: `answer`, the whole one, or `last_number`, which `evaluate` alone counts.
    counts: str = "answer"

    def __post_init__(self) -> None:
        one_of("expected.counts", self.counts, ("answer", "last_number"))
        for key, most, such in (
            ("accuracy", 1, "two fractions, such as [0.9, 1]"),
            ("minutes", math.inf, "two numbers, such as [5, 10]"),
        ):
            band = getattr(self, key)
            require(band is None or (len(band) == 2 and 0 <= band[0] <= band[1] <= most), f"expected.{key}", band,
                    f"must be from and to, {such}")  # fmt: skip
        whole = (self.accuracy is None) == (not self.source) and (self.minutes is None) == (not self.machine)
        if not whole or (self.minutes is not None and self.accuracy is None):
            raise UserError(
                f"expected.accuracy={self.accuracy}, source={self.source!r}, minutes={self.minutes}, machine={self.machine!r}: "
                "accuracy goes with source, minutes with machine, and not without accuracy; for no band set accuracy and minutes to null, "
                "source and machine to ''"
            )
