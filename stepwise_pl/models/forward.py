"""Forward passes: the logits at the targets, and the inputs that a type of model takes."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepwise_pl.data.batch import CoTBatch, Part

# The logits of these types are the output embedding of the last hidden state, and nothing more (tested). Other types may
# scale or cap them (cohere, gemma2, granite, ...); they are read in a full pass.
PLAIN_HEADS = ("gpt2", "llama", "mistral", "phi3", "qwen2")

Head = Callable[["Targets"], Tensor]


@dataclass
class Targets:
    """The tokens that a model reads, and the targets that it has to predict.

    Attributes:
        tokens: all columns but the last; nothing is predicted after it; [batch, seq - 1] int64.
        position: position of each token, [batch, seq - 1] int64; None if positions count from 0.
        index: places in the flattened tokens at which a target is predicted, [targets] int64.
        label: the targets, [targets] int64, row after row.
    """

    tokens: Tensor
    position: Tensor | None
    index: Tensor
    label: Tensor

    @classmethod
    def of(cls, batch: CoTBatch) -> "Targets":
        """Return the targets of a batch after removal. The batch should be on the host: on a device, this call waits for it."""
        target = batch.is_target[:, 1:]
        there = batch.part[:, :-1] != Part.PAD
        counted = torch.arange(target.shape[1], device=target.device)
        jumps = bool(((batch.position[:, :-1] != counted) & there).any())
        index = target.flatten().nonzero().squeeze(1)
        return cls(
            tokens=batch.tokens[:, :-1],
            position=batch.position[:, :-1] if jumps else None,
            index=index,
            label=batch.tokens[:, 1:].flatten()[index],
        )

    def to(self, device: torch.device | str) -> "Targets":
        """Return the targets on another device."""
        if torch.device(device) == self.tokens.device:
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.contiguous().pin_memory().to(device, non_blocking=True)

        position = None if self.position is None else moved(self.position)
        return Targets(moved(self.tokens), position, moved(self.index), moved(self.label))


def target_logits(model: PreTrainedModel, targets: Targets, head: Head | None = None) -> Tensor:
    """Return the logits that predict each target, teacher-forced; [targets, vocabulary].

    The mask is all ones: padding stands on the right, and no token attends to its right. The
    mask cannot be left out: without one, transformers takes a jump in the positions for the
    start of another packed sequence, and cuts attention to everything before it.

    Args:
        head: replaces `head_logits` if weights are sharded (`stepwise_pl.training.sharding`).
    """
    if model.config.model_type in PLAIN_HEADS:
        return head_logits(model, targets) if head is None else head(targets)
    # Columns before the first target of the batch need no logits.
    first = int(targets.index.remainder(targets.tokens.shape[1]).min())
    width = targets.tokens.shape[1] - first
    logits = full_pass(model, targets.tokens, targets.position, width)
    row, column = targets.index // targets.tokens.shape[1], targets.index % targets.tokens.shape[1]
    return logits.flatten(0, 1).index_select(0, row * width + column - first)


def head_logits(model: PreTrainedModel, targets: Targets) -> Tensor:
    """Return `target_logits` of a model with a plain head. The head is applied at the targets alone."""
    hidden = model.base_model(**model_inputs(model, targets.tokens, targets.position)).last_hidden_state
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    logits: Tensor = output(hidden.flatten(0, 1).index_select(0, targets.index))  # type: ignore[misc]
    return logits


def hidden_states(model: PreTrainedModel, targets: Targets, layers: Sequence[int]) -> Tensor:
    """Return the residual stream after some layers, teacher-forced.

    Args:
        layers: 0 is the sum of the embeddings, l the output of layer l. The last one is normalised, as in transformers.

    Returns:
        [layers, batch, seq - 1, width].
    """
    read = model_inputs(model, targets.tokens, targets.position)
    found = model.base_model(**read, output_hidden_states=True).hidden_states
    return torch.stack([found[layer] for layer in layers])


def full_pass(model: PreTrainedModel, tokens: Tensor, position: Tensor | None, last: int) -> Tensor:
    """Return the logits after each of the last columns, read without a cache and with a mask of ones.

    Args:
        tokens: [batch, seq] int64, padded on the right.
        position: position of each token, [batch, seq] int64; None: positions count from 0.
        last: the number of columns.

    Returns:
        [batch, last, vocabulary].
    """
    read = model_inputs(model, tokens, position)
    if "logits_to_keep" in accepted_by(type(model).forward):
        read["logits_to_keep"] = last
    logits: Tensor = model(**read).logits
    return logits[:, -last:]


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model takes the positions of its tokens. Recurrent models and some with relative positions do not."""
    return "position_ids" in accepted_by(type(model).forward)


def model_inputs(model: PreTrainedModel, tokens: Tensor, position: Tensor | None) -> dict[str, Any]:
    """Return the inputs that the model's type takes, by name."""
    possible = {
        "input_ids": tokens, "attention_mask": torch.ones_like(tokens), "position_ids": position, "use_cache": False
    }  # fmt: skip
    return {name: value for name, value in possible.items() if name in accepted_by(type(model).forward)}


@functools.cache
def accepted_by(kind: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the parameters of a function."""
    return frozenset(inspect.signature(kind).parameters)
