"""CoTBatch: tokens, and which part each of them belongs to."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

IGNORE = -100  # the label that cross entropy leaves out


class Part(IntEnum):
    """The part of an example that a token belongs to.

    The prompt owns the first separator; the CoT is everything strictly between the two
    separators; the answer owns the second separator, itself and the final end token.
    """

    PROMPT = 0
    COT = 1
    ANSWER = 2
    PAD = 3


@dataclass
class CoTBatch:
    """A batch of examples, padded on the right.

    Attributes:
        tokens: token ids, [batch, seq] int64.
        part: `Part` of each token, [batch, seq] int8; within a row parts only ascend.
        position: position id of each token, [batch, seq] int64. `collate` counts from 0.
        unit_start: where a unit of removal begins, [batch, seq] bool: every CoT token, or the
            first token of every reasoning step.
        draw: number of each example in the endless training stream, [batch] int64 (in an
            evaluation split, its index), on the host. Random offsets are a function of it.
    """

    tokens: Tensor
    part: Tensor
    position: Tensor
    unit_start: Tensor
    draw: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def attention_mask(self) -> Tensor:
        """1 where there is a token, 0 at padding; [batch, seq] int64."""
        return (self.part != Part.PAD).long()

    @property
    def is_target(self) -> Tensor:
        """Where the token is to be predicted: all but prompt and padding; [batch, seq] bool."""
        return (self.part == Part.COT) | (self.part == Part.ANSWER)

    @property
    def labels(self) -> Tensor:
        """The tokens to be predicted, `IGNORE` elsewhere; not shifted; [batch, seq] int64."""
        return self.tokens.masked_fill(~self.is_target, IGNORE)

    def length_of(self, part: Part) -> Tensor:
        """Tokens of `part` in each example; [batch] int64."""
        return (self.part == part).sum(1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CoTBatch":
        """The batch on another device; `draw` stays, because offsets are computed on the host."""
        return CoTBatch(
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            part=self.part.to(device, non_blocking=non_blocking),
            position=self.position.to(device, non_blocking=non_blocking),
            unit_start=self.unit_start.to(device, non_blocking=non_blocking),
            draw=self.draw,
        )
