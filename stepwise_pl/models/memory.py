"""The memory of a device: examples that fit into it at a time, and work that goes on in smaller portions once it is full."""

import logging
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from stepwise_pl.models.forward import PLAIN_HEADS
from stepwise_pl.models.static_rows import Shape, computed_in

log = logging.getLogger(__name__)

T = TypeVar("T")

# The part of the free memory that an estimate may fill: blocks of unlike sizes leave holes, and kernels need room to work in.
FILLED = 0.6
# A bound on the estimate. Larger batches were not measured.
MOST_EXAMPLES = 4096
# Tensors that a layer holds at a time, by their width for each token: the states with their norms, the heads (queries, keys,
# values, with and without rotation, keys and values repeated for each group, output), and the wide part of the MLP. Nothing
# is kept for a backward pass.
OF_STATES, OF_HEADS, OF_MLP = 6, 8, 4


def in_portions(
    fitting: MutableMapping[str, int], what: str, count: int, work: Callable[[range], T], most: int | None = None
) -> Iterator[tuple[range, T]]:
    """Do work on examples 0 .. count - 1, portion after portion. Yield each portion and what the work returned.

    If the memory of the device is full, the portion is halved and its work is done again, until it fits. The size that
    fits is said once, and kept for all that follows.

    Args:
        fitting: the most examples at a time that fitted, by what was done with them; empty as long as all fits.
        what: what is done.
        work: leaves no traces if it raises `torch.OutOfMemoryError`.
        most: the most examples at a time; None: all.

    Raises:
        torch.OutOfMemoryError: a single example does not fit.
    """
    start, failed = 0, 0
    while start < count:
        size = min(fitting.get(what, count), most or count, count - start)
        portion = range(start, start + size)
        try:
            done = work(portion)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            failed, fitting[what] = failed or size, size // 2
            # The error holds the tensors of the work, so its memory is free at the end of this block only.
        else:
            if failed:
                log.warning(
                    "the memory was full when %d examples were to be %s at a time; now %d are", failed, what, size
                )
                failed = 0
            yield portion, done
            del done
            start += size
            continue
        torch.cuda.empty_cache()


def examples_that_fit(model: PreTrainedModel, columns: int, written: int, free: int) -> int:
    """Return how many examples can be scored or decoded at a time; at least 1. It is a number of `Shape.of`, rounded down.

    Args:
        columns: tokens of the longest example.
        written: the most tokens of CoT and answer.
        free: bytes of memory that are free besides the model.
    """
    shape = Shape.of(model, 1, columns)
    decoded = cache_bytes(model, shape.length) + pass_bytes(model, columns, 1)
    scored = pass_bytes(model, columns, written)
    most = min(MOST_EXAMPLES, int(FILLED * free / max(decoded, scored)))
    size = 1
    while Shape.of(model, size + 1, columns).rows <= most:
        size = Shape.of(model, size + 1, columns).rows
    return size


def cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Return the bytes of the keys and values of one row of `length` tokens, in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * _head_width(config) * length * computed_in(model).itemsize)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def pass_bytes(model: PreTrainedModel, columns: int, predicted: int) -> int:
    """Return about the bytes that a pass over one row needs at a time, without gradients.

    Args:
        columns: tokens that are read.
        predicted: tokens whose logits are needed.
    """
    config = model.config.get_text_config()
    size = computed_in(model).itemsize
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    wide = int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width)
    layer = (OF_STATES * width + OF_HEADS * heads * _head_width(config) + OF_MLP * wide) * columns * size
    if model.config._attn_implementation == "eager":
        layer += 2 * heads * columns**2 * 4
    # Other heads than plain ones are applied at every column (`forward.target_logits`). Cross entropy holds the logits
    # in float32 twice more.
    with_logits = predicted if model.config.model_type in PLAIN_HEADS else columns
    return layer + with_logits * int(config.vocab_size) * (size + 8)


def free_bytes(device: torch.device, model: PreTrainedModel, copies: int) -> int:
    """Return the bytes of a CUDA device that are left beside a model, which is not on the device yet.

    Args:
        copies: tensors of the size of the weights: 1 to evaluate, 4 to train (with gradients and AdamW's two moments).
    """
    free: Any = torch.cuda.mem_get_info(device)[0]
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return max(0, int(free) + unused - copies * weights)
