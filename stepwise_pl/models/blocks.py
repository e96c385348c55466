"""The blocks of a decoder: the states that flow through them are read and replaced by hooks, for any model of transformers.

State l is the input of block l, for l = 0 .. L - 1: state 0 is the sum of the embeddings. State L is the output of the
last block, before the final norm.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError

# The names of the last layer of an attention module in transformers. Its input is the output of all heads, side by side.
_OUTPUTS = ("c_proj", "o_proj", "out_proj", "dense", "wo")

Change = Callable[[int, Tensor], Tensor]


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Return the blocks of a model, in their order.

    Raises:
        UserError: they do not stand in one list, so that hooks cannot find them.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"a {model.config.model_type} has no list of {count} blocks, whose states could be read or replaced"
    )


def repeats_blocks(model: PreTrainedModel) -> bool:
    """Whether gradient checkpointing is on: the backward pass computes the blocks again."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@contextmanager
def changed_states(model: PreTrainedModel, change: Change) -> Iterator[None]:
    """Inside of this context `change(l, state)` returns what block l reads in the place of state l, [batch, seq, width]."""

    def hook(number: int) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if args:
                return (change(number, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(number, kwargs["hidden_states"])}

        return before

    _require_hooks_in_backward(model)
    with ExitStack() as stack:
        for number, block in enumerate(blocks(model)):
            stack.enter_context(_removed_afterwards(block.register_forward_pre_hook(hook(number), with_kwargs=True)))
        yield


def _require_hooks_in_backward(model: PreTrainedModel) -> None:
    """Raise `UserError` if gradient checkpointing would repeat blocks in the backward pass without their hooks."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    # Hooks stay outside if transformers checkpoints `forward`. Earlier versions checkpoint `__call__`.
    repeats_hooks = "__call__" in vars(GradientCheckpointingLayer)
    if repeats_hooks and any(
        getattr(block, "gradient_checkpointing", False) and block.training for block in blocks(model)
    ):
        raise UserError(
            "model.gradient_checkpointing=true: this version of transformers repeats blocks without the method's states; "
            "update transformers, or set it to false"
        )


@contextmanager
def replaced_states(model: PreTrainedModel, states: Tensor, column: Tensor) -> Iterator[None]:
    """Inside of this context every block reads other states at one token of each row.

    Args:
        states: the states that are read, [blocks, batch, width].
        column: the place of the token in each row, [batch] int64.
    """

    def change(number: int, state: Tensor) -> Tensor:
        row = torch.arange(len(state), device=state.device)
        return state.index_put((row, column.to(state.device)), states[number].to(state))

    with changed_states(model, change):
        yield


@contextmanager
def kept_states(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Inside of this context the states of some layers are kept as they come; by layer, each [batch, seq, width].

    Args:
        layers: 0 .. L.
    """
    found: dict[int, Tensor] = {}
    stack = blocks(model)

    def keep_input(number: int) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[number] = args[0] if args else kwargs["hidden_states"]

        return before

    def keep_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found[len(stack)] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as handles:
        for layer in layers:
            if layer == len(stack):
                handle = stack[-1].register_forward_hook(keep_output)
            else:
                handle = stack[layer].register_forward_pre_hook(keep_input(layer), with_kwargs=True)
            handles.enter_context(_removed_afterwards(handle))
        yield found


@contextmanager
def kept_head(model: PreTrainedModel, block: int, head: int) -> Iterator[dict[int, Tensor]]:
    """Inside of this context the output of an attention head is kept, under the number of its block; [batch, seq, head width].

    Raises:
        UserError: the block has no attention whose heads stand side by side before a last layer.
    """
    found: dict[int, Tensor] = {}
    heads = int(model.config.get_text_config().num_attention_heads)
    module = _attention_output(blocks(model)[block])
    if module is None:
        raise UserError(f"a {model.config.model_type} has no attention heads that hooks can read; set method.head=null")

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        found[block] = args[0].unflatten(-1, (heads, -1))[..., head, :]

    with _removed_afterwards(module.register_forward_pre_hook(keep)):
        yield found


def _attention_output(block: nn.Module) -> nn.Module | None:
    """Return the last layer of the attention in a block; None if it is not found."""
    for name, module in block.named_modules():
        parent, _, own = name.rpartition(".")
        if own in _OUTPUTS and ("attn" in parent or "attention" in parent):
            found: nn.Module = module
            return found
    return None


@contextmanager
def _removed_afterwards(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
