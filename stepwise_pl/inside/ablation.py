"""Ablation: what a linear probe reads is taken out of the states at one place and layer, and the answer is scored.

If the answer suffers more than from random changes of the same size, the model needs what the probe reads, there. If it does
not suffer, the model does without: decodable is not used (amnesic probing, arXiv 2006.00995).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.inside.directions import Erasure, Problems, RidgeProbe, probes
from stepwise_pl.inside.pairs import Ints
from stepwise_pl.inside.places import Place, columns
from stepwise_pl.inside.scratch import temporary_folder
from stepwise_pl.inside.states import write_states
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.models.edits import Edit
from stepwise_pl.runs.inside import Ablation

Floats = npt.NDArray[np.float64]
# Makes the edit of a view, given the whole batch and the view.
EditOf = Callable[[CoTBatch, CoTBatch], Edit]

# Random changes that an erasure is compared with.
RANDOM = 10


@dataclass(frozen=True)
class Settings:
    """How an ablation is made.

    Attributes:
        scratch: the folder in which the states lie for a time.
        seed: of the random changes.
        everywhere: ablate each target at every place and layer; otherwise where its probe is best.
        written: score the target itself if the model writes it, and otherwise all that it writes; not the answer alone.
    """

    scratch: Path
    batch_size: int = 256
    seed: int = 0
    everywhere: bool = False
    written: bool = False


def hits(subject: Subject, rows: Ints, batch_size: int, edit: EditOf | None = None) -> dict[Place, Floats]:
    """Return which tokens are predicted right, teacher-forced: 1 or 0; nan where the model writes no such token; each [n].

    The tokens are those of the CoT that is left and of the answer itself, without separator, mark and end token.

    Args:
        rows: the numbers of the problems, [n].
        edit: makes the edit of a view; None: the states stay as they are.
    """
    before, after = subject.frame
    length = subject.encoded.answer_length - after
    places = [Place("cot", number) for number in range(int(subject.encoded.cot_length[rows].max()))]
    places += [Place("answer", number) for number in range(before, int(length[rows].max()))]
    found = {place: np.full(len(rows), np.nan) for place in places}
    for start in range(0, len(rows), batch_size):
        portion = rows[start : start + batch_size]
        whole, view = subject.batch(portion)
        scored = subject.learner.score(view, edits=[edit(whole, view)] if edit is not None else [])
        right = torch.zeros(view.tokens.shape)
        right[scored.row, scored.column] = scored.right.cpu().float()
        for place in places:
            column = columns(place, view, whole, subject.side).numpy()
            there = column >= 0 if place.part == "cot" else length[portion] > place.number
            found[place][start + np.flatnonzero(there)] = right[there, column[there]].numpy()
    return found


def accuracy(found: dict[Place, Floats], scored: str) -> float:
    """Return the share of right tokens: of one, named as a place; of the `answer`; or of all that is `written`."""
    tokens = [right for place, right in found.items() if scored in (str(place), place.part, "written")]
    return float(np.nanmean(np.concatenate(tokens)))


def erased(erasure: Erasure, place: Place, layer: int, side: str) -> EditOf:
    """Return the edit that makes an erasure at a place before a block."""

    def change(row: Tensor, number: Tensor, states: Tensor) -> Tensor:
        mean, reads, along = (torch.from_numpy(each).to(states.device) for each in erasure)
        exact = states.double()  # a direction of small variance is read with large weights
        return (exact - (exact - mean) @ reads @ along.T).to(states.dtype)

    return lambda whole, view: Edit(layer, columns(place, view, whole, side)[:, None], change)


@torch.inference_mode()
def ablations(
    problems: Problems, source: Source, places: Sequence[Place], layers: Sequence[int], settings: Settings,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Ablation]:  # fmt: skip
    """Return the table: a row for each target at the place and layer of its best probe, or at all of them.

    Args:
        layers: blocks. What they read is changed.
        progress: is told the share of the work that is done since it was called last.
    """
    subject, targets, batch_size = problems.subject, problems.targets(), settings.batch_size
    if not (places and layers and targets):
        return []
    with temporary_folder(settings.scratch) as scratch:
        states = write_states(subject, places, layers, scratch / "states", batch_size)
        fitted = probes(problems, states, targets)
        found = list(fitted) if settings.everywhere else _best(fitted)
        decoded = [
            probe.accuracy(states.at(probe.place, probe.layer)[problems.scored], targets[probe.target][problems.scored])
            for probe in found
        ]
    progress(0.2)
    whole = hits(subject, problems.scored, batch_size)
    out = []
    for probe, read in zip(found, decoded, strict=True):
        scored = _scored(probe.target, whole, settings.written)

        def left(erasure: Erasure, probe: RidgeProbe = probe, scored: str = scored) -> float:
            edit = erased(erasure, probe.place, probe.layer, subject.side)
            return accuracy(hits(subject, problems.scored, batch_size, edit), scored)

        erasure, rng = probe.erasure(), np.random.default_rng(settings.seed)
        random = [left(erasure.turned(rng)) for _ in range(RANDOM)]
        label = targets[probe.target][problems.scored]
        constant = float(np.unique(label, return_counts=True)[1].max() / len(label))
        out.append(
            Ablation(
                *source, probe.layer, str(probe.place), str(probe.target), erasure.dimensions, left(erasure),
                float(np.mean(random)), min(random), max(random), accuracy(whole, scored), len(problems.scored), scored, read,
                constant,
            )
        )  # fmt: skip
        progress(0.8 / len(found))
    return out


def _best(fitted: Iterable[RidgeProbe]) -> list[RidgeProbe]:
    """Return the probe of each target that is best on the problems held back; of equal ones the first."""
    best: dict[Place, RidgeProbe] = {}
    for probe in fitted:
        if probe.held_back > best.setdefault(probe.target, probe).held_back:
            best[probe.target] = probe
    return list(best.values())


def _scored(target: Place, whole: dict[Place, Floats], written: bool) -> str:
    """Return the tokens that an ablation of a target is scored on (`accuracy`)."""
    if target.part == "answer":
        return str(target)
    if not written:
        return "answer"
    return "written" if np.isnan(whole[target]).all() else str(target)
