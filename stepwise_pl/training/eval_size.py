"""`data.eval_batch_size=auto`: as many examples as the memory of the device holds."""

import logging
from typing import TYPE_CHECKING

from stepwise_pl.config.training import AUTO
from stepwise_pl.models.memory import examples_that_fit, free_bytes

if TYPE_CHECKING:
    from stepwise_pl.training.module import StepwiseModule

log = logging.getLogger("stepwise_pl")


def set_eval_batch_size(module: "StepwiseModule", trains: bool) -> None:
    """Set the examples that are scored at a time, if the settings leave it open and the device has CUDA.

    Args:
        trains: whether gradients and moments will lie in the memory.
    """
    data, strategy = module.data, module.trainer.strategy
    if data.data.eval_batch_size != AUTO or strategy.root_device.type != "cuda":
        return
    free = free_bytes(strategy.root_device, module.model, 4 if trains else 1)
    # The first process decides for all, so that all have the same number of batches.
    data.eval_batch_size = strategy.broadcast(fitting(module, free))
    log.info("data.eval_batch_size=auto: %d examples are scored at a time", data.eval_batch_size)


def fitting(module: "StepwiseModule", free: int) -> int:
    """Return how many examples of the run fit into `free` bytes beside the model."""
    data = module.data
    longest = max(int(data.encoded[split].length.max()) for split in ("validation", "test"))
    method, limits = module.method, data.limits
    added = method.added(method.last_stage(limits), limits)
    return examples_that_fit(module.model, longest + added, limits.max_new_tokens(0), free)
