"""Settings of the model: `model.*`."""

import math
from dataclasses import dataclass, field
from typing import Any

from stepwise_pl.common.errors import UserError, require
from stepwise_pl.common.settings import setting

MOST_LAYERS = 1000

SMALL = "symbols"  # the small offline tokenizer


@dataclass
class LoRAConfig:
    """Low-rank adapters (peft), which are trained instead of the model's own weights."""

    # The rank of each weight matrix's change. 0: no adapters, everything is trained.
    rank: int = 0
    # The change is multiplied by alpha / rank. null: by 2.
    alpha: float | None = None
    # Dropout before an adapter; at least 0 and below 1.
    dropout: float = 0.0
    # Layers that get an adapter, by the ends of their names (`c_attn`, `q_proj`). Empty: every linear layer but the output head.
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.rank >= 0, "model.lora.rank", self.rank, "must be at least 0")
        require(self.alpha is None or 0 < self.alpha < math.inf, "model.lora.alpha", self.alpha, "must be above 0")
        require(0 <= self.dropout < 1, "model.lora.dropout", self.dropout, "must be at least 0 and below 1")


@dataclass
class ModelConfig:
    """The causal LM, its tokenizer, and the weights to start from."""

    # Hub name, folder or .gguf file of a pretrained model. `pretrained=false` does not read it.
    name: str = setting("gpt2", path=True)
    # Start from the pretrained weights of `name`; false: random weights of the architecture below.
    pretrained: bool = False
    # `symbols` (the small offline tokenizer), or a Hub name, folder or .gguf file of a Hugging Face tokenizer.
    tokenizer: str = setting(SMALL, path=True)
    # Architecture of a model with random weights: a transformers model type and its size.
    type: str = "gpt2"
    # Layers of a model with random weights; 1 to 1000.
    layers: int = 3
    # Attention heads of a layer; at least 1, and `width` must be a multiple of it.
    heads: int = 4
    # Width of the hidden states; at least 1.
    width: int = 128
    # The least number of positions. The model gets more if the longest example has more tokens.
    positions: int = 512
    # One rate for every dropout of the model; null leaves the model's own.
    dropout: float | None = None
    # Further keys of the model's transformers config, by their own names.
    config: dict[str, Any] = field(default_factory=dict)
    # Weights to start from: a run folder (its best checkpoint), a Hugging Face folder, or a checkpoint folder of the
    # reference implementation (state_dict.bin and config.json).
    init_from: str | None = setting(None, path=True)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    # Keep few activations of the forward pass and compute the others again: less memory, about a third more work.
    gradient_checkpointing: bool = setting(False, changeable=True, aside=True)

    def __post_init__(self) -> None:
        for key in ("layers", "heads", "width", "positions"):
            require(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "must be at least 1")
        # Each layer is built before anything is known of its size: a slip of the keyboard would take all memory.
        require(self.layers <= MOST_LAYERS, "model.layers", self.layers, f"must be at most {MOST_LAYERS}")
        require(self.width % self.heads == 0, "model.heads", self.heads, f"must divide model.width={self.width}")
        if self.dropout is not None:
            require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be at least 0 and below 1")
        if self.pretrained and self.tokenizer == SMALL:
            raise UserError(
                "model.tokenizer=symbols does not fit pretrained weights: set model.pretrained=false, "
                f"or the model's own tokenizer, model.tokenizer={self.name}"
            )
        if self.lora.rank and not self.pretrained and self.init_from is None:
            raise UserError(
                f"model.lora.rank={self.lora.rank}: leaves the weights as they are, and these are random; set "
                "model.pretrained=true or model.init_from=<folder>, or model.lora.rank=0"
            )


def no_such_type(name: str) -> UserError:
    """For `model.type`."""
    return UserError(f"model.type={name}: transformers has no causal LM of this type (gpt2, llama, mistral, ...)")
