"""Edits: the states of some tokens are read or replaced before a block, in one pass or in the passes of a reading with thoughts."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepwise_pl.models.blocks import changed_states


@dataclass(frozen=True)
class Edit:
    """A change of what one block reads at some tokens of each row of a view.

    Attributes:
        layer: the block, 0 .. L - 1. Its input is state `layer` (`blocks`).
        column: columns of the view, [batch, n] int64; -1: no token.
        change: gets the rows of some tokens and their numbers in `column`, both [m] int64, and their states, [m, width]. It
            returns the states that the block reads, [m, width]. Each token is handed over once, tokens of several passes in
            several calls.
    """

    layer: int
    column: Tensor
    change: Callable[[Tensor, Tensor, Tensor], Tensor]

    def to(self, device: torch.device | str) -> "Edit":
        """Return the edit with its columns on another device."""
        return replace(self, column=self.column.to(device))


def edited_states(model: PreTrainedModel, edits: Sequence[Edit], first: int = 0) -> AbstractContextManager[None]:
    """Inside of this context the blocks read what the edits make of the states.

    Args:
        edits: two edits of one layer follow each other.
        first: the column, as the edits count, that stands first in the model's pass.
    """
    if not edits:
        return nullcontext()
    of_layer = defaultdict(list)
    for edit in edits:
        of_layer[edit.layer].append(edit.to(model.device))

    def change(layer: int, state: Tensor) -> Tensor:  # [batch, columns of the pass, width]
        for edit in of_layer[layer]:
            column = edit.column - first
            row, number = ((column >= 0) & (column < state.shape[1])).nonzero(as_tuple=True)
            if len(row):
                at = row, column[row, number]
                state = state.index_put(at, edit.change(row, number, state[at]).to(state.dtype))
        return state

    return changed_states(model, change)
