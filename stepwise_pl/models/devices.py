"""The device that a command computes on."""

import torch

from stepwise_pl.common.errors import UserError


def accelerator_of(asked: str, key: str = "accelerator") -> str:
    """Return `cpu`, `gpu` (CUDA) or `mps` (Apple's GPU) for what was asked for; `auto` takes the first of gpu, mps and cpu that is there.

    Args:
        key: the key that asks, for the message.

    Raises:
        UserError: this machine has no such device.
    """
    is_there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(name for name, found in is_there.items() if found)
    if not is_there[asked]:
        what = "CUDA device" if asked == "gpu" else "GPU that torch reaches through MPS"
        raise UserError(f"{key}={asked}: this machine has no {what}; {key}=auto takes what is there")
    return asked


def device_of(asked: str) -> torch.device:
    """Return the device of `cpu`, `gpu`, `mps` or `auto` (`accelerator_of`).

    Raises:
        UserError: this machine has no such device.
    """
    return torch.device(accelerator_of(asked).replace("gpu", "cuda"))


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all work so far. A GPU works behind the process that feeds it, so no time is right without."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
