"""The check that a model predicts each token from the tokens before it alone."""

import contextlib
import copy
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.models.architecture import num_positions
from stepwise_pl.models.decoding import rounding
from stepwise_pl.models.forward import full_pass, takes_positions

CHANGED = 6  # tokens exchanged at a time
LEAST = 20  # fewest tokens of a trial
# The most floating-point operations of a trial (seconds on a CPU), and the most logits in memory.
WORK, LOGITS = 1e12, 1e8


def require_causal(model: PreTrainedModel, what: str, longest: int, jumps: bool = False) -> None:
    """Raise `UserError` unless the model is a causal LM.

    Other models would be trained and scored on answers that they read. The check runs the
    model: if later tokens are exchanged or left out, no earlier logit may change. Weights,
    mode, buffers and random numbers stay as they are.

    Args:
        what: the model, for messages.
        longest: tokens of the longest example.
        jumps: whether training gives positions that jump (keep_position).
    """
    if jumps and not takes_positions(model):
        raise UserError(
            f"method.keep_position=true: a {model.config.model_type} cannot be told the positions of its tokens; "
            "use method.keep_position=false"
        )
    with restored_afterwards(model), torch.inference_mode():
        try:
            length = _length(model, longest)
            leak, influence = _leak_and_influence(model, length, jumps)
            if influence == 0:  # layers that start at zero predict nothing yet
                leak, influence = _leak_and_influence(_noisy(model), min(LEAST, length), jumps)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"{what}: cannot read a text as causal LMs do ({first_line(error)}); choose another"
            ) from None
    if not leak <= rounding(model) * influence:
        config = model.config
        flag = getattr(config, "is_decoder", None) is False
        raise UserError(
            f"{what}: is no causal LM: a later token changes its earlier predictions, so that it would be trained "
            f"on answers that it reads; {'with +model.config.is_decoder=true it may be one' if flag else 'choose another type'}"
        )


def _length(model: PreTrainedModel, longest: int) -> int:
    """Return the tokens of a trial: as many as the longest example has, if that is quick enough."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    quick = int(min(WORK / (2 * 5 * weights), LOGITS / (4 * vocabulary)))
    return min(max(LEAST, min(longest, quick)), num_positions(model) or longest + LEAST)


def _leak_and_influence(model: PreTrainedModel, length: int, jumps: bool) -> tuple[float, float]:
    """Return how much later tokens change earlier logits (the leak), and earlier tokens later logits (the influence).

    Both are root mean squares over the vocabulary, in units of logits.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.get_input_embeddings().num_embeddings) - 1  # type: ignore[arg-type]
    tokens = torch.randint(vocabulary, [length], generator=generator).repeat(4, 1)
    # The first row stays. The others have some tokens exchanged: near the start, in the middle, at the end.
    changed = min(CHANGED, length // 3)
    starts = (max(1, changed // 3), length // 2 - changed // 2, length - changed)
    for row, start in enumerate(starts, start=1):
        shift = torch.randint(1, vocabulary, [changed], generator=generator)
        tokens[row, start : start + changed] = (tokens[row, start : start + changed] + shift) % vocabulary
    # The padding token is left out, because some models (roberta) count positions by it.
    padding = getattr(model.config, "pad_token_id", None)
    tokens += (tokens >= (vocabulary if padding is None else padding)).long()
    position = torch.arange(length).expand(4, -1)
    last = (num_positions(model) or 2**31) - 1
    given = (position + CHANGED * (position >= length // 2)).clamp(max=last) if jumps else None

    def logits(rows: Tensor) -> Tensor:
        place = None if given is None else given[: len(rows), : rows.shape[1]].to(model.device)
        return full_pass(model, rows.to(model.device), place, rows.shape[1]).float()

    whole = logits(tokens)
    apart = (whole[1:] - whole[:1]).square().mean(2).sqrt()  # [3, length]
    half = length // 2
    without = (logits(tokens[:1, :half]) - whole[:1, :half]).square().mean(2).sqrt()  # the later tokens are left out
    leak = max(*(float(row[:start].max()) for row, start in zip(apart, starts, strict=True)), float(without.max()))
    influence = max(float(row[start + changed :].max()) for row, start in zip(apart[:2], starts, strict=False))
    return leak, influence


def _noisy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model with all weights moved at random."""
    copied = copy.deepcopy(model)
    generator = torch.Generator(model.device).manual_seed(0)
    for parameter in copied.parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        parameter.data = parameter.data + (0.1 * noise).to(parameter.dtype)
    return copied


@contextlib.contextmanager
def restored_afterwards(model: PreTrainedModel) -> Iterator[None]:
    """Put the model into evaluation mode; restore mode, buffers and all random numbers at the end."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    numbers = random.getstate(), np.random.get_state()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        model.eval()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, buffer, before in buffers:
                buffer.copy_(before)
                module._buffers[name] = buffer
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])
