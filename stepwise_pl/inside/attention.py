"""Attention from place to place, the mean over problems, for each layer and head."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.inside.places import Place, columns
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.methods.base import LATENT
from stepwise_pl.models.blocks import blocks
from stepwise_pl.runs.inside import Attention

REST = "rest"
EAGER = "eager"
# Weights of attention that are held at a time, numbers.
MOST_WEIGHTS = 2**26


@torch.inference_mode()
def mean_attention(subject: Subject, places: Sequence[Place], batch_size: int) -> Tensor:
    """Return the attention between places that all problems have, the mean over problems.

    The problems are read in one pass, in which thoughts are inputs that were found before, and an emulator's states stand in
    their places. The model computes attention step by step for it ("eager"): quicker ways do not hand the weights out.

    Returns:
        [layers, heads, places, places] float64; the second place is the one that is looked at.

    Raises:
        UserError: the model has no attention whose weights can be read.
    """
    model, learner = subject.learner.model, subject.learner
    total: Tensor | None = None
    for whole, view in subject.batches(min(batch_size, _batch_size(subject))):
        # Thoughts are found with the attention that the model has in all other passes.
        thoughts = learner.score(view).thoughts if bool((view.tokens == LATENT).any()) else None
        with _eager(model), kept_attention(model) as kept:
            learner.score(view, thoughts=thoughts)
        weights = torch.stack([kept[number] for number in sorted(kept)])  # [layers, batch, heads, seq - 1, seq - 1]
        column = torch.stack([columns(place, view, whole, subject.side) for place in places], dim=1).to(weights.device)
        row = torch.arange(len(view), device=weights.device)[:, None, None]
        # Advanced indices on both sides of a slice come first: [batch, places, places, layers, heads].
        found = weights.permute(1, 3, 4, 0, 2)[row, column[:, :, None], column[:, None, :]]
        summed = found.double().sum(0).permute(2, 3, 0, 1).cpu()
        total = summed if total is None else total + summed
    assert total is not None
    return total / len(subject.texts)


def _batch_size(subject: Subject) -> int:
    """Return how many problems may be read at a time, so that the weights of all layers and heads are not too many."""
    method = subject.learner.method
    longest = subject.encoded.longest(0) + method.added(subject.stage, subject.limits)
    return max(1, MOST_WEIGHTS // (subject.num_layers * num_heads(subject.learner.model) * longest**2))


def num_heads(model: PreTrainedModel) -> int:
    """Return the heads of a layer; 1 if the configuration names none."""
    return int(getattr(model.config.get_text_config(), "num_attention_heads", None) or 1)


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Inside of this context the model computes attention step by step. Raise `UserError` if it cannot."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(EAGER)
    except Exception as error:  # a model may raise any error here
        raise no_attention(model, first_line(error)) from None
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def kept_attention(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """Inside of this context the attention of each block is kept, by number; [batch, heads, seq, seq].

    Raises:
        UserError: at the end, if a block has handed out none.
    """
    found: dict[int, Tensor] = {}
    stack = blocks(model)

    def keep(number: int) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            # The weights of heads are square. Other second outputs are caches and routers.
            if isinstance(weights, Tensor) and weights.ndim == 4 and weights.shape[2] == weights.shape[3]:
                found.setdefault(number, weights)

        return after

    with ExitStack() as hooks:
        for number, block in enumerate(stack):
            for module in block.modules():
                if module is not block and "attention" in type(module).__name__.lower():
                    hooks.callback(module.register_forward_hook(keep(number)).remove)
        yield found
    if len(found) < len(stack):
        raise no_attention(model, f"{len(stack) - len(found)} of its {len(stack)} layers hand out none")
    if len({tuple(weights.shape) for weights in found.values()}) > 1:
        raise no_attention(model, "its layers have different numbers of heads")


def no_attention(model: PreTrainedModel, why: str) -> UserError:
    """The error for a model without weights of attention that can be read."""
    return UserError(
        f"a {model.config.model_type} has no attention that can be read ({why}); there is no attention.csv"
    )


def attention_rows(attention: Tensor, places: Sequence[Place], where: Source) -> list[Attention]:
    """Return the rows of a mean over problems: one for each place up to the query, and one for all other tokens together.

    Args:
        attention: [layers, heads, places, places].
        where: the checkpoint.
    """
    rows: list[Attention] = []
    for layer, of_layer in enumerate(attention.tolist(), start=1):
        for head, of_head in enumerate(of_layer):
            for number, weights in enumerate(of_head):
                seen = weights[: number + 1]
                named = [*map(str, places[: number + 1]), REST]
                rest = max(0.0, 1.0 - sum(seen))
                rows += [
                    Attention(*where, layer, head, str(places[number]), to, weight)
                    for to, weight in zip(named, [*seen, rest], strict=True)
                ]
    return rows


def most_places(layers: int, heads: int, checkpoints: int, rows: int) -> int:
    """Return the most places whose attention fits into so many rows, at least 2.

    A layer and head of n places has n (n + 1) / 2 pairs, and n rows for the rest.
    """
    each = rows // (checkpoints * layers * heads)
    return max(2, (math.isqrt(9 + 8 * each) - 3) // 2)
