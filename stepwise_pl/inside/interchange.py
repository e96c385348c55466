"""Interchange: the state of problem B, put into problem A at one place and layer, shows whether what it holds is used from there on.

Interchange interventions are those of Geiger et al. (arXiv 2106.02997); activation patching is the same (arXiv 2202.05262).
The last state, after the final norm, is left out: nothing but the prediction at its own place reads it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepwise_pl.common.statistics import wilson
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.inside.pairs import Ints, TokenPairs
from stepwise_pl.inside.places import Place, columns, places_of
from stepwise_pl.inside.subject import Source
from stepwise_pl.models.edits import Edit
from stepwise_pl.models.learner import Learner, Scored
from stepwise_pl.runs.inside import Patch


def patch_places(pairs: TokenPairs, batch_size: int) -> list[Place]:
    """Return the places to patch: from the first word that is changed in any pair on, in their order."""
    first = int(pairs.changed.min()) if len(pairs) else -1
    rest = places_of(pairs.first.batches(batch_size), pairs.first.side, prompt=0)
    return [*(Place("prompt", number) for number in range(first, 0)), *rest]


def logits_at(scored: Scored, column: Tensor, row: Tensor | None = None) -> Tensor:
    """Return the logits that predict the token in a column of each row; [n, vocabulary] float64.

    Args:
        column: [n] int64 on the host.
        row: the rows, [n] int64 on the host; None: all.
    """
    row = torch.arange(len(column)) if row is None else row
    width = int(max(column.max(), scored.column.max())) + 1
    # Targets stand row after row, so that their numbers ascend.
    place = torch.searchsorted(scored.row * width + scored.column, row * width + column)
    return scored.logits[place.to(scored.logits.device)].double()


@torch.inference_mode()
def right_pairs(pairs: TokenPairs, batch_size: int) -> Ints:
    """Return the pairs, by number, that have a target which the model predicts right on both sides, teacher-forced; [n].

    What it has written before the target is the same on both sides, if all that it writes is scored. If the answer alone is
    scored, each side has its own CoT, as far as it is left.
    """
    right = pairs.target >= 0
    for side in (pairs.first, pairs.second):
        label = pairs.labels(side)
        for rows in pairs.portions(np.flatnonzero(right), batch_size):
            whole, view = side.batch(rows)
            predicted = logits_at(side.learner.score(view), pairs.column(side, whole, view)).argmax(-1)
            right[rows] = predicted.cpu().numpy() == label[rows]
    return np.flatnonzero(right)


def read_states(learner: Learner, view: CoTBatch, column: Tensor, layers: Sequence[int]) -> tuple[Tensor, Scored]:
    """Return what the blocks read at some tokens of each row, and the score of the view.

    Args:
        column: columns of the view, [batch, n] int64 on the host; -1: no token.
        layers: the blocks.

    Returns:
        [layers, batch, n, width]; zeros where there is no token.
    """
    width = int(learner.model.config.get_text_config().hidden_size)
    weight = next(learner.model.parameters())
    found = weight.new_zeros((len(layers), *column.shape, width))

    def keep(number: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def change(row: Tensor, place: Tensor, states: Tensor) -> Tensor:
            found[number, row, place] = states.to(found.dtype)
            return states

        return change

    scored = learner.score(view, edits=[Edit(layer, column, keep(number)) for number, layer in enumerate(layers)])
    return found, scored


@dataclass(frozen=True)
class Moves:
    """The effect of a patch on some pairs; all [pairs].

    Attributes:
        pair: their numbers.
        moved, kept: whether the target that the model predicts is now that of B, or still that of A.
        effect: the share of the way from the logit difference of A to that of B.
    """

    pair: Ints
    moved: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    effect: npt.NDArray[np.float64]


@dataclass
class Portion:
    """Some pairs, read once on both sides: problem A is then read again with states of B.

    Attributes:
        pair: the numbers of the pairs, [batch].
        layers: the blocks before which states were read.
        view: the problems A.
        column, source: the columns of the places in A and in B, [batch, places].
        changed: the columns in which the prompts differ, [batch].
        target: the column of the target in A, [batch].
        tokens: the targets of A and of B, [2, batch].
        states: what the blocks read at the places in B, [layers, batch, places, width].
        apart: logit of B's target minus that of A's, in A and in B, [2, batch].
    """

    learner: Learner
    pair: Ints
    layers: Sequence[int]
    view: CoTBatch
    column: Tensor
    source: Tensor
    changed: Tensor
    target: Tensor
    tokens: Tensor
    states: Tensor
    apart: Tensor

    @classmethod
    def of(cls, pairs: TokenPairs, pair: Ints, places: Sequence[Place], layers: Sequence[int]) -> "Portion":
        """Read the pairs with the numbers `pair`, [batch]."""
        sides = pairs.first, pairs.second
        tokens = torch.from_numpy(np.stack([pairs.labels(side)[pair] for side in sides]))
        views, found, seen, apart, target = [], [], [], [], []
        for side in sides:
            whole, view = side.batch(pair)
            column = torch.stack([columns(place, view, whole, side.side) for place in places], dim=1)
            states, scored = read_states(side.learner, view, column, layers if side is pairs.second else ())
            target.append(pairs.column(side, whole, view))
            views.append(view)
            found.append(column)
            seen.append(states)
            apart.append(_apart(logits_at(scored, target[-1]), tokens))
        changed = views[0].length_of(Part.PROMPT) + torch.from_numpy(pairs.changed[pair])
        return cls(
            pairs.first.learner, pair, layers, views[0], found[0], found[1], changed, target[0], tokens, seen[1],
            torch.stack(apart),
        )  # fmt: skip

    def affected(self, place: int) -> Tensor:
        """Return the rows in which a patch at a place can matter: from the changed word on, and before the target; [n].

        Before the changed word the states of A and B are the same. From the target on, they come too late.
        """
        column, source = self.column[:, place], self.source[:, place]
        return ((column >= self.changed) & (source >= 0) & (column < self.target)).nonzero().squeeze(1)

    def patched(self, place: int, layer: int, rows: Tensor) -> Moves:
        """Read some of the problems A with the states of B at a place before a block.

        Args:
            place, layer: their numbers among those that were read.
            rows: [n] int64.
        """
        states = self.states[layer, rows.to(self.states.device), place]  # [n, width]
        edit = Edit(self.layers[layer], self.column[rows, place, None], lambda row, _, __: states[row])
        scored = self.learner.score(self.view.take(rows), edits=[edit])
        logits = logits_at(scored, self.target[rows])
        (before, after), tokens = self.apart[:, rows], self.tokens[:, rows]
        predicted = logits.argmax(-1).cpu()
        effect = (_apart(logits, tokens) - before) / (after - before)
        return Moves(
            self.pair[rows.numpy()], (predicted == tokens[1]).numpy(), (predicted == tokens[0]).numpy(), effect.numpy()
        )


def _apart(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the logit of B's target minus that of A's, on the host; logits [n, vocabulary], tokens [2, n]."""
    chosen = logits.cpu().gather(1, tokens.T)
    return chosen[:, 1] - chosen[:, 0]


@torch.inference_mode()
def interchange(
    pairs: TokenPairs,
    rows: Ints,
    places: Sequence[Place],
    layers: Sequence[int],
    batch_size: int,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[tuple[Place, int], Moves]:
    """Patch the pairs `rows`, by number, at every place and layer. A place and layer at which no pair can be patched is left out.

    Args:
        progress: is told the share of the work that is done since it was called last.
    """
    found: dict[tuple[Place, int], list[Moves]] = defaultdict(list)
    for pair in pairs.portions(rows, batch_size) if places and layers else ():
        portion = Portion.of(pairs, pair, places, layers)
        for number, place in enumerate(places):
            affected = portion.affected(number)
            for depth, layer in enumerate(layers):
                if len(affected):
                    found[place, layer].append(portion.patched(number, depth, affected))
                progress(len(pair) / (len(rows) * len(places) * len(layers)))
    return {
        where: Moves(*(np.concatenate([getattr(each, name) for each in moves]) for name in Moves.__dataclass_fields__))
        for where, moves in found.items()
    }


def patch_rows(moves: dict[tuple[Place, int], Moves], pairs: TokenPairs, source: Source) -> list[Patch]:
    """Return the table: a row for each place, layer, changed word and target."""
    out = []
    for (place, layer), found in moves.items():
        kinds = np.stack([pairs.changed[found.pair], pairs.target[found.pair]], axis=1)
        for changed, target in np.unique(kinds, axis=0).tolist():
            of_kind = (kinds == (changed, target)).all(axis=1)
            count, moved = int(of_kind.sum()), float(found.moved[of_kind].mean())
            out.append(
                Patch(
                    *source, layer, str(place), str(Place("prompt", changed)),
                    str(pairs.targets[target]), moved, *wilson(moved, count), float(found.kept[of_kind].mean()),
                    float(found.effect[of_kind].mean()), count,
                )
            )  # fmt: skip
    return out
