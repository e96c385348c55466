"""Greedy decoding from the prompt on, with a KV cache if that changes nothing."""

import logging
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.models.architecture import num_positions
from stepwise_pl.models.reading import Inputs, Reading, require_window
from stepwise_pl.models.rows import Cached, OnPass, Rows, Whole
from stepwise_pl.models.static_rows import Shape, StaticRows, can_be_static, computed_in, release

log = logging.getLogger(__name__)

COMPARED_ROWS, COMPARED_WORDS = 4, 64

# A GPU is asked every N tokens whether all rows have ended, because the process waits for the answer. Up to N - 1 passes
# are in vain at the end of a batch.
ASKED_EVERY = 8

# For each model, and for batches with (True) and without padding: the longest text on which the cache was seen to change
# nothing; negative if the cache changes the answers. It depends on the model's type and sizes, not on its weights.
_exact_up_to: WeakKeyDictionary[PreTrainedModel, dict[Hashable, int]] = WeakKeyDictionary()
# The same for static rows. Each shape is a program of its own, so it is compared on its own: the keys are shape and padding.
_static_exact_up_to: WeakKeyDictionary[PreTrainedModel, dict[Hashable, int]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Wanted:
    """The tokens that are wanted after each row.

    Attributes:
        following: their positions, [batch, count] int64.
        ended: end tokens that each row has already, [batch] int64.
        bound: most tokens for each row, [batch] int64.
        eos: id of the end token.
        on_pass: called as soon as the tokens of a step are known.
    """

    following: Tensor
    ended: Tensor
    bound: Tensor
    eos: int
    on_pass: OnPass | None = None


def rounding(model: PreTrainedModel) -> float:
    """Return how much rounding may change logits, as a share of their standard deviation."""
    return math.sqrt(torch.finfo(computed_in(model)).eps)


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
    inputs: Inputs | None = None, on_pass: OnPass | None = None, *, compiled: bool = False,
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
        compiled: the pass over one token is compiled, at fixed shapes (`static_rows`), if the model's type can be.

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
    new = _new_tokens(model, reading, inputs, _Wanted(following, ended, bound, eos, on_pass), compiled)
    more = torch.stack(new, dim=1).tolist() if new else [[] for _ in out]
    return [
        _until_end(row + rest[: max(0, most)], eos) for row, rest, most in zip(out, more, bound.tolist(), strict=True)
    ]


def _new_tokens(
    model: PreTrainedModel, start: Reading, inputs: Inputs, wanted: _Wanted, compiled: bool
) -> list[Tensor]:
    """Do the work of `_continued` by the first way that does not change the answers: static rows, a growing cache, full passes.

    Raises:
        UserError: the rows have thoughts, and the model's cache or window of attention changes its answers.
    """
    rows, width = start.tokens.shape
    most = int(wanted.bound.max())
    if start.before and start.has_gaps:
        require_window(model, width + most)
    if most <= 0:
        return []
    new: list[Tensor] | None = None
    if compiled and can_be_static(model):
        shape = Shape.of(model, rows, width + most)
        found = _static_exact_up_to.setdefault(model, {})
        new = _with_cache(partial(StaticRows, more=most), model, start, inputs, wanted, found, shape)
    if new is None:
        new = _with_cache(Cached, model, start, inputs, wanted, _exact_up_to.setdefault(model, {}))
    if new is None and start.before:
        raise UserError(
            f"a {model.config.model_type} cannot read thoughts: its KV cache changes its answers; choose another model.type"
        )
    return _continued(Whole(model, start, inputs), wanted) if new is None else new


def _with_cache(
    kind: Callable[..., Cached], model: PreTrainedModel, start: Reading, inputs: Inputs, wanted: _Wanted,
    known: dict[Hashable, int], shape: Shape | None = None,
) -> list[Tensor] | None:  # fmt: skip
    """Do the work of `_continued` with a KV cache; return None if the cache changes the model's logits.

    If a batch has longer texts than any batch before, a few of its rows are read again without a cache. The logits
    differ if a model's state is no KV cache (mamba), if padding on the left changes its output, if it takes no
    positions, or if a window of attention is cut otherwise.

    Args:
        kind: makes the rows.
        known: what was found so far (`_exact_up_to`).
        shape: the shape of static rows.
    """
    if min(known.values(), default=0) < 0:
        return None
    length, width = start.there.sum(1), start.tokens.shape[1]
    is_padded = bool((length < width).any())
    key = is_padded if shape is None else (shape, is_padded)
    compared_up_to = known.get(key, 0)
    rows = _compared_rows(length, wanted.bound)
    seen: list[Tensor] = []
    keep = width + int(wanted.bound.max()) > compared_up_to  # otherwise no text of the batch can be longer
    on_logits = (lambda logits: seen.append(_some_words(logits[rows]))) if keep else None
    name, instead = ("cache", "one") if shape is None else ("compiled cache", "it")
    problem = "changes its answers"
    try:
        cached = kind(model, start, inputs, wanted.on_pass)
        new = _continued(cached, wanted, on_logits)
        is_longer = width + len(new) > compared_up_to
        thoughts = None if cached.thoughts is None else cached.thoughts[rows]
        is_exact = not is_longer or _logits_agree(
            model, start.rows(rows), inputs, thoughts, wanted.following[rows], torch.stack(new, 1)[rows],
            torch.stack(seen, 1), wanted.bound[rows],
        )  # fmt: skip
    except torch.OutOfMemoryError:
        release(model)
        raise
    except Exception as error:  # a model may raise any error on a cache that is not of its kind
        # The compiler wraps the error that says why.
        reason = first_line(getattr(error, "inner_exception", error))
        is_exact, problem = False, f"cannot be used ({reason})"
    if is_exact is False:
        log.warning(
            "%s: its %s %s; answers are decoded without %s, which takes longer",
            model.config.model_type, name, problem, instead,
        )  # fmt: skip
        known[key] = -1
        return None
    if is_exact and is_longer and len(new) > 1:  # the cache is empty before the first token
        known[key] = width + len(new)
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
    whole = Whole(model, replace(start, tokens=tokens, there=there, position=position), inputs, thoughts)
    expected = _some_words(whole.logits(new.shape[1]))  # [rows, count, words]
    if not expected.isfinite().all():
        return None
    distance = (found - expected).square().mean(2).sqrt() / expected.std(2, correction=0).clamp(min=1e-9)
    asked = torch.arange(new.shape[1], device=bound.device) < bound[:, None]
    return bool(distance[asked].mean() <= rounding(model))


def _continued(rows: Rows, wanted: _Wanted, on_logits: Callable[[Tensor], None] | None = None) -> list[Tensor]:
    """Return greedy tokens after rows, each [batch] int64, until all rows have ended; after its end a row has end tokens only.

    Args:
        on_logits: called with the logits of every step, [batch, vocabulary].
    """
    new: list[Tensor] = []
    ended, eos, every = wanted.ended, wanted.eos, _asked_every(wanted)
    for index in range(int(wanted.bound.max())):
        is_open = (ended < 2) & (index < wanted.bound)
        if not index % every and not bool(is_open.any()):
            break
        logits = rows.logits()
        token = logits.argmax(-1).masked_fill(~is_open, eos)
        new.append(token)
        if wanted.on_pass is not None:
            wanted.on_pass()
        ended = ended + (token == eos)
        rows.add(token, wanted.following[:, index])
        if on_logits is not None:
            on_logits(logits)
    return new


def _asked_every(wanted: _Wanted) -> int:
    """Return the number of tokens after which the device is asked whether all rows have ended. With `on_pass` no pass is in vain."""
    return ASKED_EVERY if wanted.bound.is_cuda and wanted.on_pass is None else 1


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
