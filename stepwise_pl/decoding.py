"""Greedy decoding from the prompt on, and what answer came out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch, Part
from stepwise_pl.roundtrip import written_answer

# Model types whose logits are the output embedding of the last hidden state and nothing more (tested). Others may
# scale or cap them (cohere, gemma2, granite, ...), and take the full way.
PLAIN_HEADS = ("gpt2", "llama", "mistral", "phi3", "qwen2")


@dataclass
class Targets:
    """What a model reads, and what it has to predict.

    Attributes:
        tokens: without the last column, after which nothing is predicted, [batch, seq - 1] int64.
        position: of each token, [batch, seq - 1] int64; None where they just count from 0.
        index: where a target is predicted, in the flattened tokens, [targets] int64.
        label: the targets, [targets] int64, row after row.
    """

    tokens: Tensor
    position: Tensor | None
    index: Tensor
    label: Tensor

    @classmethod
    def of(cls, batch: CoTBatch) -> "Targets":
        """Of a batch after removal. On a device this waits for it, so let the batch be on the host."""
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
        """The same on another device."""
        if torch.device(device) == self.tokens.device:
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.contiguous().pin_memory().to(device, non_blocking=True)

        position = None if self.position is None else moved(self.position)
        return Targets(moved(self.tokens), position, moved(self.index), moved(self.label))


def target_logits(model: PreTrainedModel, targets: Targets) -> Tensor:
    """The logits that predict each target, teacher-forced; [targets, vocabulary].

    The mask is all ones: padding stands on the right, where no token looks. But a mask
    must be given: without one, transformers takes a jump in the positions for the start
    of another packed sequence and cuts attention to all before it.
    """
    if model.config.model_type in PLAIN_HEADS:
        # Of its own, where the weights are shared out (`stepwise_pl.sharding`).
        shared: Callable[[Targets], Tensor] | None = getattr(model, "head_logits", None)
        return head_logits(model, targets) if shared is None else shared(targets)
    # Columns before the first target of all need no logits.
    first = int(targets.index.remainder(targets.tokens.shape[1]).min())
    width = targets.tokens.shape[1] - first
    logits: Tensor = model(**_given(targets), logits_to_keep=width).logits
    row, column = targets.index // targets.tokens.shape[1], targets.index % targets.tokens.shape[1]
    return logits.flatten(0, 1).index_select(0, row * width + column - first)


def head_logits(model: PreTrainedModel, targets: Targets) -> Tensor:
    """`target_logits` of a model with a plain head, which is applied nowhere else."""
    hidden = model.base_model(**_given(targets)).last_hidden_state
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    logits: Tensor = head(hidden.flatten(0, 1).index_select(0, targets.index))  # type: ignore[misc]
    return logits


def _given(targets: Targets) -> dict[str, Any]:
    return {
        "input_ids": targets.tokens, "attention_mask": torch.ones_like(targets.tokens),
        "position_ids": targets.position, "use_cache": False,
    }  # fmt: skip


@torch.inference_mode()
def generate(
    model: PreTrainedModel, batch: CoTBatch, eos: int, max_new_tokens: int, accepted: Tensor | None = None
) -> list[list[int]]:
    """Greedy continuation of each example's prompt, batched, with a KV cache.

    An own loop instead of `transformers.generate` because a row ends at its second end
    token (the first ends the CoT), and because with keep_position the positions jump at
    the gap. Without that, the tokens are those of `transformers.generate` (tested).

    Args:
        batch: after removal. Of CoT and answer, but for accepted tokens, only the positions
            are read, which depend on nothing but the lengths.
        eos: id of the end token.
        max_new_tokens: bound on a row's new tokens. The model's positions are another.
        accepted: tokens after the prompt that are known to be what the model generates,
            [batch] int64; None: none.

    Returns:
        The new tokens of each row, accepted ones included, up to its second end token.
    """
    prompt = batch.length_of(Part.PROMPT)[:, None]
    known = prompt + (0 if accepted is None else accepted[:, None])
    # Where each row goes on is moved to the same column, the right edge.
    width = int(known.max())
    column = torch.arange(width, device=known.device) - (width - known)
    mask = column >= 0
    column = column.clamp(min=0)
    tokens, positions = batch.tokens.gather(1, column), batch.position.gather(1, column)
    out = [
        row[prompt_ends:]
        for row, prompt_ends in zip(tokens.tolist(), (width - known + prompt)[:, 0].tolist(), strict=True)
    ]
    ended = torch.tensor([row.count(eos) for row in out], device=known.device)
    following = _continued_positions(batch, known, max_new_tokens)
    bound = torch.full_like(ended, max_new_tokens) - (known - prompt)[:, 0]
    limit = getattr(model.config, "max_position_embeddings", None)
    if isinstance(limit, int):
        bound = torch.minimum(bound, (following < limit).sum(1) + 1)  # the last one generated is not read
        following = following.clamp(max=limit - 1)
    cache = DynamicCache(config=model.config)
    attention = mask.long()
    new: list[Tensor] = []
    for index in range(int(bound.max())):
        going = (ended < 2) & (index < bound)
        if not bool(going.any()):
            break
        logits = model(
            input_ids=tokens, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        ).logits  # fmt: skip
        token = logits[:, -1].argmax(-1).masked_fill(~going, eos)
        new.append(token)
        ended += token == eos
        tokens, positions = token[:, None], following[:, index, None]
        attention = torch.cat([attention, attention.new_ones(len(batch), 1)], dim=1)
    more = torch.stack(new, dim=1).tolist() if new else [[] for _ in out]
    return [
        _until_end(row + rest[: max(0, most)], eos) for row, rest, most in zip(out, more, bound.tolist(), strict=True)
    ]


def _until_end(tokens: list[int], eos: int) -> list[int]:
    """The tokens up to the second end token."""
    ends = [i for i, token in enumerate(tokens) if token == eos][:2]
    return tokens[: ends[1] + 1] if len(ends) == 2 else tokens


def _continued_positions(batch: CoTBatch, known: Tensor, count: int) -> Tensor:
    """Position of each token after the `known` ones: that of the token it stands for, counting on after the last; [batch, count]."""
    length = batch.attention_mask.sum(1, keepdim=True)
    column = known + torch.arange(count, device=known.device)
    last = batch.position.gather(1, length - 1)
    beyond = last + column - (length - 1)
    inside = batch.position.gather(1, column.clamp(max=batch.position.shape[1] - 1))
    return torch.where(column < length, inside, beyond)


def continuation(batch: CoTBatch) -> list[list[int]]:
    """The target of `generate`: CoT and answer of each example."""
    starts, ends = batch.length_of(Part.PROMPT).tolist(), batch.attention_mask.sum(1).tolist()
    return [row[start:end] for row, start, end in zip(batch.tokens.tolist(), starts, ends, strict=True)]


def answers(new: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """The normalised answer in each row of generated tokens; None where none was finished (`written_answer`)."""
    return [written_answer(row, tokenizer) for row in new]
