"""Ablation: the directions that a linear probe reads are taken out of the states at one place and layer, and the answer is scored.

If the answer suffers more than without as many random directions, the model needs what the probe reads, there. If it does not
suffer, the model does without: decodable is not used (amnesic probing, arXiv 2006.00995).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.inside.directions import Problems, RidgeProbe, probes
from stepwise_pl.inside.pairs import Ints
from stepwise_pl.inside.places import Place, columns
from stepwise_pl.inside.states import write_states
from stepwise_pl.inside.subject import Source, Subject
from stepwise_pl.models.edits import Edit
from stepwise_pl.runs.inside import Ablation

Floats = npt.NDArray[np.float64]
# Makes the edit of a view, given the whole batch and the view.
EditOf = Callable[[CoTBatch, CoTBatch], Edit]

# Random subspaces that the probe's is compared with.
RANDOM = 10


@dataclass(frozen=True)
class Settings:
    """How an ablation is made.

    Attributes:
        scratch: a folder for the states, which are removed in the end.
        seed: of the random subspaces.
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


def without(directions: Floats, mean: Floats, place: Place, layer: int, side: str) -> EditOf:
    """Return the edit that takes directions, [width, dimensions], out of the states at a place before a block.

    Their part of a state becomes that of the mean, [width], so that a state loses what tells it from others, and no more.
    """

    def change(row: Tensor, number: Tensor, states: Tensor) -> Tensor:
        basis, centre = (torch.from_numpy(each).to(states.device, torch.float32) for each in (directions, mean))
        apart = states.float() - centre
        return (states.float() - apart @ basis @ basis.T).to(states.dtype)

    return lambda whole, view: Edit(layer, columns(place, view, whole, side)[:, None], change)


def random_directions(width: int, dimensions: int, seed: int) -> list[Floats]:
    """Return orthonormal bases of random subspaces, `RANDOM` of [width, dimensions]."""
    rng = np.random.default_rng([seed, dimensions])
    return [np.linalg.qr(rng.standard_normal((width, dimensions)))[0] for _ in range(RANDOM)]


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
    with TemporaryDirectory(dir=settings.scratch, prefix=".states-") as scratch:
        states = write_states(subject, places, layers, Path(scratch) / "states", batch_size)
        fitted = probes(problems, states, targets)
        found = list(fitted) if settings.everywhere else _best(fitted)
        decoded = [
            probe.accuracy(states.at(probe.place, probe.layer)[problems.scored], targets[probe.target][problems.scored])
            for probe in found
        ]
    progress(0.2)
    whole = hits(subject, problems.scored, batch_size)
    controls: dict[tuple[Place, int, int], list[dict[Place, Floats]]] = {}
    out = []
    for probe, read in zip(found, decoded, strict=True):
        basis = probe.directions()
        width, dimensions = basis.shape

        def hits_without(directions: Floats, probe: RidgeProbe = probe) -> dict[Place, Floats]:
            edit = without(directions, probe.mean, probe.place, probe.layer, subject.side)
            return hits(subject, problems.scored, batch_size, edit)

        key = probe.place, probe.layer, dimensions
        if key not in controls:
            controls[key] = [hits_without(random) for random in random_directions(width, dimensions, settings.seed)]
        scored = _scored(probe.target, whole, settings.written)
        random = [accuracy(each, scored) for each in controls[key]]
        label = targets[probe.target][problems.scored]
        constant = float(np.unique(label, return_counts=True)[1].max() / len(label))
        out.append(
            Ablation(
                *source, probe.layer, str(probe.place), str(probe.target), dimensions, accuracy(hits_without(basis), scored),
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
