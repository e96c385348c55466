"""Lightning's bf16-true, rounding weights only."""

import torch
from lightning.pytorch.plugins.precision import HalfPrecision

from stepwise_pl.models.architecture import cast_weights


class BFloat16Weights(HalfPrecision):
    """Weights, gradients and moments in bf16; buffers and adapters stay in float32 (`cast_weights` says why)."""

    def __init__(self) -> None:
        super().__init__("bf16-true")

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        cast_weights(module, torch.bfloat16)
        return module
