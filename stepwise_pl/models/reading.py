"""The tokens that a model reads before it writes: prompts, thoughts and accepted tokens, in columns that suit a KV cache.

A thought is an input that is no word. It is the hidden state at the place before it (`LATENT`), or a learned vector (`own`). A
row with n hidden states as inputs takes n + 1 passes: each of them is known only after the pass before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.methods.base import LATENT, own
from stepwise_pl.models.blocks import repeats_blocks
from stepwise_pl.models.edits import Edit, edited_states
from stepwise_pl.models.forward import Seen, model_inputs, narrowest_window, see


@dataclass(frozen=True)
class Inputs:
    """Turns ids into what the model reads.

    Attributes:
        table: the learned inputs of the method, row k for `own(k)`; None: it has none.
        thought: turns the hidden state at a place, [batch, width], into the input of the next place.
    """

    model: PreTrainedModel
    table: nn.Embedding | None
    thought: Callable[[Tensor], Tensor]

    def of(self, tokens: Tensor, thoughts: Tensor | None = None) -> Tensor:
        """Return the vector that the model reads for each id, [batch, seq, width].

        Args:
            tokens: [batch, seq] int64.
            thoughts: the inputs at the places of `LATENT`, in the order of each row, [batch, most, width].
        """
        words: nn.Module = self.model.get_input_embeddings()  # type: ignore[no-untyped-call]
        found: Tensor = words(tokens.clamp(min=0))
        if self.table is not None:
            rows = self.table((own(0) - tokens).clamp(min=0))
            found = torch.where((tokens <= own(0))[..., None], rows.to(found.dtype), found)
        if thoughts is not None:
            is_latent = tokens == LATENT
            rank = (is_latent.cumsum(1) - 1).clamp(min=0)[..., None]
            taken = thoughts.gather(1, rank.expand(*tokens.shape, thoughts.shape[2]))
            found = torch.where(is_latent[..., None], taken.to(found.dtype), found)
        return found


@dataclass(frozen=True)
class Reading:
    """The known tokens of some examples. Every row ends in the last column.

    If no row has a hidden state as input, there is one span of columns, padded on the left. Otherwise there are three parts:
    `before` columns that end at the first such input, padded on the left; `alone` columns, a pass each, for these inputs
    but the last of each row; and the rest, padded on the left. So the passes of all rows go side by side, whatever the
    lengths of their prompts.

    Attributes:
        tokens: [batch, columns] int64.
        there: whether there is a token, [batch, columns] bool.
        position: position of each token, [batch, columns] int64.
        prompt: tokens of each prompt, [batch, 1] int64.
        given: tokens of each row before the first that the model writes, [batch, 1] int64.
        known: tokens of each row, [batch, 1] int64.
        first: tokens of each row in the first part, [batch, 1] int64.
        single: tokens of each row in the second part, [batch, 1] int64.
        before, alone: columns of the first and the second part.
        only_words: whether no id is negative.
        states: what the blocks read at the last token of each prompt, [blocks, batch, width]; None: the model's own states.
    """

    tokens: Tensor
    there: Tensor
    position: Tensor
    prompt: Tensor
    given: Tensor
    known: Tensor
    first: Tensor
    single: Tensor
    before: int
    alone: int
    only_words: bool
    states: Tensor | None = None

    @classmethod
    def of(cls, view: CoTBatch, known: Tensor, states: Tensor | None = None) -> "Reading":
        """Return the first tokens of each example of a view, as many as `known` says, [batch, 1] int64."""
        prompt = view.length_of(Part.PROMPT)[:, None]
        is_latent = (view.tokens == LATENT) & (torch.arange(view.tokens.shape[1], device=known.device) < known)
        thoughts = is_latent.sum(1, keepdim=True)
        before = alone = 0
        first = single = torch.zeros_like(prompt)
        if bool(thoughts.any()):
            # A row without thoughts is cut before the end of its prompt: no part but the second may be empty.
            first = torch.where(thoughts > 0, is_latent.to(torch.uint8).argmax(1, keepdim=True), prompt - 1)
            single = (thoughts - 1).clamp(min=0)
            before, alone = int(first.max()), int(single.max())
        width = before + alone + int((known - first - single).max())
        column = torch.arange(width, device=known.device).expand(len(prompt), -1)
        in_rest, parted = column >= before + alone, first + single
        source = torch.where(in_rest, column - width + known, first + column - before)  # the column of the view
        there = torch.where(in_rest, source >= parted, (source >= 0) & ((column < before) | (source < parted)))
        source = source.clamp(0, view.tokens.shape[1] - 1)
        tokens = view.tokens.gather(1, source).masked_fill(~there, 0)
        return cls(
            tokens, there, view.position.gather(1, source), prompt, view.num_given[:, None], known, first, single, before,
            alone, not bool((tokens < 0).any()), states,
        )  # fmt: skip

    @property
    def spans(self) -> list[slice]:
        """The columns of each pass."""
        end, parted = self.tokens.shape[1], self.before + self.alone
        if not self.before:
            return [slice(0, end)]
        singles = [slice(column, column + 1) for column in range(self.before, parted)]
        return [slice(0, self.before), *singles, slice(parted, end)]

    @property
    def has_gaps(self) -> bool:
        """Whether a row has padding between its tokens."""
        return bool((self.there[:, :-1] & ~self.there[:, 1:]).any())

    def column(self, source: Tensor) -> Tensor:
        """Return the columns in which columns of the view stand, both [batch, n] int64."""
        width = self.tokens.shape[1]
        is_early = source < self.first + self.single
        return torch.where(is_early, self.before - self.first + source, width - self.known + source)

    def edit(self, edit: Edit) -> Edit:
        """Return an edit of the view, on the reading's device, as one of the reading."""
        edit = edit.to(self.tokens.device)
        return replace(edit, column=torch.where(edit.column >= 0, self.column(edit.column.clamp(min=0)), -1))

    def to(self, device: torch.device | str) -> "Reading":
        """Return the reading on another device."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, rows: Tensor) -> "Reading":
        """Return some of the rows; `rows` are their numbers, [n] int64."""
        states = None if self.states is None else self.states[:, rows]
        # The states have another first dimension than all else.
        return replace(replace(self, states=None)._changed(lambda tensor: tensor[rows]), states=states)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Reading":
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)


def require_window(model: PreTrainedModel, columns: int) -> None:
    """Raise `UserError` if a layer attends to fewer columns: in its window, gaps between the tokens of a row would count as tokens."""
    window = narrowest_window(model, columns)
    if window < columns:
        raise UserError(
            f"a {model.config.model_type} that attends to the last {window} tokens cannot read thoughts in a batch of {columns} "
            "columns; choose a wider +model.config.sliding_window, or another model.type"
        )


class Passes:
    """Forward passes over the columns of a reading, one span after the other, with a KV cache of their own.

    Args:
        layers: the states to keep (`forward.see`).
        edits: what the blocks read instead; their columns are those of the reading.
        cache: an empty cache; None: one that grows.
    """

    def __init__(
        self, model: PreTrainedModel, reading: Reading, inputs: Inputs, layers: Sequence[int] = (),
        edits: Sequence[Edit] = (), *, cache: Cache | None = None,
    ) -> None:  # fmt: skip
        self.model, self.reading, self.inputs, self.layers, self.edits = model, reading, inputs, layers, edits
        self.cache = DynamicCache(config=model.config) if cache is None else cache
        self.seen: list[Seen] = []

    def read_thoughts(self, on_pass: Callable[[], None] | None = None) -> Tensor | None:
        """Read all spans but the last, and call `on_pass` after each. Return the thoughts, [batch, most, width]; None if there are none."""
        thoughts: list[Tensor] = []
        for span in self.reading.spans[:-1]:
            known = self.inputs.of(self.reading.tokens[:, span]) if not thoughts else thoughts[-1][:, None]
            self.read(known, span)
            thoughts.append(self.inputs.thought(self.seen[-1].hidden[:, -1]))
            if on_pass is not None:
                on_pass()
        return torch.stack(thoughts, dim=1) if thoughts else None

    def last(self, thoughts: Tensor | None) -> Tensor:
        """Return the inputs of the last span: ids, or vectors if some are no words."""
        tokens = self.reading.tokens[:, self.reading.spans[-1]]
        if self.reading.only_words:
            return tokens
        if thoughts is not None:
            # The last span holds the last hidden state of each row as an input.
            thoughts = thoughts.gather(1, self.reading.single[..., None].expand(-1, 1, thoughts.shape[2]))
        return self.inputs.of(tokens, thoughts)

    def arguments(self, inputs: Tensor, span: slice) -> dict[str, Any]:
        """Return the arguments of the pass over a span, by name."""
        read = model_inputs(self.model, inputs, self.reading.position[:, span])
        mask = self.reading.there[:, : span.stop].long()
        return read | {"attention_mask": mask, "past_key_values": self.cache, "use_cache": True}

    def read(self, inputs: Tensor, span: slice) -> None:
        """Read a span."""
        with edited_states(self.model, self.edits, span.start):
            self.seen.append(see(self.model, self.arguments(inputs, span), self.layers))


def read_view(
    model: PreTrainedModel, view: CoTBatch, inputs: Inputs, layers: Sequence[int] = (), edits: Sequence[Edit] = ()
) -> tuple[Seen, Tensor | None]:
    """Read a view with its thoughts; it is on the host. Return what was seen at its columns but the last, and the thoughts.

    The thoughts are [batch, most, width]; None if there are none. An edit changes the thoughts after its columns as well.

    Raises:
        UserError: gradient checkpointing is on, or the model's window of attention is too narrow.
    """
    require_no_checkpointing(model)
    width = view.tokens.shape[1] - 1  # nothing is predicted after the last column
    reading = Reading.of(view, view.attention_mask.sum(1, keepdim=True).clamp(max=width))
    if reading.has_gaps:
        require_window(model, reading.tokens.shape[1])
    column = reading.column(torch.arange(width).expand(len(view), -1))
    passes = Passes(model, reading.to(model.device), inputs, layers, [reading.edit(edit) for edit in edits])
    thoughts = passes.read_thoughts()
    passes.read(passes.last(thoughts), reading.spans[-1])
    # Padding of the view has no place in the reading.
    column = column.clamp(max=reading.tokens.shape[1] - 1).to(model.device)
    return Seen.beside(passes.seen).at(column), thoughts


def require_no_checkpointing(model: PreTrainedModel) -> None:
    """Raise `UserError` if gradient checkpointing is on."""
    if repeats_blocks(model):
        raise UserError(
            "model.gradient_checkpointing=true: thoughts need a KV cache, which gradient checkpointing forbids; set it to false"
        )
