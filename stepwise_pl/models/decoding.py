"""Greedy decoding from the prompt on, with a KV cache if that changes nothing."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.models.architecture import num_positions
from stepwise_pl.models.blocks import replaced_states
from stepwise_pl.models.forward import accepted_by, full_pass, model_inputs
from stepwise_pl.models.reading import Inputs, Passes, Reading, require_window

log = logging.getLogger(__name__)

COMPARED_ROWS, COMPARED_WORDS = 4, 64

# Called at the end of a forward pass: one for each thought, then one for each token.
OnPass = Callable[[], None]


class _Cached:
    """Rows of unequal length that grow token by token, read with a KV cache.

    Args:
        start: the rows before any token is added.

    Attributes:
        thoughts: the thoughts of each row, [batch, most, width]; None if there are none.
    """

    def __init__(self, model: PreTrainedModel, start: Reading, inputs: Inputs, on_pass: OnPass | None = None) -> None:
        self.model, self.states = model, start.states
        passes = Passes(model, start, inputs)
        self.thoughts = passes.read_thoughts(on_pass)
        self.read = passes.arguments(passes.last(self.thoughts), start.spans[-1])
        self.column = (start.tokens.shape[1] - start.known + start.prompt)[:, 0] - 1  # the last token of each prompt

    def logits(self) -> Tensor:
        """Return the logits after each row, [batch, vocabulary]."""
        if self.states is None:
            return self._logits()
        with replaced_states(self.model, self.states, self.column):
            logits = self._logits()
        self.states = None  # the prompt is read once; its keys and values are in the cache
        return logits

    def _logits(self) -> Tensor:
        last = {"logits_to_keep": 1} if "logits_to_keep" in accepted_by(type(self.model).forward) else {}
        logits: Tensor = self.model(**self.read, **last).logits
        return logits[:, -1]

    def add(self, token: Tensor, position: Tensor) -> None:
        """Append the next token of each row, with its position; both [batch] int64."""
        mask, cache = self.read["attention_mask"], self.read["past_key_values"]
        mask = torch.cat([mask, mask.new_ones(len(token), 1)], dim=1)
        self.read = model_inputs(self.model, token[:, None], position[:, None])
        self.read |= {"attention_mask": mask, "past_key_values": cache, "use_cache": True}


class _Whole:
    """Rows as in `_Cached`, but read from their first token at every step. As in training, padding stands on the right.

    Args:
        start: the rows before any token is added.
        thoughts: the thoughts of each row, [batch, most, width]; None if there are none.
    """

    def __init__(self, model: PreTrainedModel, start: Reading, inputs: Inputs, thoughts: Tensor | None = None) -> None:
        self.model, self.states, self.prompt = model, start.states, start.prompt[:, 0]
        self.inputs, self.thoughts, self.only_words = inputs, thoughts, start.only_words
        self.length = start.there.sum(1)
        # A stable sort moves the tokens to the front, in their order.
        column = (~start.there).to(torch.uint8).sort(dim=1, stable=True).indices
        self.tokens, self.positions = start.tokens.gather(1, column), start.position.gather(1, column)

    def logits(self, last: int | None = None) -> Tensor:
        """Return the logits after each row, [batch, vocabulary]; or after each of its `last` tokens, [batch, last, vocabulary]."""
        width, first = int(self.length.max()), int(self.length.min()) - (last or 1)
        positions = self.positions[:, :width]
        counted = torch.arange(width, device=positions.device)
        # As in training, positions that count from 0 are not given: a model may count otherwise (roberta).
        jumps = bool(((positions != counted) & (counted < self.length[:, None])).any())
        read = self.tokens[:, :width]
        read = read if self.only_words else self.inputs.of(read, self.thoughts)
        with nullcontext() if self.states is None else replaced_states(self.model, self.states, self.prompt - 1):
            logits = full_pass(self.model, read, positions if jumps else None, width - first)
        column = self.length[:, None] - first - (last or 1) + torch.arange(last or 1, device=positions.device)
        logits = logits.gather(1, column[..., None].expand(-1, -1, logits.shape[2]))
        return logits[:, 0] if last is None else logits

    def add(self, token: Tensor, position: Tensor) -> None:
        """Append the next token of each row, with its position; both [batch] int64."""
        column = self.length[:, None]
        self.tokens = F.pad(self.tokens, (0, 1)).scatter(1, column, token[:, None])
        self.positions = F.pad(self.positions, (0, 1)).scatter(1, column, position[:, None])
        self.length = self.length + 1


# For each model, and for batches with (True) and without padding: the longest text on which the cache was seen to change
# nothing; negative if the cache changes the answers. It depends on the model's type and sizes, not on its weights.
_exact_up_to: WeakKeyDictionary[PreTrainedModel, dict[bool, int]] = WeakKeyDictionary()


def rounding(model: PreTrainedModel) -> float:
    """Return how much rounding may change logits, as a share of their standard deviation."""
    kind = model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return math.sqrt(torch.finfo(dtype).eps)


def read_prompts(view: CoTBatch, accepted: Tensor | None = None, states: Tensor | None = None) -> Reading:
    """Return all that is read before anything is written, each row with its accepted tokens.

    Args:
        accepted: counts the accepted tokens, [batch] int64; None: none.
        states: see `Reading`.
    """
    known = view.num_given[:, None] + (0 if accepted is None else accepted[:, None])
    return Reading.of(view, known, states)


@torch.inference_mode()
def generate(
    model: PreTrainedModel, view: CoTBatch, eos: int, max_new_tokens: int, reading: Reading | None = None,
    inputs: Inputs | None = None, on_pass: OnPass | None = None,
) -> list[list[int]]:  # fmt: skip
    """Continue each example's prompt greedily, in a batch, with a KV cache if that changes nothing.

    This loop replaces `transformers.generate`, because a row ends at its second end token (the
    first one ends the CoT), and because positions jump at the gap with keep_position. Without
    keep_position the tokens are those of `transformers.generate` (tested).

    Args:
        view: the batch after removal. From CoT and answer only accepted tokens and positions
            are read; the positions depend on the lengths alone.
        eos: id of the end token.
        max_new_tokens: bound on a row's new tokens. The model's positions are another bound.
        reading: the view's prompts and thoughts as read, maybe with accepted tokens; None: without these.
        inputs: turns ids into inputs; None: all ids are words.
        on_pass: is told of each pass. If the cache turns out to change the answers, it is told of the passes of both attempts.

    Returns:
        The new tokens of each row, accepted ones included, up to its second end token.

    Raises:
        UserError: the view has thoughts, and the model's cache or window of attention changes its answers.
    """
    reading = reading or read_prompts(view)
    inputs = inputs or Inputs(model, None, lambda hidden: hidden)
    tokens, known = reading.tokens, reading.known
    accepted = (known - reading.given)[:, 0]
    out = [row[len(row) - count :] for row, count in zip(tokens.tolist(), accepted.tolist(), strict=True)]
    ended = torch.tensor([row.count(eos) for row in out], device=known.device)
    following = _continued_positions(view, known, max_new_tokens)
    bound = torch.full_like(ended, max_new_tokens) - accepted
    if (limit := num_positions(model)) is not None:
        bound = torch.minimum(bound, (following < limit).sum(1) + 1)  # the last token generated is not read
        following = following.clamp(max=limit - 1)
    bound = bound.masked_fill(ended >= 2, 0)
    if reading.before and reading.has_gaps:
        require_window(model, tokens.shape[1] + int(bound.max()))
    new: list[Tensor] | None = None if int(bound.max()) > 0 else []
    if new is None and min(_exact_up_to.setdefault(model, {}).values(), default=0) >= 0:
        new = _with_cache(model, reading, inputs, following, ended, bound, eos, on_pass)
    if new is None:
        if reading.before:
            raise UserError(
                f"a {model.config.model_type} cannot read thoughts: its KV cache changes its answers; choose another model.type"
            )
        new = _continued(_Whole(model, reading, inputs), following, ended, bound, eos, on_pass=on_pass)
    more = torch.stack(new, dim=1).tolist() if new else [[] for _ in out]
    return [
        _until_end(row + rest[: max(0, most)], eos) for row, rest, most in zip(out, more, bound.tolist(), strict=True)
    ]


def _with_cache(
    model: PreTrainedModel,
    start: Reading,
    inputs: Inputs,
    following: Tensor,
    ended: Tensor,
    bound: Tensor,
    eos: int,
    on_pass: OnPass | None = None,
) -> list[Tensor] | None:
    """Do the work of `_continued` with a KV cache; return None if the cache changes the model's logits.

    If a batch has longer texts than any batch before, a few of its rows are read again without a cache. The logits
    differ if a model's state is no KV cache (mamba), if padding on the left changes its output, if it takes no
    positions, or if a window of attention is cut otherwise.
    """
    known = _exact_up_to[model]
    length, width = start.there.sum(1), start.tokens.shape[1]
    is_padded = bool((length < width).any())
    compared_up_to = known.get(is_padded, 0)
    rows = _compared_rows(length, bound)
    seen: list[Tensor] = []
    keep = width + int(bound.max()) > compared_up_to  # otherwise no text of the batch can be longer
    on_logits = (lambda logits: seen.append(_some_words(logits[rows]))) if keep else None
    problem = "changes its answers"
    try:
        cached = _Cached(model, start, inputs, on_pass)
        new = _continued(cached, following, ended, bound, eos, on_logits, on_pass)
        is_longer = width + len(new) > compared_up_to
        thoughts = None if cached.thoughts is None else cached.thoughts[rows]
        is_exact = not is_longer or _logits_agree(
            model, start.rows(rows), inputs, thoughts, following[rows], torch.stack(new, 1)[rows], torch.stack(seen, 1),
            bound[rows],
        )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model may raise any error on a cache that is not of its kind
        is_exact, problem = False, f"cannot be used ({first_line(error)})"
    if is_exact is False:
        log.warning(
            "%s: its cache %s; answers are decoded without one, which takes longer", model.config.model_type, problem
        )
        known[is_padded] = -1
        return None
    if is_exact and is_longer and len(new) > 1:  # the cache is empty before the first token
        known[is_padded] = width + len(new)
    return new


def _compared_rows(length: Tensor, bound: Tensor) -> Tensor:
    """Return the rows to read again: the shortest and the longest of the rows that are continued."""
    continued = (bound > 0).nonzero().squeeze(1)
    order = continued[length[continued].argsort()]
    most = min(len(order), COMPARED_ROWS)
    return torch.cat([order[: most // 2], order[len(order) - (most - most // 2) :]])


def _some_words(logits: Tensor) -> Tensor:
    """Return the logits of some words of the vocabulary. They are enough to see a difference."""
    return logits[..., :: max(1, logits.shape[-1] // COMPARED_WORDS)].float()


def _logits_agree(
    model: PreTrainedModel, start: Reading, inputs: Inputs, thoughts: Tensor | None, following: Tensor, new: Tensor,
    found: Tensor, bound: Tensor,
) -> bool | None:  # fmt: skip
    """Whether one pass without a cache gives the logits found with it, up to rounding; None if logits are not finite.

    Args:
        start: the rows before the new tokens.
        thoughts: the thoughts of the rows; the pass reads them as they are.
        following: positions of the new tokens, [rows, count or more] int64.
        new: the tokens generated, [rows, count] int64.
        found: `_some_words` of the logits for each new token, [rows, count, words].
        bound: most tokens for each row, [rows] int64.
    """
    read = new[:, :-1]  # the last token generated is not read
    more = (read, torch.ones_like(read, dtype=torch.bool), following[:, : read.shape[1]])
    before = (start.tokens, start.there, start.position)
    tokens, there, position = (torch.cat(pair, dim=1) for pair in zip(before, more, strict=True))
    whole = _Whole(model, replace(start, tokens=tokens, there=there, position=position), inputs, thoughts)
    expected = _some_words(whole.logits(new.shape[1]))  # [rows, count, words]
    if not expected.isfinite().all():
        return None
    distance = (found - expected).square().mean(2).sqrt() / expected.std(2, correction=0).clamp(min=1e-9)
    asked = torch.arange(new.shape[1], device=bound.device) < bound[:, None]
    return bool(distance[asked].mean() <= rounding(model))


def _continued(
    rows: _Cached | _Whole,
    following: Tensor,
    ended: Tensor,
    bound: Tensor,
    eos: int,
    on_logits: Callable[[Tensor], None] | None = None,
    on_pass: OnPass | None = None,
) -> list[Tensor]:
    """Return greedy tokens after rows, each [batch] int64, until all rows have ended.

    Args:
        following: positions after each row, [batch, count] int64.
        ended: end tokens that each row has already, [batch] int64.
        bound: most tokens for each row, [batch] int64.
        on_logits: called with the logits of every step, [batch, vocabulary].
        on_pass: called as soon as the tokens of a step are known.
    """
    new: list[Tensor] = []
    for index in range(int(bound.max())):
        is_open = (ended < 2) & (index < bound)
        if not bool(is_open.any()):
            break
        logits = rows.logits()
        token = logits.argmax(-1).masked_fill(~is_open, eos)
        new.append(token)
        if on_pass is not None:
            on_pass()
        ended = ended + (token == eos)
        rows.add(token, following[:, index])
        if on_logits is not None:
            on_logits(logits)
    return new


def _until_end(tokens: list[int], eos: int) -> list[int]:
    """Return the tokens up to the second end token."""
    ends = [i for i, token in enumerate(tokens) if token == eos][:2]
    return tokens[: ends[1] + 1] if len(ends) == 2 else tokens


def _continued_positions(batch: CoTBatch, known: Tensor, count: int) -> Tensor:
    """Return the position of each of `count` tokens after the `known` ones, [batch, count].

    It is the position of the target token in the same place; after the last target, positions count on.
    """
    length = batch.attention_mask.sum(1, keepdim=True)
    column = known + torch.arange(count, device=known.device)
    last = batch.position.gather(1, length - 1)
    beyond = last + column - (length - 1)
    inside = batch.position.gather(1, column.clamp(max=batch.position.shape[1] - 1))
    return torch.where(column < length, inside, beyond)
