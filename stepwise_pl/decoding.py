"""Greedy decoding from the prompt on, and what answer came out."""

import functools
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.batch import CoTBatch, Part
from stepwise_pl.roundtrip import written_answer

log = logging.getLogger(__name__)

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
    logits = full_pass(model, targets.tokens, targets.position, width)
    row, column = targets.index // targets.tokens.shape[1], targets.index % targets.tokens.shape[1]
    return logits.flatten(0, 1).index_select(0, row * width + column - first)


def head_logits(model: PreTrainedModel, targets: Targets) -> Tensor:
    """`target_logits` of a model with a plain head, which is applied nowhere else."""
    hidden = model.base_model(**_read(model, targets.tokens, targets.position)).last_hidden_state
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    logits: Tensor = head(hidden.flatten(0, 1).index_select(0, targets.index))  # type: ignore[misc]
    return logits


def full_pass(model: PreTrainedModel, tokens: Tensor, position: Tensor | None, last: int) -> Tensor:
    """The logits after each of the last columns, read without a cache and with a mask of ones; [batch, last, vocabulary].

    Args:
        tokens: padded on the right, [batch, seq] int64.
        position: of each token, [batch, seq] int64; None: they count from 0.
        last: how many columns.
    """
    read = _read(model, tokens, position)
    if "logits_to_keep" in _arguments(type(model).forward):
        read["logits_to_keep"] = last
    logits: Tensor = model(**read).logits
    return logits[:, -last:]


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model can be told the positions of its tokens; recurrent models and some with relative positions cannot."""
    return "position_ids" in _arguments(type(model).forward)


def _read(model: PreTrainedModel, tokens: Tensor, position: Tensor | None) -> dict[str, Any]:
    """What to call the model with, of what its type can be given."""
    possible = {
        "input_ids": tokens, "attention_mask": torch.ones_like(tokens), "position_ids": position, "use_cache": False
    }  # fmt: skip
    return {name: value for name, value in possible.items() if name in _arguments(type(model).forward)}


@functools.cache
def _arguments(kind: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters)


class _Cached:
    """Rows of unequal length that grow by a token each, read with a KV cache.

    Args:
        tokens: where each row goes on is in the last column, padding on the left; [batch, seq] int64.
        there: where there is a token, [batch, seq] bool.
        positions: [batch, seq] int64.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, there: Tensor, positions: Tensor) -> None:
        self.model, self.tokens, self.positions = model, tokens, positions
        self.attention = there.long()
        self.cache = DynamicCache(config=model.config)

    def logits(self) -> Tensor:
        """What follows each row, [batch, vocabulary]."""
        read = _read(self.model, self.tokens, self.positions)
        read |= {"attention_mask": self.attention, "past_key_values": self.cache, "use_cache": True}
        if "logits_to_keep" in _arguments(type(self.model).forward):
            read["logits_to_keep"] = 1
        logits: Tensor = self.model(**read).logits
        return logits[:, -1]

    def add(self, token: Tensor, position: Tensor) -> None:
        """The next token of each row, and its position; [batch] int64."""
        self.tokens, self.positions = token[:, None], position[:, None]
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(token), 1)], dim=1)


class _Whole:
    """The same rows, read from their first token on every time, as in training: padding stands on the right."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor, there: Tensor, positions: Tensor) -> None:
        self.model = model
        self.length = there.sum(1)
        width = tokens.shape[1]
        column = (torch.arange(width, device=tokens.device) + (width - self.length)[:, None]).clamp(max=width - 1)
        self.tokens, self.positions = tokens.gather(1, column), positions.gather(1, column)

    def logits(self, last: int | None = None) -> Tensor:
        """What follows each row, [batch, vocabulary]; or its `last` tokens, [batch, last, vocabulary]."""
        width, first = int(self.length.max()), int(self.length.min()) - (last or 1)
        positions = self.positions[:, :width]
        counted = torch.arange(width, device=positions.device)
        # As in training: not given where they just count from 0, because a model's own may be others (roberta).
        jumps = bool(((positions != counted) & (counted < self.length[:, None])).any())
        logits = full_pass(self.model, self.tokens[:, :width], positions if jumps else None, width - first)
        column = self.length[:, None] - first - (last or 1) + torch.arange(last or 1, device=positions.device)
        logits = logits.gather(1, column[..., None].expand(-1, -1, logits.shape[2]))
        return logits[:, 0] if last is None else logits

    def add(self, token: Tensor, position: Tensor) -> None:
        """The next token of each row, and its position; [batch] int64."""
        column = self.length[:, None]
        self.tokens = F.pad(self.tokens, (0, 1)).scatter(1, column, token[:, None])
        self.positions = F.pad(self.positions, (0, 1)).scatter(1, column, position[:, None])
        self.length = self.length + 1


# Of each model, by whether rows were padded: the longest text for which its cache was seen to change nothing; below 0: it does.
_exact_up_to: WeakKeyDictionary[PreTrainedModel, dict[bool, int]] = WeakKeyDictionary()
COMPARED_ROWS, COMPARED_WORDS = 4, 64


class _Compared:
    """A few rows of a batch, whose logits with a cache are kept and compared with those of one pass without.

    They differ where a model's state is no KV cache (mamba), where it minds padding on the left, where it cannot
    be told positions, or where a window of attention is cut otherwise.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, there: Tensor, positions: Tensor) -> None:
        length = there.sum(1)
        order = length.argsort()
        most = min(len(order), COMPARED_ROWS)
        self.rows = torch.cat(
            [order[: most // 2], order[len(order) - (most - most // 2) :]]
        )  # the shortest, the longest
        self.whole = _Whole(model, tokens[self.rows], there[self.rows], positions[self.rows])
        self.before, self.padded = tokens.shape[1], bool((length < tokens.shape[1]).any())
        self.found: list[Tensor] = []
        self.allowed = rounding(model)

    def see(self, logits: Tensor) -> None:
        """What the model says with its cache, [batch, vocabulary]."""
        self.found.append(self._some(logits[self.rows]))

    def add(self, token: Tensor, position: Tensor) -> None:
        """The next token of each row of the batch, and its position; [batch] int64."""
        self.whole.add(token[self.rows], position[self.rows])

    def agrees(self, bound: Tensor) -> bool:
        """Whether the rows say the same without a cache, up to rounding, of their first `bound` tokens, [batch] int64."""
        count = len(self.found)
        self.whole.length -= 1  # the last token generated is not read
        expected = self._some(self.whole.logits(count))
        found = torch.stack(self.found, dim=1)  # both [rows, count, words]
        apart = (found - expected).square().mean(2).sqrt() / expected.std(2, correction=0).clamp(min=1e-9)
        asked = torch.arange(count, device=bound.device) < bound[self.rows, None]
        return bool(apart[asked].mean() <= self.allowed)

    @staticmethod
    def _some(logits: Tensor) -> Tensor:
        """The logits of some of the vocabulary, which tell models apart just as well."""
        return logits[..., :: max(1, logits.shape[-1] // COMPARED_WORDS)].float()


def rounding(model: PreTrainedModel) -> float:
    """How far apart logits may be that would be equal if nothing were rounded, as a share of their standard deviation."""
    kind = model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return math.sqrt(torch.finfo(dtype).eps)


@torch.inference_mode()
def generate(
    model: PreTrainedModel, batch: CoTBatch, eos: int, max_new_tokens: int, accepted: Tensor | None = None
) -> list[list[int]]:
    """Greedy continuation of each example's prompt, batched, with a KV cache if that changes nothing.

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
    there = column >= 0
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
    if isinstance(limit, int) and limit > 0:
        bound = torch.minimum(bound, (following < limit).sum(1) + 1)  # the last one generated is not read
        following = following.clamp(max=limit - 1)
    start = tokens, there, positions
    new = None
    if int(bound.max()) > 0 and min(_exact_up_to.setdefault(model, {}).values(), default=0) >= 0:
        new = _with_cache(model, start, following, ended, bound, eos)
    if new is None:
        new = _continued(_Whole(model, *start), following, ended, bound, eos)
    more = torch.stack(new, dim=1).tolist() if new else [[] for _ in out]
    return [
        _until_end(row + rest[: max(0, most)], eos) for row, rest, most in zip(out, more, bound.tolist(), strict=True)
    ]


def _with_cache(
    model: PreTrainedModel,
    start: tuple[Tensor, Tensor, Tensor],
    following: Tensor,
    ended: Tensor,
    bound: Tensor,
    eos: int,
) -> list[Tensor] | None:
    """`_continued` with a KV cache; None if that is found to change what the model says.

    Found out by trying, on a few rows of every batch whose texts are longer than any before.
    """
    known = _exact_up_to[model]
    compared = _Compared(model, *start)
    try:
        new = _continued(_Cached(model, *start), following, ended, bound, eos, compared)
        up_to = compared.before + len(new)
        agrees = up_to <= known.get(compared.padded, 0) or compared.agrees(bound)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model makes of a cache that is not of its kind
        agrees = False
    if not agrees:
        log.warning(
            "%s: its cache changes what it answers; answers are decoded without one, which takes longer",
            model.config.model_type,
        )
        known[compared.padded] = -1
        return None
    if len(new) > 1:  # the first token is read off without anything in the cache
        known[compared.padded] = max(up_to, known.get(compared.padded, 0))
    return new


def _continued(
    rows: _Cached | _Whole, following: Tensor, ended: Tensor, bound: Tensor, eos: int, compared: _Compared | None = None
) -> list[Tensor]:
    """Greedy tokens after rows, each [batch] int64, until all rows have ended.

    Args:
        following: positions after each row, [batch, count] int64.
        ended: end tokens that each row has already, [batch] int64.
        bound: most tokens for each row, [batch] int64.
        compared: sees the logits.
    """
    new: list[Tensor] = []
    for index in range(int(bound.max())):
        going = (ended < 2) & (index < bound)
        if not bool(going.any()):
            break
        logits = rows.logits()
        token = logits.argmax(-1).masked_fill(~going, eos)
        new.append(token)
        ended = ended + (token == eos)
        rows.add(token, following[:, index])
        if compared is not None:
            compared.see(logits)
            compared.add(token, following[:, index])
    return new


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
