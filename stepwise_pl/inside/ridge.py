"""Linear probes: ridge regression of all targets at once, at several strengths, on states or on one-hot tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import linalg

from stepwise_pl.inside.problems import Rows, Sides
from stepwise_pl.inside.targets import CLASS, Target

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
# Inputs of a probe, [problems, width]: an array, or for one-hot tokens a sparse one of scipy, which has no types.
Inputs: TypeAlias = Any

# The penalty on the squared weights, for each problem; the strongest comes first. States are standardised.
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# A state that varies by less, beside its size, is constant up to rounding.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Labels:
    """The values that a probe is fitted to.

    Attributes:
        values: those of the target, or random ones, [problems].
        is_shuffled: whether they are random.
    """

    target: Target
    values: npt.NDArray[np.float64]
    is_shuffled: bool = False

    @property
    def columns(self) -> npt.NDArray[np.float64]:
        """The values as a regression has them: one-hot for a class; [problems, outputs]."""
        if self.target.kind == CLASS:
            return np.asarray(self.values[:, None] == np.arange(self.target.num_classes), np.float64)
        return self.values[:, None]

    def decided(self, outputs: Floats) -> npt.NDArray[np.float64]:
        """Return the values that outputs of a regression mean, [.., outputs] -> [..]."""
        if self.target.kind == CLASS:
            return np.asarray(outputs.argmax(-1), np.float64)
        return np.asarray(outputs[..., 0], np.float64)


@dataclass(frozen=True)
class Fitted:
    """A fitted probe.

    Attributes:
        held: its score on the problems held back: accuracy, or R².
        predicted: its labels for the problems to score, [scored].
    """

    held: float
    predicted: npt.NDArray[np.float64]


def score(kind: str, values: Floats, predicted: Floats) -> float:
    """Return the accuracy of predicted classes, or R² of predicted numbers. R² of numbers that are all the same is nan."""
    if kind == CLASS:
        return float(np.mean(values == predicted))
    spread = np.square(values - values.mean()).sum()
    return float(1 - np.square(values - predicted).sum() / spread) if spread > 0 else float("nan")


def standardised(states: npt.NDArray[np.float32], whole: Rows) -> npt.NDArray[np.float64]:
    """Return states with mean 0 and deviation 1 over some problems. A state that is constant there becomes 0."""
    x = states.astype(np.float64)
    mean, deviation = x[whole].mean(0), x[whole].std(0)
    is_constant = deviation <= ROUNDING * np.abs(x[whole]).max(initial=0.0)
    return np.where(is_constant, 0.0, (x - mean) / np.where(is_constant, 1.0, deviation))


@dataclass(frozen=True)
class Group:
    """Labels that the same problems have, so that they share their solves.

    Attributes:
        numbers: their places among all labels.
        outputs: all columns of all of them, [problems, outputs].
        own: the columns of each.
        sides: the problems that have them.
    """

    numbers: list[int]
    labels: list[Labels]
    outputs: Floats
    own: list[slice]
    sides: Sides


def groups_of(labels: Sequence[Labels], sides: Sides) -> list[Group]:
    """Return the labels in groups."""
    by_problems: dict[bytes, list[int]] = {}
    for number, label in enumerate(labels):
        by_problems.setdefault(label.target.has.tobytes(), []).append(number)
    out = []
    for numbers in by_problems.values():
        group = [labels[number] for number in numbers]
        columns = [label.columns for label in group]
        ends = np.cumsum([each.shape[1] for each in columns]).tolist()
        own = [slice(end - each.shape[1], end) for each, end in zip(columns, ends, strict=True)]
        out.append(Group(numbers, group, np.concatenate(columns, axis=1), own, sides.where(group[0].target.has)))
    return out


def linear_probes(x: Inputs, groups: Sequence[Group]) -> list[Fitted]:
    """Fit linear probes to all labels of some groups; return them in the order of the labels.

    A strength is chosen for each by the problems held back; the probe is then fitted to all problems to fit.
    """
    out = {number: fitted for group in groups for number, fitted in zip(group.numbers, _probes(x, group), strict=True)}
    return [out[number] for number in range(len(out))]


def _probes(x: Inputs, group: Group) -> list[Fitted]:
    sides = group.sides
    held = ridge_outputs(x, group.outputs, sides.fit, sides.held, STRENGTHS)  # [strengths, held, outputs]
    scores = np.array([
        [score(label.target.kind, label.values[sides.held], label.decided(outputs[:, part])) for outputs in held]
        for label, part in zip(group.labels, group.own, strict=True)
    ])  # fmt: skip
    # Of equal strengths, the strongest.
    best = np.nan_to_num(scores, nan=-np.inf).argmax(1)
    used = np.unique(best)
    strengths = [STRENGTHS[number] for number in used]
    outputs = ridge_outputs(x, group.outputs, sides.whole, sides.scored, strengths)
    place = np.searchsorted(used, best)
    return [
        Fitted(float(scores[number, best[number]]), label.decided(outputs[place[number]][:, group.own[number]]))
        for number, label in enumerate(group.labels)
    ]


def ridge_outputs(x: Inputs, y: Floats, rows: Rows, others: Rows, strengths: Sequence[float]) -> Floats:
    """Fit ridge regressions with an intercept, and return their outputs for other problems, [strengths, others, outputs].

    One matrix of products serves all outputs and strengths: of the inputs, or of the problems if these are fewer.
    A test compares the result with `sklearn.linear_model.Ridge`.

    Args:
        x: inputs, [problems, width].
        y: [problems, outputs].
        rows: the problems to fit.
        strengths: penalties for each problem of `rows`.
    """
    mean = y[rows].mean(0)
    centred = y[rows] - mean
    if x.shape[1] <= len(rows):
        dense = dense_of(x)
        middle = dense[rows].mean(0)
        inner, outer = dense[rows] - middle, dense[others] - middle
        products, against = inner.T @ inner, inner.T @ centred
    else:
        products, outer = _kernels(x, rows, others)
        against = centred
    return np.stack([outer @ _solved(products, strength * len(rows), against) + mean for strength in strengths])


def dense_of(x: Inputs) -> Floats:
    """Return inputs as a dense matrix."""
    return x if isinstance(x, np.ndarray) else np.asarray(x.toarray(), np.float64)


def _solved(products: Floats, penalty: float, against: Floats) -> Floats:
    penalised = products.copy()
    penalised[np.diag_indices_from(penalised)] += penalty
    return np.asarray(linalg.solve(penalised, against, assume_a="pos", overwrite_a=True, check_finite=False))


def _kernels(x: Inputs, rows: Rows, others: Rows) -> tuple[Floats, Floats]:
    """Return the inner products of centred inputs: those of `rows` with each other, and of the others with `rows`."""
    inner, outer = ((x[some] @ x[rows].T) for some in (rows, others))
    inner, outer = dense_of(inner), dense_of(outer)
    mean = inner.mean(0)
    shift = mean - inner.mean()
    return inner - mean[:, None] - shift, outer - outer.mean(1, keepdims=True) - shift
