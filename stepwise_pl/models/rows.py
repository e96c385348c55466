"""Rows of tokens that grow token by token: read with a KV cache that grows with them, or read whole at every step."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedModel

from stepwise_pl.models.blocks import replaced_states
from stepwise_pl.models.forward import accepted_by, full_pass, model_inputs
from stepwise_pl.models.reading import Inputs, Passes, Reading

# Called at the end of a forward pass: one for each thought, then one for each token.
OnPass = Callable[[], None]


class Rows(Protocol):
    """Rows of unequal length that greedy decoding makes longer."""

    def logits(self) -> Tensor:
        """Return the logits after each row, [batch, vocabulary]."""

    def add(self, token: Tensor, position: Tensor) -> None:
        """Append the next token of each row, with its position; both [batch] int64."""


class Cached:
    """Rows of unequal length that grow token by token, read with a KV cache.

    Args:
        start: the rows before any token is added.
        cache: an empty cache; None: one that grows.

    Attributes:
        thoughts: the thoughts of each row, [batch, most, width]; None if there are none.
    """

    def __init__(
        self, model: PreTrainedModel, start: Reading, inputs: Inputs, on_pass: OnPass | None = None, *, cache: Cache | None = None
    ) -> None:  # fmt: skip
        self.model, self.states = model, start.states
        passes = Passes(model, start, inputs, cache=cache)
        self.thoughts = passes.read_thoughts(on_pass)
        self.read = passes.arguments(passes.last(self.thoughts), start.spans[-1])
        self.column = (start.tokens.shape[1] - start.known + start.prompt)[:, 0] - 1  # the last token of each prompt

    def logits(self) -> Tensor:
        """Return the logits after each row, [batch, vocabulary]."""
        if self.states is None:
            return self._logits()
        with replaced_states(self.model, self.states, self.column):
            logits = self._logits()
        self.states = None  # the prompt is read once; its keys and values are in the cache
        return logits

    def _logits(self) -> Tensor:
        last = {"logits_to_keep": 1} if "logits_to_keep" in accepted_by(type(self.model).forward) else {}
        logits: Tensor = self.model(**self.read, **last).logits
        return logits[:, -1]

    def add(self, token: Tensor, position: Tensor) -> None:
        """Append the next token of each row, with its position; both [batch] int64."""
        mask, cache = self.read["attention_mask"], self.read["past_key_values"]
        mask = torch.cat([mask, mask.new_ones(len(token), 1)], dim=1)
        self.read = model_inputs(self.model, token[:, None], position[:, None])
        self.read |= {"attention_mask": mask, "past_key_values": cache, "use_cache": True}


class Whole:
    """Rows as in `Cached`, but read from their first token at every step. As in training, padding stands on the right.

    Args:
        start: the rows before any token is added.
        thoughts: the thoughts of each row, [batch, most, width]; None if there are none.
    """

    def __init__(self, model: PreTrainedModel, start: Reading, inputs: Inputs, thoughts: Tensor | None = None) -> None:
        self.model, self.states, self.prompt = model, start.states, start.prompt[:, 0]
        self.inputs, self.thoughts, self.only_words = inputs, thoughts, start.only_words
        self.length = start.there.sum(1)
        # A stable sort moves the tokens to the front, in their order.
        column = (~start.there).to(torch.uint8).sort(dim=1, stable=True).indices
        self.tokens, self.positions = start.tokens.gather(1, column), start.position.gather(1, column)

    def logits(self, last: int | None = None) -> Tensor:
        """Return the logits after each row, [batch, vocabulary]; or after each of its `last` tokens, [batch, last, vocabulary]."""
        width, first = int(self.length.max()), int(self.length.min()) - (last or 1)
        positions = self.positions[:, :width]
        counted = torch.arange(width, device=positions.device)
        # As in training, positions that count from 0 are not given: a model may count otherwise (roberta).
        jumps = bool(((positions != counted) & (counted < self.length[:, None])).any())
        read = self.tokens[:, :width]
        read = read if self.only_words else self.inputs.of(read, self.thoughts)
        with nullcontext() if self.states is None else replaced_states(self.model, self.states, self.prompt - 1):
            logits = full_pass(self.model, read, positions if jumps else None, width - first)
        column = self.length[:, None] - first - (last or 1) + torch.arange(last or 1, device=positions.device)
        logits = logits.gather(1, column[..., None].expand(-1, -1, logits.shape[2]))
        return logits[:, 0] if last is None else logits

    def add(self, token: Tensor, position: Tensor) -> None:
        """Append the next token of each row, with its position; both [batch] int64."""
        column = self.length[:, None]
        self.tokens = F.pad(self.tokens, (0, 1)).scatter(1, column, token[:, None])
        self.positions = F.pad(self.positions, (0, 1)).scatter(1, column, position[:, None])
        self.length = self.length + 1
