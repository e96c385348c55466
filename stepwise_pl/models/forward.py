"""Forward passes: the logits at the targets, and the inputs that a type of model takes."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stepwise_pl.data.batch import CoTBatch, Part

# The logits of these types are the output embedding of the last hidden state, and nothing more (tested). Other types may
# scale or cap them (cohere, gemma2, granite, ...); they are read in a full pass.
PLAIN_HEADS = ("gpt2", "llama", "mistral", "phi3", "qwen2")

# transformers builds no mask for a kind of attention that it knows no mask for. Without a mask torch attends causally.
UNMASKED = "stepwise_unmasked"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)

Head = Callable[["Targets"], Tensor]


@dataclass
class Targets:
    """The tokens that a model reads, and the targets that it has to predict.

    Attributes:
        tokens: all columns but the last; nothing is predicted after it; [batch, seq - 1] int64, or their input vectors,
            [batch, seq - 1, width].
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

        is_cuda = torch.device(device).type == "cuda"

        def moved(tensor: Tensor) -> Tensor:
            # From pinned memory the copy does not wait for the device.
            return (tensor.contiguous().pin_memory() if is_cuda else tensor).to(device, non_blocking=is_cuda)

        position = None if self.position is None else moved(self.position)
        return Targets(moved(self.tokens), position, moved(self.index), moved(self.label))


def target_logits(model: PreTrainedModel, targets: Targets, head: Head | None = None) -> Tensor:
    """Return the logits that predict each target, teacher-forced; [targets, vocabulary].

    Padding stands on the right, and no token attends to its right, so no padding is masked. All the same the inputs hold a mask
    of ones: without one, transformers takes a jump in the positions for the start of another packed sequence, and cuts attention
    to everything before it. Inside of `unmasked` transformers builds no mask.

    Args:
        head: replaces `head_logits` if weights are sharded (`training.sharding`) or blocks are compiled (`models.compiled`).
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
    return see(model, model_inputs(model, targets.tokens, targets.position)).logits_at(model, targets.index)


class Seen(NamedTuple):
    """The states and logits that a model has computed at the columns that it read.

    Attributes:
        hidden: the last hidden states, after the last norm, [batch, columns, width].
        states: the residual stream after some layers, [layers, batch, columns, width]; None: not asked for.
        logits: [batch, columns, vocabulary]; None if they follow from `hidden` alone (`PLAIN_HEADS`).
    """

    hidden: Tensor
    states: Tensor | None = None
    logits: Tensor | None = None

    @classmethod
    def beside(cls, parts: Sequence["Seen"]) -> "Seen":
        """Return the parts side by side."""

        def joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
            found = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(found, dim=-2) if found else None

        return cls(torch.cat([part.hidden for part in parts], dim=1), joined([part.states for part in parts]),
                   joined([part.logits for part in parts]))  # fmt: skip

    def at(self, column: Tensor) -> "Seen":
        """Return what was seen at some columns of each row, [batch, n] int64."""

        def taken(tensor: Tensor) -> Tensor:
            index = column[..., None].expand(*tensor.shape[:-2], column.shape[1], tensor.shape[-1])
            return tensor.gather(-2, index)

        states, logits = self.states, self.logits
        return Seen(
            taken(self.hidden),
            None if states is None else taken(states),
            None if logits is None else taken(logits),
        )

    def logits_at(self, model: PreTrainedModel, index: Tensor) -> Tensor:
        """Return the logits at places in the flattened columns, [n] int64; [n, vocabulary]."""
        if self.logits is not None:
            return self.logits.flatten(0, 1).index_select(0, index)
        output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits: Tensor = output(self.hidden.flatten(0, 1).index_select(0, index))  # type: ignore[misc]
        return logits


def see(model: PreTrainedModel, read: dict[str, Any], layers: Sequence[int] = ()) -> Seen:
    """Make a forward pass.

    Args:
        read: the inputs (`model_inputs`).
        layers: the states to return: 0 is the sum of the embeddings, l the output of layer l. The last one is normalised,
            as in transformers.
    """
    is_plain = model.config.model_type in PLAIN_HEADS
    with unmasked(model, read):
        out = (model.base_model if is_plain else model)(**read, output_hidden_states=bool(layers) or not is_plain)
    states = torch.stack([out.hidden_states[layer] for layer in layers]) if layers else None
    if is_plain:
        return Seen(out.last_hidden_state, states)
    return Seen(out.hidden_states[-1], states, out.logits)


@contextmanager
def unmasked(model: PreTrainedModel, read: dict[str, Any]) -> Iterator[None]:
    """Inside of this context a pass without a cache attends to all earlier columns, and the mask in `read` is not looked at.

    Padding stands on the right, and no token attends to its right. transformers would look whether a mask is all ones, and a GPU
    would wait for the answer; compiled, it would not look, and attend by a slower kernel. Nothing changes for other attention
    than `sdpa`, for models whose heads are not plain, and if a layer attends to fewer columns.
    The configuration of the model says it for all threads, so that no other thread may decode with this model at the same time.
    """
    config = model.config
    columns = next(read[name] for name in ("input_ids", "inputs_embeds") if name in read).shape[1]
    if (
        read.get("use_cache")
        or config.model_type not in PLAIN_HEADS
        or config._attn_implementation != "sdpa"
        or narrowest_window(model, columns) < columns
    ):
        yield
        return
    config._attn_implementation = UNMASKED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


# The setting of each model, and its narrowest window; None: every layer attends to all columns.
_windows: WeakKeyDictionary[PreTrainedModel, tuple[Any, int | None]] = WeakKeyDictionary()


def narrowest_window(model: PreTrainedModel, columns: int) -> int:
    """Return the columns that every layer attends to, at most `columns`."""
    setting = getattr(model.config, "sliding_window", None)
    known, window = _windows.get(model, (0, None))
    # The 0 of a model that is not known yet differs from every setting: no model has a window of 0 columns.
    if known != setting:
        layers: list[Any] = DynamicCache(config=model.config).layers
        windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
        window = min(windows, default=None)
        _windows[model] = setting, window
    return columns if window is None else min(window, columns)


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
    """Return the inputs that the model's type takes, by name; `tokens` are ids, [batch, seq], or vectors, [batch, seq, width]."""
    kind = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
    mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    possible = {kind: tokens, "attention_mask": mask, "position_ids": position, "use_cache": False}
    return {name: value for name, value in possible.items() if name in accepted_by(type(model).forward)}


@functools.cache
def accepted_by(kind: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the parameters of a function."""
    return frozenset(inspect.signature(kind).parameters)
