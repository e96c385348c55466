"""`data.eval_batch_size=auto`: as many examples as the memory of the device holds."""

import logging

import lightning as L
from transformers import PreTrainedModel

from stepwise_pl.config.training import AUTO
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.methods import Method
from stepwise_pl.models.memory import examples_that_fit, free_bytes

log = logging.getLogger("stepwise_pl")


def set_eval_batch_size(trainer: L.Trainer, model: PreTrainedModel, method: Method, *, trains: bool) -> None:
    """Set the examples that are scored at a time, if the settings leave it open and the device has CUDA.

    Args:
        trains: whether gradients and moments will lie in the memory.
    """
    data: CoTDataModule = trainer.datamodule  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    if data.data.eval_batch_size != AUTO or device.type != "cuda":
        return
    size = fitting(data, model, method, free_bytes(device, model, 4 if trains else 1))
    # The first process decides for all, so that all have the same number of batches.
    data.eval_batch_size = trainer.strategy.broadcast(size)
    log.info("data.eval_batch_size=auto: %d examples are scored at a time", data.eval_batch_size)


def fitting(data: CoTDataModule, model: PreTrainedModel, method: Method, free: int) -> int:
    """Return how many held-out examples fit into `free` bytes beside the model."""
    longest = max(int(data.encoded[split].length.max()) for split in ("validation", "test"))
    added = method.added(method.last_stage(data.limits), data.limits)
    return examples_that_fit(model, longest + added, data.limits.max_new_tokens(0), free)
