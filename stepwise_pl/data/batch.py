"""CoTBatch: tokens, and the part that each token belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from stepwise_pl.common.errors import UserError


class Part(IntEnum):
    """The part of an example that a token belongs to.

    The prompt owns the first separator; the CoT is everything strictly between the two
    separators; the answer owns the second separator, itself and the final end token. Thoughts
    are inputs that a method puts between prompt and CoT (`CoTBatch.insert`); they are no words and no targets.
    """

    PROMPT = 0
    THOUGHT = 1
    COT = 2
    ANSWER = 3
    PAD = 4


@dataclass
class CoTBatch:
    """A batch of examples, padded on the right.

    Attributes:
        tokens: token ids, [batch, seq] int64. A negative id is an input that is no word: `LATENT`, or `own(k)`
            (stepwise_pl/methods/base.py).
        part: `Part` of each token, [batch, seq] int8; within a row parts only ascend.
        position: position id of each token, [batch, seq] int64. `collate` counts from 0.
        unit_start: whether a unit of removal begins at the token, [batch, seq] bool. The unit
            is every CoT token, or every reasoning step.
        draw: number of each example in the endless training stream, or its index in an
            evaluation split; [batch] int64, on the host. Random offsets depend on it.
        values: the quantities that the method asks for (`Method.quantities`), by name, each [batch, seq] float32: the
            number behind an answer token at its place, nan elsewhere.
    """

    tokens: Tensor
    part: Tensor
    position: Tensor
    unit_start: Tensor
    draw: Tensor
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def attention_mask(self) -> Tensor:
        """1 at tokens, 0 at padding; [batch, seq] int64."""
        return (self.part != Part.PAD).long()

    @property
    def is_target(self) -> Tensor:
        """Whether the token is a target: all tokens of CoT and answer are; [batch, seq] bool."""
        return (self.part == Part.COT) | (self.part == Part.ANSWER)

    def length_of(self, part: Part) -> Tensor:
        """Return the number of tokens of `part` in each example; [batch] int64."""
        return (self.part == part).sum(1)

    @property
    def num_given(self) -> Tensor:
        """The number of tokens of each example before the first that the model writes: prompt and thoughts; [batch] int64."""
        return (self.part < Part.COT).sum(1)

    def row(self, number: int) -> "CoTBatch":
        """Return a copy of one example as a batch, without padding."""
        keep = self.part[number] != Part.PAD
        return CoTBatch(
            tokens=self.tokens[number][keep][None],
            part=self.part[number][keep][None],
            position=self.position[number][keep][None],
            unit_start=self.unit_start[number][keep][None],
            draw=self.draw[number : number + 1],
            values=self._each_value(lambda value: value[number][keep][None]),
        )

    def take(self, rows: Tensor) -> "CoTBatch":
        """Return some of the examples, with their padding; `rows` are their numbers, [n] int64."""
        return CoTBatch(
            tokens=self.tokens[rows],
            part=self.part[rows],
            position=self.position[rows],
            unit_start=self.unit_start[rows],
            draw=self.draw[rows.cpu()],
            values=self._each_value(lambda value: value[rows]),
        )

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]], given: int) -> "CoTBatch":
        """Return rows of ids as a batch: the first `given` of each row are its prompt, the others its CoT."""
        width = max(map(len, rows))
        column = torch.arange(width).expand(len(rows), -1)
        padding = column >= torch.tensor([[len(row)] for row in rows])
        part = torch.where(column < given, Part.PROMPT, Part.COT).to(torch.int8).masked_fill(padding, Part.PAD)
        return cls(
            tokens=torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]),
            part=part,
            position=column.masked_fill(padding, 0),
            unit_start=part == Part.COT,
            draw=torch.arange(len(rows)),
        )

    @classmethod
    def stack(cls, batches: Sequence["CoTBatch"]) -> "CoTBatch":
        """Return the batches one below the other, padded on the right to the longest."""
        width = max(batch.tokens.shape[1] for batch in batches)
        batches = [batch.padded(width) for batch in batches]

        def below(name: str) -> Tensor:
            return torch.cat([getattr(batch, name) for batch in batches])

        return cls(
            tokens=below("tokens"),
            part=below("part"),
            position=below("position"),
            unit_start=below("unit_start"),
            draw=below("draw"),
            values={name: torch.cat([batch.values[name] for batch in batches]) for name in batches[0].values},
        )

    def padded(self, width: int) -> "CoTBatch":
        """Return the batch padded on the right to a width, in columns, which is at least its own."""
        more = (0, width - self.tokens.shape[1])
        if more == (0, 0):
            return self
        return CoTBatch(
            tokens=F.pad(self.tokens, more),
            part=F.pad(self.part, more, value=Part.PAD),
            position=F.pad(self.position, more),
            unit_start=F.pad(self.unit_start, more, value=False),
            draw=self.draw,
            values=self._each_value(lambda value: F.pad(value, more, value=torch.nan)),
        )

    def remove(
        self, units: Tensor | npt.NDArray[np.int64] | int, side: str = "left", keep_position: bool = False
    ) -> "CoTBatch":
        """Return the batch without the first (`side="left"`) or last (`"right"`) `units` of each example's CoT.

        With tokens as units this makes z[1 + min(s + o, m) : m] of the paper's objective (arXiv
        2405.14838, section 3). No loop over examples: a running count over the CoT, a mask, and
        one gather. The batch is padded on the right, with any lengths, an empty CoT included.

        Args:
            units: the number of units (tokens or reasoning steps, see `unit_start`) to remove
                from each example, [batch] int64 or one number; 0 removes nothing. A number
                above the CoT's units removes all of them.
            keep_position: tokens behind the gap keep their positions, so that positions jump
                at the gap. Otherwise positions close up.

        Returns:
            A batch no wider than its longest example.
        """
        cot = self.part == Part.COT
        count = torch.as_tensor(units, device=cot.device).reshape(-1, 1)
        rank = self.unit_start.cumsum(1)  # 1 in the first unit, m in the last and behind it; [batch, seq]
        gone = cot & (rank <= count if side == "left" else rank > rank[:, -1:] - count)
        keep = ~gone & (self.part != Part.PAD)
        # A stable sort by "not kept" moves the kept tokens to the front, in order; [batch, seq left].
        order = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices[:, : max(1, int(keep.sum(1).max()))]
        padding = ~keep.gather(1, order)
        position = self.position.gather(1, order)
        if not keep_position:
            position = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return CoTBatch(
            tokens=self.tokens.gather(1, order),
            part=self.part.gather(1, order).masked_fill(padding, Part.PAD),
            position=position.masked_fill(padding, 0),
            unit_start=self.unit_start.gather(1, order) & ~padding,
            draw=self.draw,
            values=self._each_value(lambda value: value.gather(1, order).masked_fill(padding, torch.nan)),
        )

    def insert(self, inputs: Sequence[Sequence[int]]) -> "CoTBatch":
        """Return the batch with inputs of a method between prompt and CoT, as `Part.THOUGHT`.

        Later tokens move on: their positions grow by the number of inputs of their row.

        Args:
            inputs: negative ids for each row, as many as the row gets.

        Raises:
            UserError: `inputs` is no list of ids for each row.
        """
        if len(inputs) != len(self) or not all(isinstance(row, Sequence) for row in inputs):
            raise UserError(
                f"batch.insert takes a list of ids for each of {len(self)} examples, not {str(inputs)[:60]}"
            )
        count = torch.tensor([[len(row)] for row in inputs])
        most = int(count.max())
        if most == 0:
            return self
        ids = torch.tensor([[*row, *[0] * (most - len(row))] for row in inputs])
        prompt = self.length_of(Part.PROMPT)[:, None]
        length = self.attention_mask.sum(1, keepdim=True) + count
        column = torch.arange(int(length.max())).expand(len(self), -1)
        is_later, padding = column >= prompt + count, column >= length
        new = (column >= prompt) & ~is_later
        source = torch.where(is_later, column - count, column.minimum(prompt - 1)).clamp(max=self.tokens.shape[1] - 1)
        rank = (column - prompt).clamp(0, most - 1)
        # A new token follows the last one of the prompt.
        position = self.position.gather(1, source) + torch.where(is_later, count, (column - prompt + 1).clamp(min=0))
        return CoTBatch(
            tokens=torch.where(new, ids.gather(1, rank), self.tokens.gather(1, source)).masked_fill(padding, 0),
            part=self.part.gather(1, source).masked_fill(new, Part.THOUGHT).masked_fill(padding, Part.PAD),
            position=position.masked_fill(padding, 0),
            unit_start=self.unit_start.gather(1, source) & ~new & ~padding,
            draw=self.draw,
            values=self._each_value(lambda value: value.gather(1, source).masked_fill(new | padding, torch.nan)),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CoTBatch":
        """Return the batch on another device. `draw` stays on the host, because offsets are computed there."""
        return CoTBatch(
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            part=self.part.to(device, non_blocking=non_blocking),
            position=self.position.to(device, non_blocking=non_blocking),
            unit_start=self.unit_start.to(device, non_blocking=non_blocking),
            draw=self.draw,
            values=self._each_value(lambda value: value.to(device, non_blocking=non_blocking)),
        )

    def _each_value(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return `values` with a change made to each."""
        return {name: change(value) for name, value in self.values.items()}


def continuation(batch: CoTBatch) -> list[list[int]]:
    """Return CoT and answer of each example as lists of tokens: the target of `generate`."""
    starts, ends = batch.num_given.tolist(), batch.attention_mask.sum(1).tolist()
    return [row[start:end] for row, start, end in zip(batch.tokens.tolist(), starts, ends, strict=True)]
