"""LoRA (arXiv 2106.09685) through peft: low-rank adapters beside frozen weights.

The adapters are put into the model itself; its class stays the one of transformers. Only the
adapters are trained, and only they are in a run's checkpoints. The frozen weights are loaded
again from their source, and their digest is compared.
"""

import hashlib
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.model import LoRAConfig


def add_adapters(model: PreTrainedModel, cfg: LoRAConfig) -> None:
    """Put adapters beside the layers that `cfg` names, and freeze all else.

    The adapters are in float32. At first they change nothing: B is zero, A is drawn from torch's generator.

    Raises:
        UserError: peft is not installed, or the model has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(f"model.lora.rank={cfg.rank}: needs peft: pip install peft") from None
    config = LoraConfig(
        r=cfg.rank,
        lora_alpha=2 * cfg.rank if cfg.alpha is None else cfg.alpha,  # type: ignore[arg-type]
        lora_dropout=cfg.dropout,
        target_modules=list(cfg.targets) or "all-linear",
        # GPT-2's layers store W transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, model)
    except Exception as error:
        raise UserError(f"model.lora.targets={cfg.targets}: {first_line(error)}") from None
    for parameter in trained(model).values():
        parameter.data = parameter.data.float()


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that training changes, by name. In a model with adapters they are the adapters'."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether the model has adapters. Frozen weights prove nothing: some types have positions that are never trained."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def load_adapters(model: PreTrainedModel, weights: Mapping[str, Tensor], where: str) -> None:
    """Put `weights` into the adapters.

    Raises:
        UserError: names or shapes differ; `where` names the source of the weights.
    """
    own = trained(model)
    wrong = own.keys() ^ weights.keys() or {key for key in own if own[key].shape != weights[key].shape}
    if wrong:
        raise UserError(f"{where}: its adapters do not fit model.lora ({min(wrong)} for one)")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def merge_adapters(model: PreTrainedModel) -> None:
    """Add the adapters to the weights beside them, and remove the adapters. Without adapters, do nothing."""
    if not has_adapters(model):
        return
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[operator]
            model.set_submodule(name, layer.get_base_layer())
    model.requires_grad_(True)


def frozen_digest(model: torch.nn.Module) -> str | None:
    """Return a hash of the weights that are not trained; None for a model without adapters."""
    if not has_adapters(model):
        return None
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
