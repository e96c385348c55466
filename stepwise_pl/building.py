"""From the checked configuration to the trainer, and what follows from the configuration."""

import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from transformers import PreTrainedModel

from stepwise_pl.callbacks import Checkpoints, StageLog, StageProgressBar, ValidationTimes
from stepwise_pl.cli import to_plain
from stepwise_pl.config import PAPER_EXAMPLES_PER_TOKEN, Config
from stepwise_pl.datamodule import CoTDataModule
from stepwise_pl.errors import UserError
from stepwise_pl.loggers import MetricsFile, wandb_logger
from stepwise_pl.schedules import Schedule

log = logging.getLogger(__name__)


def check_fits(model: PreTrainedModel, data: CoTDataModule, schedule: Schedule) -> None:
    """Raise `UserError` if the longest example, as the first step will see it, exceeds the model's positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = data.longest(0 if schedule.keep_position else schedule.removed(0))
    if isinstance(positions, int) and longest > positions:
        raise UserError(
            f"the longest example has {longest} tokens (CoT: {data.max_cot}), the model {positions} positions: choose a "
            f"smaller task, schedule.remove_start_from=k, or a model from scratch with model.positions={longest}"
        )


def describe(config: Config, data: CoTDataModule) -> dict[str, Any]:
    """What follows from configuration and data: T, m_max, examples per removed token; warns if those are few.

    Δ counts tokens per epoch and means nothing without the size of an epoch;
    examples_per_token = batch_size · T / Δ is the honest unit.
    """
    rate = config.schedule.rate()
    per_token = config.data.batch_size * data.steps_per_epoch / rate if rate > 0 else None
    if per_token is not None and not math.isnan(per_token):
        log.info("%.0f examples per removed token (the paper: %.0f)", per_token, PAPER_EXAMPLES_PER_TOKEN)
        if per_token < PAPER_EXAMPLES_PER_TOKEN / 10:
            log.warning(
                "tokens leave %.0f times faster than in the paper: a hard task may collapse; lower schedule.delta to slow down",
                PAPER_EXAMPLES_PER_TOKEN / per_token,
            )
    return {
        "examples_per_token": per_token,
        "steps_per_epoch": data.steps_per_epoch,
        "max_cot_tokens": data.max_cot,
        **{f"{split}_examples": len(encoded) for split, encoded in data.encoded.items()},
    }


def build_trainer(config: Config, run_dir: Path, name: str, derived: dict[str, Any]) -> L.Trainer:
    """The Lightning trainer with its callbacks and loggers."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    cfg = config.trainer
    terminal = sys.stderr.isatty()
    loggers: list[Any] = [MetricsFile(run_dir / "metrics.csv")]
    if config.logger.wandb:
        loggers.append(wandb_logger(config.logger, run_dir, name, {**to_plain(config), "derived": derived}))
    return L.Trainer(
        accelerator=cfg.accelerator,
        devices=cfg.devices,
        precision=cfg.precision,  # type: ignore[arg-type]
        max_epochs=cfg.max_epochs,
        max_steps=cfg.max_steps,
        accumulate_grad_batches=cfg.accumulate_grad_batches,
        gradient_clip_val=cfg.gradient_clip_val or None,
        log_every_n_steps=cfg.log_every_n_steps,
        logger=loggers,
        callbacks=[
            ValidationTimes(cfg.validate_every_epochs, cfg.validate_every_removed),
            Checkpoints(run_dir / "checkpoints", cfg.checkpoint_every_n_steps),
            StageProgressBar() if terminal else StageLog(),
        ],
        default_root_dir=run_dir,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shares out examples itself
        enable_model_summary=False,
        enable_progress_bar=terminal,
    )
