"""From the checked configuration to the trainer, and what follows from the configuration."""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from stepwise_pl.callbacks import Checkpoints, StageLog, StageProgressBar, ValidationTimes
from stepwise_pl.config import PAPER_EXAMPLES_PER_TOKEN, Config
from stepwise_pl.datamodule import CoTDataModule
from stepwise_pl.errors import UserError
from stepwise_pl.loggers import MetricsFile

log = logging.getLogger(__name__)


def check_machine(config: Config) -> None:
    """Raise `UserError` if the machine lacks what the trainer is told to use; before any data is made."""
    cfg = config.trainer
    if cfg.accelerator == "gpu" and torch.cuda.device_count() < cfg.devices:
        raise UserError(
            f"trainer.accelerator=gpu with trainer.devices={cfg.devices}: this machine has {torch.cuda.device_count()} "
            "CUDA devices; trainer=cpu trains on the CPU"
        )


def describe(config: Config, data: CoTDataModule) -> dict[str, Any]:
    """What follows from configuration and data: T, m_max, examples per removed token; warns if those are few.

    Δ counts tokens per epoch and means nothing without the size of an epoch;
    examples_per_token = batch_size · T / Δ is the honest unit.
    """
    rate = config.schedule.rate()
    tokens = data.limits.max_cot / max(data.limits.max_removed, 1)  # in a unit of removal, 1 unless that is a step
    per_token = config.data.batch_size * data.steps_per_epoch / (rate * tokens) if rate > 0 else None
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
        "data": data.digest(),
        "files": list(config.task.fingerprint() or ()),
        **{f"{split}_examples": len(encoded) for split, encoded in data.encoded.items()},
    }


def build_trainer(config: Config, run_dir: Path, describe: Callable[[], None] = lambda: None) -> L.Trainer:
    """The Lightning trainer with its callbacks, logging to metrics.csv.

    Args:
        describe: writes what the run folder holds besides checkpoints and metrics (`Checkpoints`).
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    cfg = config.trainer
    terminal = sys.stderr.isatty()
    return L.Trainer(
        accelerator=cfg.accelerator,
        devices=cfg.devices,
        precision=cfg.precision,  # type: ignore[arg-type]
        max_epochs=cfg.max_epochs,
        max_steps=cfg.max_steps,
        accumulate_grad_batches=cfg.accumulate_grad_batches,
        gradient_clip_val=cfg.gradient_clip_val or None,
        log_every_n_steps=cfg.log_every_n_steps,
        logger=MetricsFile(run_dir / "metrics.csv"),
        callbacks=[
            ValidationTimes(cfg.validate_every_epochs, cfg.validate_every_removed, cfg.keep_every_removed),
            Checkpoints(run_dir / "checkpoints", cfg.checkpoint_every_n_steps, cfg.keep_every_removed, describe),
            StageProgressBar() if terminal else StageLog(),
        ],
        default_root_dir=run_dir,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shares out examples itself
        enable_model_summary=False,
        enable_progress_bar=terminal,
    )
