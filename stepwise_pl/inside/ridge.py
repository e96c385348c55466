"""Linear probes: ridge regression of all targets at once, at several strengths, on states or on one-hot tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import linalg

from stepwise_pl.inside.targets import CLASS, Target

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Rows: TypeAlias = npt.NDArray[np.int64]
# What a probe reads, [problems, width]: an array, or a sparse one of scipy, which has no types, for one-hot tokens.
Inputs: TypeAlias = Any

# The penalty on the squared weights, for each problem; the strongest comes first. States are standardised.
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# A state that varies by less, beside its size, is constant up to rounding.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Sides:
    """The problems on each side, by number.

    Attributes:
        fit: those that a probe is fitted on at first.
        held: those held back from the fit, a fifth; they choose strengths, places and layers.
        scored: those that nothing is chosen on.
    """

    fit: Rows
    held: Rows
    scored: Rows

    @classmethod
    def of(cls, num_fit: int, num_scored: int, seed: int = 0) -> "Sides":
        """Return the sides of problems of which the first `num_fit` are to fit."""
        order = np.random.default_rng([seed, 1]).permutation(num_fit)
        held = max(1, num_fit // 5)
        return cls(np.sort(order[held:]), np.sort(order[:held]), np.arange(num_fit, num_fit + num_scored))

    @property
    def whole(self) -> Rows:
        """All problems to fit, with those held back."""
        return np.sort(np.concatenate([self.fit, self.held]))

    def where(self, has: npt.NDArray[np.bool_]) -> "Sides":
        """Return the sides without the problems for which `has` is false."""
        return Sides(*(rows[has[rows]] for rows in (self.fit, self.held, self.scored)))


@dataclass(frozen=True)
class Labels:
    """What a probe is fitted to.

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


def linear_probes(x: Inputs, labels: Sequence[Labels], sides: Sides) -> list[Fitted]:
    """Fit linear probes. Labels that the same problems have share their solves.

    A strength is chosen for each by the problems held back; the probe is then fitted to all problems to fit.
    """
    groups: dict[bytes, list[int]] = {}
    for number, label in enumerate(labels):
        groups.setdefault(label.target.has.tobytes(), []).append(number)
    out: dict[int, Fitted] = {}
    for numbers in groups.values():
        group = [labels[number] for number in numbers]
        out |= dict(zip(numbers, _probes(x, group, sides.where(group[0].target.has)), strict=True))
    return [out[number] for number in range(len(labels))]


def _probes(x: Inputs, labels: Sequence[Labels], sides: Sides) -> list[Fitted]:
    y = np.concatenate([label.columns for label in labels], axis=1)  # [problems, outputs of all labels]
    ends = np.cumsum([label.columns.shape[1] for label in labels]).tolist()
    own = [slice(end - label.columns.shape[1], end) for label, end in zip(labels, ends, strict=True)]
    held = ridge_outputs(x, y, sides.fit, sides.held, STRENGTHS)  # [strengths, held, outputs]
    scores = np.array([
        [score(label.target.kind, label.values[sides.held], label.decided(outputs[:, part])) for outputs in held]
        for label, part in zip(labels, own, strict=True)
    ])  # fmt: skip
    # Of equal strengths, the strongest.
    best = np.nan_to_num(scores, nan=-np.inf).argmax(1)
    used = np.unique(best)
    outputs = ridge_outputs(x, y, sides.whole, sides.scored, [STRENGTHS[number] for number in used])
    place = np.searchsorted(used, best)
    return [
        Fitted(float(scores[number, best[number]]), label.decided(outputs[place[number]][:, own[number]]))
        for number, label in enumerate(labels)
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
