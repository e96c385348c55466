"""FSDP2: each process holds a part of the weights, gradients and moments; a layer is gathered while it computes."""

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
    """FSDP2 over all devices. A checkpoint is one file, as in any other run, not a folder with a file per process."""

    def __init__(self, devices: int) -> None:
        super().__init__(devices, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.fn != "fit":
            # Lightning would look for the state of the training's optimizers, which best.ckpt lacks.
            self.optimizers = []
        return super().load_checkpoint(checkpoint_path, weights_only)


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> Head:
    """Keep only this process's part of every weight of the model, unless the model is sharded already.

    Args:
        mesh: a mesh of one dimension.

    Returns:
        `head_logits` of the model, which gathers embeddings and output head first.
    """
    if isinstance(model, FSDPModule):
        return model.head_logits  # type: ignore[return-value]
    # The stack of layers is the longest list of modules. A model without such a list is gathered as a whole.
    for layer in max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len, default=()):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # FSDP2 gathers embeddings and output head in the model's own `forward`. Training does not call `forward`.
    model.head_logits = MethodType(head_logits, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "head_logits")
    return model.head_logits  # type: ignore[return-value]


def gather(model: PreTrainedModel) -> None:
    """Gather all weights, and keep them whole until `release`.

    Processes decode answers of unequal length, so no process may wait for another in a forward pass.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def release(model: PreTrainedModel) -> None:
    """Keep only this process's part of every weight again."""
    for place, module in enumerate(model.modules()):
        if isinstance(module, FSDPModule):
            # Embeddings and head are outermost. FSDP2 keeps them together from forward to backward.
            module.set_reshard_after_forward(place > 0, recurse=False)
            module.reshard()
