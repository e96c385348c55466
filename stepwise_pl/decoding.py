"""Greedy decoding from the prompt on, and what answer came out."""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch, Part
from stepwise_pl.metrics import normalize_answer
from stepwise_pl.tokenizing import MARK


def forward(model: PreTrainedModel, batch: CoTBatch) -> Tensor:
    """Teacher-forced logits, [batch, seq, vocabulary].

    The mask is all ones: padding stands on the right, where no token looks. But a mask
    must be given: without one, transformers takes a jump in the positions for the start
    of another packed sequence and cuts attention to all before it.
    """
    mask = torch.ones_like(batch.tokens)
    out = model(input_ids=batch.tokens, attention_mask=mask, position_ids=batch.position, use_cache=False)
    logits: Tensor = out.logits
    return logits


@torch.inference_mode()
def generate(model: PreTrainedModel, batch: CoTBatch, eos: int, max_new_tokens: int) -> Tensor:
    """Greedy continuation of each example's prompt, batched, with a KV cache.

    An own loop instead of `transformers.generate` because a row ends at its second end
    token (the first ends the CoT), and because with keep_position the positions jump at
    the gap. Without that, the tokens are those of `transformers.generate` (tested).

    Args:
        batch: after removal. Of CoT and answer only the positions are read, which depend
            on nothing but the lengths.
        eos: id of the end token.
        max_new_tokens: bound on generated tokens.

    Returns:
        [batch, new] int64 with new <= max_new_tokens; `eos` after a row's end.
    """
    prompt = batch.length_of(Part.PROMPT)[:, None]
    width = int(prompt.max())
    limit = getattr(model.config, "max_position_embeddings", None)
    if isinstance(limit, int):
        max_new_tokens = min(max_new_tokens, limit - width)
    # Prompts are moved to the right edge, so that all rows continue in the same column.
    column = torch.arange(width, device=prompt.device) - (width - prompt)
    mask = column >= 0
    column = column.clamp(min=0)
    step_tokens, step_positions = batch.tokens.gather(1, column), batch.position.gather(1, column)
    positions = _continued_positions(batch, prompt, max_new_tokens)
    cache = DynamicCache(config=model.config)
    attention = mask.long()
    ended = torch.zeros(len(batch), dtype=torch.long, device=prompt.device)
    new: list[Tensor] = []
    for index in range(max_new_tokens):
        out = model(
            input_ids=step_tokens, attention_mask=attention, position_ids=step_positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        token = out.logits[:, -1].argmax(-1).masked_fill(ended >= 2, eos)
        new.append(token)
        ended += token == eos
        if bool((ended >= 2).all()):
            break
        step_tokens, step_positions = token[:, None], positions[:, index, None]
        attention = torch.cat([attention, attention.new_ones(len(batch), 1)], dim=1)
    return torch.stack(new, dim=1)


def _continued_positions(batch: CoTBatch, prompt: Tensor, count: int) -> Tensor:
    """Position of each generated token: that of the token it stands for, counting on after the last; [batch, count]."""
    length = batch.attention_mask.sum(1, keepdim=True)
    column = prompt + torch.arange(count, device=prompt.device)
    last = batch.position.gather(1, length - 1)
    beyond = last + column - (length - 1)
    inside = batch.position.gather(1, column.clamp(max=batch.position.shape[1] - 1))
    return torch.where(column < length, inside, beyond)


def continuation(batch: CoTBatch, eos: int) -> Tensor:
    """The target of `generate`: CoT and answer of each example, `eos` after its end; [batch, new] int64."""
    prompt = batch.length_of(Part.PROMPT)[:, None]
    length = batch.attention_mask.sum(1, keepdim=True)
    column = prompt + torch.arange(int((length - prompt).max()), device=prompt.device)
    tokens = batch.tokens.gather(1, column.clamp(max=batch.tokens.shape[1] - 1))
    return tokens.masked_fill(column >= length, eos)


def answers(new: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """The normalised answer in each row of generated tokens [batch, new]; None where none was finished.

    The answer is what stands between the first and the second end token, after `####`.
    """
    eos = tokenizer.eos_token_id
    out: list[str | None] = []
    for row in new.tolist():
        ends = [i for i, token in enumerate(row) if token == eos][:2]
        text = str(tokenizer.decode(row[ends[0] + 1 : ends[1]])) if len(ends) == 2 else ""
        _, mark, answer = text.partition(MARK)
        out.append(normalize_answer(answer) if mark else None)
    return out
