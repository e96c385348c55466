"""Linear probes by ridge regression, whose directions an ablation takes out of the states."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.inside.pairs import Ints, is_written, tokens_at
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.states import States
from stepwise_pl.inside.subject import Subject

Floats = npt.NDArray[np.float64]

# Labels of a target at most. Words of free text have more, and a probe of them would take most directions of a state.
MOST_LABELS = 32
# Ridge penalties that are tried, in units of the mean variance of a direction.
PENALTIES = (1e-4, 1e-2, 1.0)


@dataclass(frozen=True)
class Problems:
    """The problems of an ablation, at a stage of a model.

    Attributes:
        subject: all of them.
        fit, held_back, scored: the numbers of those that a probe is fitted on, chosen by, and scored on.
    """

    subject: Subject
    fit: Ints
    held_back: Ints
    scored: Ints

    def labels(self, target: Place) -> Ints | None:
        """Return the token at a target, [problems]; None if there are too many different ones, or only one."""
        tokens = tokens_at(self.subject, target)
        return tokens if 2 <= len(np.unique(tokens[self.fit])) <= MOST_LABELS else None

    def targets(self) -> dict[Place, Ints]:
        """Return the tokens of the CoT, those that are gone included, and of the answer that all problems have, with their labels."""
        before, after = self.subject.frame
        cot = (Place("cot", number) for number in range(int(self.subject.encoded.cot_length.min())))
        answer = (
            Place("answer", number) for number in range(before, int(self.subject.encoded.answer_length.min()) - after)
        )
        found = {target: self.labels(target) for target in (*cot, *answer)}
        return {target: labels for target, labels in found.items() if labels is not None}


@dataclass(frozen=True)
class RidgeProbe:
    """A linear probe of a target at a place and layer: ridge regression on one-hot labels.

    Attributes:
        mean: of the states, [width].
        weight: [width, labels]; the prediction is the label with the largest output.
        offset: [labels].
        labels: the labels as tokens, [labels].
        held_back: its accuracy on problems that it was not fitted on, but chosen by.
    """

    target: Place
    place: Place
    layer: int
    mean: Floats
    weight: Floats
    offset: Floats
    labels: Ints
    held_back: float = 0.0

    def accuracy(self, states: npt.NDArray[np.floating[Any]], labels: Ints) -> float:
        """Return the share of states, [n, width], whose labels, [n], it reads right."""
        outputs = (states - self.mean) @ self.weight + self.offset
        return float((self.labels[outputs.argmax(1)] == labels).mean())

    def directions(self) -> Floats:
        """Return an orthonormal basis of the directions that it reads, [width, dimensions]."""
        basis, size, _ = np.linalg.svd(self.weight, full_matrices=False)
        return np.asarray(basis[:, size > 1e-6 * max(size.max(), 1e-30)])


def probes(problems: Problems, states: States, targets: Mapping[Place, Ints]) -> Iterator[RidgeProbe]:
    """Yield a probe of every target at every place and layer of the states, with the penalty that is best on the problems held back.

    A token that is read gives itself away, at its place and after it. So its probes read at the places before it. No probe reads
    where nothing of the answer is left to predict.
    """
    subject = problems.subject
    last = Place("answer", int(subject.encoded.answer_length.max()) - subject.frame[1] - 1)
    given = {target for target in targets if is_written(subject, target).any()}
    for place in (place for place in states.places if place.rank < last.rank):
        allowed = [target for target in targets if target not in given or place.rank < target.rank]
        for layer in states.layers if allowed else ():
            found = states.at(place, layer).astype(np.float64)  # [problems, width]
            fitted = _Fit.of(found[problems.fit])
            held_back = found[problems.held_back]
            for target in allowed:
                labels = targets[target]
                known, label = np.unique(labels[problems.fit], return_inverse=True)
                tried = [
                    RidgeProbe(
                        target, place, layer, fitted.mean, *fitted.solution(np.eye(len(known))[label], penalty), known
                    )
                    for penalty in PENALTIES
                ]
                scores = [probe.accuracy(held_back, labels[problems.held_back]) for probe in tried]
                best = int(np.argmax(scores))
                yield replace(tried[best], held_back=scores[best])


@dataclass(frozen=True)
class _Fit:
    """Centred states, [n, width], and the eigenvalues, [width], and eigenvectors, [width, width], of their covariance."""

    mean: Floats
    centred: Floats
    values: Floats
    vectors: Floats

    @classmethod
    def of(cls, states: Floats) -> "_Fit":
        mean = states.mean(0)
        centred = states - mean
        return cls(mean, centred, *np.linalg.eigh(centred.T @ centred / len(states)))

    def solution(self, outputs: Floats, penalty: float) -> tuple[Floats, Floats]:
        """Return weights, [width, labels], and offset, [labels], of ridge regression on outputs, [n, labels]."""
        offset = outputs.mean(0)
        along = self.vectors.T @ (self.centred.T @ (outputs - offset)) / len(outputs)
        # States that are all the same have no variance.
        scale = self.values + max(penalty * self.values.mean(), 1e-30)
        return self.vectors @ (along / scale[:, None]), offset
