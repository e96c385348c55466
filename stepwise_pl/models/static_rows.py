"""Rows of tokens of a fixed shape: the pass over the next token of each row is compiled once and replayed.

A step of greedy decoding is many small kernels, and a GPU waits for the process that launches them. At fixed shapes
and addresses torch records the launches of a step once, as a CUDA graph, and starts all of them by one call. So the cache is
as long as the whole text from the start (`StaticCache` of transformers), and rows and length are rounded up to few sizes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache

from stepwise_pl.models.forward import accepted_by, model_inputs, takes_positions
from stepwise_pl.models.reading import Inputs, Reading
from stepwise_pl.models.rows import Cached, OnPass

log = logging.getLogger(__name__)

# The compiler. Tests replace it by quicker ones.
BACKEND = "inductor"
# Every shape is compiled, for seconds to minutes. Few rows are cheap, so that fewer sizes of them do.
SMALL_ROWS, SHORTEST = (1, 4, 16, 64), 64
# Programs that torch keeps of the step, over all models of the process. Its own limit is 8.
MOST_PROGRAMS = 256


class Shape(NamedTuple):
    """The shape of a compiled step: rows, columns of the cache, and the type of the numbers in it."""

    rows: int
    length: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: PreTrainedModel, rows: int, length: int) -> "Shape":
        """Return the shape that holds so many rows, of so many tokens: powers of two, few of them below 64."""
        whole = next((size for size in SMALL_ROWS if size >= rows), _power_of_two(rows))
        return cls(whole, max(SHORTEST, _power_of_two(length)), computed_in(model))


def _power_of_two(count: int) -> int:
    """Return the lowest power of two that is not below a count of at least 1."""
    return int(1 << (count - 1).bit_length())


def computed_in(model: PreTrainedModel) -> torch.dtype:
    """Return the type of the numbers that the model computes in."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


@dataclass
class _Memory:
    """The tensors of a shape. Batch after batch is read into the same ones, because a CUDA graph holds addresses.

    Attributes:
        mask: the columns that each row attends to, [rows, length] int64.
        token, position: what a step reads, [rows, 1] int64.
    """

    cache: StaticCache
    mask: Tensor
    token: Tensor
    position: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, shape: Shape) -> "_Memory":
        cache = StaticCache(config=model.config, max_cache_len=shape.length)
        token, position = (
            torch.zeros(shape.rows, 1, dtype=torch.long, device=model.device),
            torch.zeros(shape.rows, 1, dtype=torch.long, device=model.device),
        )
        return cls(cache, token.new_zeros(shape.rows, shape.length), token, position)

    def fix(self) -> None:
        """Tell torch that the tensors stay in their place. They may move all the same: torch records anew then, and does not compile."""
        of_layers = [
            getattr(layer, name, None)
            for layer in self.cache.layers
            for name in ("keys", "values", "cumulative_length")
        ]
        for tensor in (self.mask, self.token, self.position, *of_layers):
            if isinstance(tensor, Tensor):
                torch._dynamo.mark_static_address(tensor, guard=False)


@dataclass
class _CompiledStep:
    """The compiled step of a model, and the tensors of each shape that it was called with."""

    step: Callable[..., Tensor]
    memory: dict[Shape, _Memory] = field(default_factory=dict)


_compiled_steps: WeakKeyDictionary[PreTrainedModel, _CompiledStep] = WeakKeyDictionary()


def release(model: nn.Module) -> None:
    """Give the memory of all shapes back. The compiled steps stay."""
    if isinstance(model, PreTrainedModel) and model in _compiled_steps:
        _compiled_steps[model].memory.clear()


def can_be_static(model: PreTrainedModel) -> bool:
    """Whether rows of this model can have a fixed shape: every layer has keys and values of all tokens, and transformers lets it be compiled."""
    try:
        layers: list[Any] = StaticCache(config=model.config, max_cache_len=1).layers
    except Exception:  # a recurrent model may have a cache of its own, and no layers that this one knows
        return False
    return (
        bool(layers)
        # A window of attention and a recurrent state are classes of their own.
        and all(type(layer).__name__ == "StaticLayer" for layer in layers)
        and bool(getattr(model, "_can_compile_fullgraph", False))
        and model.config._attn_implementation in ("sdpa", "eager")
        and takes_positions(model)
        # A compiled step would leave out hooks that were set after it was compiled.
        and not any(module._forward_pre_hooks for module in model.modules())
    )


def _step(model: PreTrainedModel, read: dict[str, Any]) -> Tensor:
    """Return the logits after the next token of each row, [rows, vocabulary]."""
    logits: Tensor = model(**read).logits
    return logits[:, -1]


def _compiled(device: torch.device) -> Callable[..., Tensor]:
    mode = "reduce-overhead" if BACKEND == "inductor" and device.type == "cuda" else None
    settings: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": BACKEND, "mode": mode}
    if "recompile_limit" in accepted_by(torch.compile):
        settings["recompile_limit"] = MOST_PROGRAMS
        return torch.compile(_step, **settings)
    # An older torch has one limit for all that is compiled. A change of the limit takes 0.06 ms of each step.
    limit: Any = torch._dynamo.config.patch(recompile_limit=MOST_PROGRAMS)  # type: ignore[attr-defined, no-untyped-call]
    found: Callable[..., Tensor] = limit(torch.compile(_step, **settings))
    return found


class StaticRows(Cached):
    """Rows as in `Cached`, of a fixed shape. The first logits come from a plain pass, all others from a compiled one.

    Rows that fill the shape are copies of the last row. They are left out of the logits.

    Args:
        start: the rows before any token is added.
        more: the most tokens that are added.
    """

    def __init__(
        self, model: PreTrainedModel, start: Reading, inputs: Inputs, on_pass: OnPass | None = None, *, more: int
    ) -> None:  # fmt: skip
        self.count, self.width = start.tokens.shape  # width: columns that hold tokens
        shape = Shape.of(model, self.count, self.width + more)
        known = _compiled_steps.get(model)
        if known is None:
            known = _compiled_steps[model] = _CompiledStep(_compiled(model.device))
        if shape not in known.memory:
            known.memory[shape] = _Memory.of(model, shape)
        self.step, self.memory = known.step, known.memory[shape]
        self.memory.cache.reset()  # type: ignore[no-untyped-call]
        filled = start.rows(torch.arange(shape.rows, device=start.tokens.device).clamp(max=self.count - 1))
        self.memory.mask.zero_()
        self.memory.mask[:, : self.width] = filled.there
        self.is_started = False
        super().__init__(model, filled, inputs, on_pass, cache=self.memory.cache)
        if self.thoughts is not None:
            self.thoughts = self.thoughts[: self.count]

    def logits(self) -> Tensor:
        """Return the logits after each row, [batch, vocabulary]. They hold until the next call."""
        if not self.is_started:
            logits = super().logits()
            self.memory.fix()
            self.is_started = True
            return logits[: self.count]
        memory = self.memory
        read = model_inputs(self.model, memory.token, memory.position)
        read |= {"attention_mask": memory.mask, "past_key_values": memory.cache, "use_cache": True}
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self.step(self.model, read)[: self.count]

    def add(self, token: Tensor, position: Tensor) -> None:
        """Append the next token of each row, with its position; both [batch] int64."""
        # The tensors are written in place: a step reads the same addresses every time.
        self.memory.token[: self.count, 0] = token
        self.memory.position[: self.count, 0] = position
        if self.width < self.memory.mask.shape[1]:
            self.memory.mask[:, self.width] = 1
        self.width += 1
