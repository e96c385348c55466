"""Linear probes by ridge regression, and the erasure of what they read from states.

Taking the directions that a probe reads out of the states would not do. In trained models the same label shows in many directions:
a second probe reads it as well as the first. Least-squares erasure (LEACE, arXiv 2306.03819) takes as many directions, along
those in which the states differ by the label. Afterwards no linear probe reads the label from the states it was fitted on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stepwise_pl.inside.pairs import Ints, is_written
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.states import States
from stepwise_pl.inside.subject import Subject
from stepwise_pl.inside.tokens import tokens_at

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
        covariance: of the states with the one-hot labels, [width, labels].
        offset: [labels].
        labels: the labels as tokens, [labels].
        held_back: its accuracy on problems that it was not fitted on, but chosen by.
    """

    target: Place
    place: Place
    layer: int
    mean: Floats
    weight: Floats
    covariance: Floats
    offset: Floats
    labels: Ints
    held_back: float = 0.0

    def accuracy(self, states: npt.NDArray[np.floating[Any]], labels: Ints) -> float:
        """Return the share of states, [n, width], whose labels, [n], it reads right."""
        outputs = (states - self.mean) @ self.weight + self.offset
        return float((self.labels[outputs.argmax(1)] == labels).mean())

    def erasure(self) -> "Erasure":
        """Return the erasure of what linear probes read.

        With the weights B of ridge regression and the covariance C it is x - C (B'C)^+ B'(x - mean). The covariance of the result
        with the labels is C - C (B'C)^+ B'C = 0, whatever the penalty.
        """
        size, basis = np.linalg.eigh(self.weight.T @ self.covariance)  # symmetric: C' (covariance of the states)^-1 C
        kept = size > 1e-6 * max(size.max(), 1e-30)
        scaled = basis[:, kept] / np.sqrt(size[kept])
        return Erasure(self.mean, self.weight @ scaled, self.covariance @ scaled)


class Erasure(NamedTuple):
    """A change of states, x - along reads'(x - mean), of as many dimensions as `reads` has columns.

    Attributes:
        mean: of the states, [width].
        reads: the directions whose part of a state is taken out, [width, dimensions].
        along: the directions along which a state moves, [width, dimensions].
    """

    mean: Floats
    reads: Floats
    along: Floats

    @property
    def dimensions(self) -> int:
        """The number of directions."""
        return int(self.reads.shape[1])

    def turned(self, rng: np.random.Generator) -> "Erasure":
        """Return a control: a state moves as far, and as far from the other states, but along random directions."""
        basis, size = np.linalg.qr(self.along)  # [width, dimensions], [dimensions, dimensions]
        random = np.linalg.qr(rng.standard_normal(basis.shape))[0]
        return self._replace(along=random @ size)

    def of(self, states: Floats) -> Floats:
        """Return changed states; both [n, width]."""
        return states - (states - self.mean) @ self.reads @ self.along.T


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

    def solution(self, outputs: Floats, penalty: float) -> tuple[Floats, Floats, Floats]:
        """Return weights and covariance, [width, labels], and offset, [labels], of ridge regression on outputs, [n, labels]."""
        offset = outputs.mean(0)
        covariance = self.centred.T @ (outputs - offset) / len(outputs)
        # States that are all the same have no variance.
        scale = self.values + max(penalty * self.values.mean(), 1e-30)
        return self.vectors @ (self.vectors.T @ covariance / scale[:, None]), covariance, offset
