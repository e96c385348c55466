"""The logit lens: the words that a model would say if it stopped after a layer (nostalgebraist 2020).

The state after each layer goes through the model's final norm and output embedding, as that after the last layer does.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.states import States
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.inside.tokens import named_columns, targets_at, tokens_at, written
from stepwise_pl.models.blocks import blocks, kept_states
from stepwise_pl.models.forward import PLAIN_HEADS, model_inputs
from stepwise_pl.runs.inside import Grid, Lens

# Logits that are held at a time, numbers.
MOST_LOGITS = 2**25


@dataclass(frozen=True)
class Unembedding:
    """The way from a state to logits.

    Attributes:
        norm: the norm between the last block and the output embedding.
        output: the output embedding.
        last: L, the number of layers.
        size: words of the vocabulary.
    """

    norm: nn.Module
    output: nn.Module
    last: int
    size: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Unembedding":
        """Return that of a model.

        Raises:
            UserError: between the last block and the logits stands something else than a norm and an output embedding.
        """
        output: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return cls(_final_norm(model), output, len(blocks(model)), int(output.weight.shape[0]))

    def logits(self, states: Tensor, layer: int) -> Tensor:
        """Return the logits of states after a layer, [n, width] -> [n, vocabulary] float32.

        The last state is normalised already, because transformers returns it so.
        """
        states = states.to(self.output.weight.dtype)  # type: ignore[arg-type]
        logits: Tensor = self.output(states if layer == self.last else self.norm(states))
        return logits.float()

    def parts(self, states: Tensor, layer: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of some states and their logits, as many at a time as memory holds."""
        step = max(1, MOST_LOGITS // self.size)
        device = next(self.output.parameters()).device
        for first in range(0, len(states), step):
            rows = slice(first, first + step)
            yield rows, self.logits(states[rows].to(device), layer)


def _final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the module that turns the output of the last block into the last hidden state. It is found in a forward pass."""
    kind = model.config.model_type
    stack = blocks(model)
    within = {id(module) for block in stack for module in block.modules()}
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            seen.append((module, args[0], output))

    tokens = torch.arange(4, device=model.device)[None] % int(model.config.get_text_config().vocab_size)
    with ExitStack() as hooks, torch.inference_mode():
        for module in model.modules():
            if id(module) not in within:
                hooks.callback(module.register_forward_hook(keep).remove)
        states = hooks.enter_context(kept_states(model, (len(stack),)))
        try:
            out = model(**model_inputs(model, tokens, None), output_hidden_states=True)
        except Exception as error:  # a model of another kind may raise any error
            raise UserError(f"a {kind} cannot be read by the lens ({first_line(error)})") from None
    last, before = out.hidden_states[-1], states[len(stack)]
    norms = [one for one, given, got in seen if torch.equal(given, before) and torch.equal(got, last)]
    if not norms:
        raise UserError(f"a {kind} has no final norm behind its last block that the lens could read; there is no lens")
    with torch.inference_mode():
        logits = model.get_output_embeddings()(norms[0](before))  # type: ignore[no-untyped-call, misc]
    # Scaled or capped logits would make other probabilities than the model's.
    if kind not in PLAIN_HEADS and not torch.equal(logits, out.logits):
        raise UserError(f"a {kind} does more to its logits than its output embedding does; there is no lens")
    return norms[0]


@torch.inference_mode()
def lens_rows(subject: Subject, states: States, tokens: Sequence[Place], where: Source, source: str) -> list[Lens]:
    """Return the lens at all places and layers of some states, for each token looked for, and for the next one.

    Args:
        tokens: places of the whole example that all problems have.
        where: the checkpoint.

    Raises:
        UserError: see `Unembedding.of`.
    """
    unembedding = Unembedding.of(subject.learner.model)
    wanted = torch.from_numpy(np.stack([tokens_at(subject, token) for token in tokens]))  # [tokens, problems]
    following = targets_at(subject, states.places)  # [places, problems]
    rows: list[Lens] = []
    for place, after in zip(states.places, following, strict=True):
        is_target = bool((after >= 0).all())
        names = [*["next"] * is_target, *map(str, tokens)]
        ids = torch.cat([after[None], wanted]) if is_target else wanted
        for layer in states.layers:
            top, probability = _said(unembedding, torch.from_numpy(states.at(place, layer)), layer, ids)
            agreement = (top == ids).double().mean(1)  # [tokens]
            chance = [_chance(top, row, unembedding.size) for row in ids]
            rows += [
                Lens(*where, layer, str(place), name, source, float(share), float(mean), len(top), by_chance)
                for name, share, mean, by_chance in zip(names, agreement, probability, chance, strict=True)
            ]
    return rows


def _said(unembedding: Unembedding, states: Tensor, layer: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable word of each state, [problems], and the mean probability of each token, [tokens].

    Args:
        states: [problems, width].
        ids: [tokens, problems].
    """
    tops, total = [], torch.zeros(len(ids), dtype=torch.float64)
    for rows, logits in unembedding.parts(states, layer):
        probabilities = logits.softmax(-1)  # [rows, vocabulary]
        tops.append(logits.argmax(-1).cpu())
        total += probabilities.gather(1, ids[:, rows].T.to(logits.device)).double().sum(0).cpu()
    return torch.cat(tops), total / len(states)


def _chance(top: Tensor, ids: Tensor, size: int) -> float:
    """Return the share of all pairs of a word said and a token that are equal; both [problems]."""
    said, held = (numbers.bincount(minlength=size).double() / len(numbers) for numbers in (top, ids))
    return float((said * held).sum())


@torch.inference_mode()
def grids(subject: Subject, where: Source, batch_size: int) -> list[Grid]:
    """Return the lens on each problem of a subject, word by word, at all of its places.

    Raises:
        UserError: see `Unembedding.of`.
    """
    unembedding = Unembedding.of(subject.learner.model)
    columns, layers = named_columns(subject), range(unembedding.last + 1)
    found: dict[int, Grid] = {}
    for whole, view in subject.batches(batch_size):
        states = subject.learner.hidden(view, layers)  # [layers, batch, seq - 1, width]
        for row, problem in enumerate(whole.draw.tolist()):
            places = columns[problem]
            tokens = [written(subject, token) for token in view.tokens[row, : len(places) + 1].tolist()]
            words: list[list[str]] = []
            shares: list[list[float]] = []
            for layer in layers:
                read = states[layer, row, : len(places)]  # [places, width]
                best = [logits.softmax(-1).max(-1) for _, logits in unembedding.parts(read, layer)]
                ids = [number for part in best for number in part.indices.tolist()]
                words.append([written(subject, number) for number in ids])
                shares.append([round(share, 4) for part in best for share in part.values.tolist()])
            text = subject.texts[problem]
            found[problem] = Grid(
                *where, problem, text.prompt, text.cot, text.answer, list(layers), list(map(str, places)), tokens[:-1],
                tokens[1:], words, shares,
            )  # fmt: skip
    return [found[problem] for problem in sorted(found)]
