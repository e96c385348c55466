"""What can be refused with torch and transformers alone, before any data is made and Lightning is imported."""

import torch

from stepwise_pl.config import Config
from stepwise_pl.errors import UserError
from stepwise_pl.models import check_architecture


def check(config: Config) -> None:
    """Raise `UserError` if the machine lacks what the trainer is told to use, or no such model can be built."""
    cfg = config.trainer
    if cfg.accelerator == "gpu" and torch.cuda.device_count() < cfg.devices:
        raise UserError(
            f"trainer.accelerator=gpu with trainer.devices={cfg.devices}: this machine has {torch.cuda.device_count()} "
            "CUDA devices; trainer=cpu trains on the CPU"
        )
    check_architecture(config.model)
