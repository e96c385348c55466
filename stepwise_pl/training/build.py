"""Build tokenizer, data, model, module and trainer from the checked configuration."""

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.common import plugins, processes, terminal
from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.duration import Duration
from stepwise_pl.config.request import Request
from stepwise_pl.config.run import Config
from stepwise_pl.config.training import PAPER_EXAMPLES_PER_TOKEN, TrainerConfig
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.data.tokenizers import tokenizer_for
from stepwise_pl.methods import Method
from stepwise_pl.models.build import build_model, model_setting
from stepwise_pl.models.causality import require_causal
from stepwise_pl.models.compiled import CompiledBlocks, compile_blocks
from stepwise_pl.models.devices import accelerator_of
from stepwise_pl.models.lora import frozen_digest
from stepwise_pl.models.readability import require_readable
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.training.checkpoints import Checkpoints
from stepwise_pl.training.guard import Guard
from stepwise_pl.training.launched import Launched
from stepwise_pl.training.loggers import MetricsFile
from stepwise_pl.training.module import StepwiseModule
from stepwise_pl.training.outlook import Outlook
from stepwise_pl.training.precision import BFloat16Weights
from stepwise_pl.training.progress import ProgressBar, ProgressLog, StageRecords
from stepwise_pl.training.sharding import SharedWeights
from stepwise_pl.training.signals import Signals
from stepwise_pl.training.validation_times import ValidationTimes

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The configuration of a run, and its tokenizer, data and model: the same for every attempt."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    data: CoTDataModule
    model: PreTrainedModel
    # Facts of what the method has loaded besides (`Method.prepare`).
    loaded: dict[str, Any]
    # The blocks of training, compiled; None: they run as they are.
    compiled_blocks: CompiledBlocks | None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.data.steps


def build_parts(config: Config) -> Parts:
    """Build tokenizer, data and model, seeded; tell the schedule the length of an epoch and its last stage.

    Raises:
        UserError: data or model cannot be read, or do not fit together.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    schedule, method, micro_batches = config.schedule, config.method, config.trainer.accumulate_grad_batches
    tokenizer = tokenizer_for(config.task, config.model.tokenizer)
    data = CoTDataModule(
        config.task, tokenizer, config.data, config.seed, micro_batches, method.unit, method.side,
        Duration.parse(config.trainer.duration), method.quantities(),
    ).prepare()  # fmt: skip
    schedule.bind(data.steps_per_epoch, method.last_stage(data.limits))
    method.require_counts(data.limits)
    if config.logger.artifact and not method.can_export(data.limits):
        raise UserError(
            f"logger.artifact=true: a model trained with method={method.kind} does not answer alone, so that it cannot be exported; "
            "set it to false"
        )
    # With stage mixing an example may stand at any stage from the first step on.
    is_whole = method.keep_position or schedule.mix > 0
    whole = max(split.longest(0) for split in data.encoded.values())
    longest = longest_view(method, data, 0 if is_whole else schedule.stage(0))
    longest = max(longest, whole) if method.reads_cot else longest
    dtype = torch.bfloat16 if config.trainer.precision == "bf16-true" else torch.float32
    model = build_model(config.model, tokenizer, longest, dtype)
    require_causal(model, model_setting(config.model), longest, method.keep_position)
    sharded = config.trainer.processes > 1 and config.trainer.strategy == "fsdp2"
    eos = int(tokenizer.eos_token_id)
    require_readable(method, model, eos, data.encoded, data.limits, sharded)
    device, trainer = accelerator_of(config.trainer.accelerator), config.trainer
    torch.set_float32_matmul_precision("high" if trainer.tf32 else "highest")
    blocks = compile_blocks(
        trainer.compile, model, longest, device, shares=micro_batches * trainer.processes, sharded=sharded
    )
    return Parts(config, tokenizer, data, model, method.prepare(model, tokenizer, whole), blocks)


def longest_view(method: Method, data: CoTDataModule, first: int) -> int:
    """Return the tokens of the longest example of any split, as it is read at the stages from `first` on."""
    limits, longest, most = data.limits, 0, -1
    for stage in range(first, method.last_stage(limits) + 1):
        added = method.added(stage, limits)
        if added <= most:  # a later stage has removed more; without more inputs no example is longer
            continue
        units = int(Stage(method.removed(stage, limits), limits.max_removed).units[0])
        written = max(split.longest(units, method.side) for split in data.encoded.values())
        most, longest = added, max(longest, added + written)
    return longest


def build_attempt(
    parts: Parts,
    run_dir: Path,
    plain: dict[str, Any],
    describe: Callable[[], None],
    more: list[Logger],
    asked: Request,
) -> tuple[L.Trainer, StepwiseModule]:
    """A new trainer and module around the model.

    Args:
        plain: the configuration in plain containers; `derived` holds what follows from it.
        describe: see `build_trainer`.
        more: loggers besides metrics.csv.
        asked: the command that started the run.
    """
    config = parts.config
    module = StepwiseModule(
        parts.model,
        parts.tokenizer,
        config.schedule,
        config.optimizer,
        config.seed,
        parts.steps,
        plain,
        config.method,
        parts.data.limits,
    )
    module.learner.compiled_blocks = parts.compiled_blocks
    # With `auto` answers are decoded by plain passes: each shape is compiled for many seconds, and only many validations give them back.
    module.learner.decodes_compiled = config.trainer.compile == "true"
    trainer = build_trainer(config, parts.steps, run_dir, describe, asked)
    trainer.loggers += more
    return trainer, module


def examples_per_token(parts: Parts) -> float | None:
    """Examples trained on for each CoT token that leaves; None if the schedule has no pace.

    The pace is the present one: once the guard has halved it, the examples are twice as many.
    """
    config, data, method = parts.config, parts.data, parts.config.method
    ends = [method.removed(stage, data.limits) for stage in (0, method.last_stage(data.limits))]
    if ends[0] == ends[1]:  # the stages are no removed units
        return None
    rate = config.schedule.rate()
    tokens = data.limits.max_cot / max(data.limits.max_removed, 1)  # CoT tokens per unit of removal
    return config.data.batch_size * data.steps_per_epoch / (rate * tokens) if rate > 0 else None


def describe(parts: Parts) -> dict[str, Any]:
    """Return what follows from configuration, data and model; warn if tokens leave after few examples.

    Among the values are T (`steps_per_epoch`), `max_cot_tokens`, the tokens in the longest CoT of the training set, and examples_per_token.
    Δ counts tokens per epoch and means nothing without the size of an epoch;
    examples_per_token = batch_size · T / Δ is the honest unit.
    """
    data = parts.data
    per_token = examples_per_token(parts)
    if per_token is not None:
        log.info("%.0f examples per removed token (the paper: %.0f)", per_token, PAPER_EXAMPLES_PER_TOKEN)
        if per_token < PAPER_EXAMPLES_PER_TOKEN / 10:
            log.warning(
                "tokens leave %.0f times faster than in the paper: a hard task may collapse; lower schedule.delta to slow down",
                PAPER_EXAMPLES_PER_TOKEN / per_token,
            )
    return {
        "examples_per_token": per_token,
        "steps_per_epoch": data.steps_per_epoch,
        "max_cot_tokens": data.limits.max_cot,
        **({"stage_names": list(names)} if (names := parts.config.method.stage_names) else {}),
        "data": data.digest(),
        "files": list(parts.config.task.fingerprint() or ()),
        **({"plugins": found} if (found := plugins.digests(parts.config.plugins)) else {}),
        **({"loaded": parts.loaded} if parts.loaded else {}),
        **({"frozen": frozen} if (frozen := frozen_digest(parts.model)) else {}),
        **{f"{split}_examples": len(encoded) for split, encoded in data.encoded.items()},
    }


def strategy(cfg: TrainerConfig, method: Method) -> Strategy | str:
    """The Lightning strategy by which processes share the work."""
    if cfg.processes == 1:
        return "auto"
    if cfg.strategy == "ddp":
        # DDP waits for the gradient of every weight, unless it is told that some have none.
        return "ddp_find_unused_parameters_true" if method.trains_in_parts else "ddp"
    return SharedWeights(cfg.processes)


def own_callbacks(names: Sequence[str]) -> list[Callback]:
    """The callbacks of the configuration, each made without arguments.

    Raises:
        UserError: one cannot be made, or is no callback.
    """
    out = []
    for name in names:
        kind = plugins.named(name, "callbacks")
        if not (isinstance(kind, type) and issubclass(kind, Callback)):
            raise UserError(f"callbacks={name}: is no lightning.pytorch.callbacks.Callback")
        try:
            inspect.signature(kind).bind()
        except TypeError as error:
            raise UserError(f"callbacks={name}: cannot be made without arguments ({first_line(error)})") from None
        try:
            out.append(kind())
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)} ({plugins.place(error)})"
            raise UserError(f"callbacks={name}: cannot be made, {reason}") from None
    return out


def require_own_states(callbacks: Sequence[Callback]) -> None:
    """Raise `UserError` if two callbacks would share one place in a checkpoint: Lightning keeps their states by class name."""
    keys = [callback.state_key for callback in callbacks]
    for callback in callbacks:
        if keys.count(callback.state_key) > 1:
            raise UserError(
                f"callbacks: there are two of the name {type(callback).__name__}, which share one place in a checkpoint; rename "
                "your class"
            )


def build_trainer(
    config: Config, steps: int, run_dir: Path, describe: Callable[[], None] = lambda: None, asked: Request | None = None
) -> L.Trainer:
    """The Lightning trainer with its callbacks, logging to metrics.csv.

    Args:
        steps: optimizer steps of the whole run.
        describe: writes the files of the run folder besides checkpoints and metrics (see `Checkpoints`).
        asked: the command that started the run; None: there was no command.
    """
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    cfg = config.trainer
    guard = Guard(config.guard)
    every_removed = 1 if guard.acts else cfg.validate_every_removed
    outlook = Outlook(config, asked)
    # Bars of several processes would overwrite each other.
    has_bar = terminal.width(sys.stderr) > 0 and not (asked and asked.is_worker)
    callbacks: list[Callback] = [
        # Callbacks of the user come first, because guard and checkpoints may raise `Collapse`.
        *own_callbacks(config.callbacks),
        # A row is written before the checkpoint of its step: a run killed between the two would lack the row.
        *([Signals(cfg.log_signals_every_n_steps)] if cfg.log_signals_every_n_steps else []),
        ValidationTimes(cfg.validate_every_epochs, every_removed, cfg.keep_every_removed, cfg.max_tokens_read),
        # StageRecords comes before the guard and the checkpoints, because both may raise `Collapse`.
        StageRecords(run_dir / "stages.jsonl"),
        guard,
        Checkpoints(
            run_dir / "checkpoints",
            cfg.checkpoint_every_n_steps,
            cfg.keep_every_removed,
            describe,
            cfg.keep_at_most,
            guard,
        ),
        outlook,
        ProgressBar(outlook, asked.job if asked else "") if has_bar else ProgressLog(outlook),
    ]
    require_own_states(callbacks)
    launch = processes.launch()
    # Without an environment that is named, Lightning would obey variables of Slurm or MPI, even in the shell of an allocation.
    environment = LightningEnvironment() if launch is None else Launched(launch)
    return L.Trainer(
        accelerator=accelerator_of(cfg.accelerator).replace("gpu", "cuda"),
        devices=cfg.devices,
        num_nodes=cfg.num_nodes,
        strategy=strategy(cfg, config.method),
        precision=None if cfg.precision == "bf16-true" else cfg.precision,  # type: ignore[arg-type]
        plugins=[environment, *([BFloat16Weights()] if cfg.precision == "bf16-true" else [])],
        deterministic=cfg.deterministic,
        # Steps alone end the run: an end in epochs would be a second one.
        max_epochs=-1,
        max_steps=steps,
        accumulate_grad_batches=cfg.accumulate_grad_batches,
        gradient_clip_val=cfg.gradient_clip_val or None,
        log_every_n_steps=cfg.log_every_n_steps,
        logger=MetricsFile(run_dir / "metrics.csv"),
        callbacks=callbacks,
        default_root_dir=run_dir,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shares out examples itself
        enable_model_summary=False,
        enable_progress_bar=False,
    )
