"""FSDP2: weights, gradients and moments shared out among processes, put together layer by layer while they compute."""

from pathlib import Path
from types import MethodType
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from stepwise_pl.models.forward import Head, head_logits


class SharedWeights(ModelParallelStrategy):
    """FSDP2 over all devices. A checkpoint is one file, as of any other run, and not a folder with a file per process."""

    def __init__(self, devices: int) -> None:
        super().__init__(devices, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.fn != "fit":
            self.optimizers = []  # of the training before, whose state Lightning would ask best.ckpt for
        return super().load_checkpoint(checkpoint_path, weights_only)


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> Head:
    """Keep only this process's part of every weight of the model; nothing to do where that is so already.

    Args:
        mesh: of one dimension.

    Returns:
        `head_logits` of the model, which puts embeddings and output head together before.
    """
    if isinstance(model, FSDPModule):
        return model.head_logits  # type: ignore[return-value]
    # The stack of layers is the longest list of modules; a model without one is put together as a whole.
    for layer in max((one for one in model.modules() if isinstance(one, nn.ModuleList)), key=len, default=()):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Embeddings and output head are put together in the model's own `forward`, which training does not go through.
    model.head_logits = MethodType(head_logits, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "head_logits")
    return model.head_logits  # type: ignore[return-value]


def gather(model: PreTrainedModel) -> None:
    """Put all weights together, and keep them so until `release`.

    Processes decode answers of unequal length, so none may wait for another in a forward pass.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def release(model: PreTrainedModel) -> None:
    """Keep only this process's part again."""
    for place, module in enumerate(model.modules()):
        if isinstance(module, FSDPModule):
            # Embeddings and head are outermost. FSDP2 keeps them together from forward to backward.
            module.set_reshard_after_forward(place > 0, recurse=False)
            module.reshard()
