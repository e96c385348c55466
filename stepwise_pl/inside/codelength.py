"""Online code length (Voita and Titov, arXiv 2003.12298): how many bits a label costs if the probe has to be learned on the way.

The problems to fit are sent in portions, each twice as large as all before it. The first costs what it costs without any
knowledge; each other one is coded by a probe of the portions before. A better probe, or one that needs fewer problems, has fewer bits.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV

from stepwise_pl.inside.problems import Rows, Sides
from stepwise_pl.inside.ridge import STRENGTHS, Inputs, Labels
from stepwise_pl.inside.targets import CLASS

PORTIONS = 9
# The share of every code that is spread evenly over all labels, so that no single label costs endless bits.
EVEN = 0.01

Probabilities = npt.NDArray[np.float64]


class CodeLength(NamedTuple):
    """Bits per label: with the probe, and with a code that learns nothing but the labels' distribution."""

    bits: float
    bits_uniform: float


UNKNOWN = CodeLength(float("nan"), float("nan"))


def code_length(x: Inputs, labels: Labels, sides: Sides, seed: int = 0) -> CodeLength:
    """Return the online code length of the labels of the problems to fit, in a random order.

    A class is coded by logistic regression. A number is coded to the precision of the smallest difference that occurs, by a
    normal distribution: its mean is that of a ridge regression, its variance the error on the portions before, each problem left out in turn.
    """
    rows = np.random.default_rng([seed, 2]).permutation(sides.where(labels.target.has).whole)
    code = _Classes(labels) if labels.target.kind == CLASS else _Numbers(labels, rows)
    with_probe = alone = 0.0
    for before, portion in portions(rows):
        if not len(before):
            first = len(portion) * np.log2(code.num_labels)
            with_probe, alone = first, first
            continue
        with_probe += _bits(code.by_probe(x, before, portion), code.num_labels)
        alone += _bits(code.by_distribution(before, portion), code.num_labels)
    return CodeLength(with_probe / len(rows), alone / len(rows))


def portions(rows: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Yield the problems before each portion, and the portion; the first is the smallest that leaves `PORTIONS` of them."""
    ends = np.unique([max(1, len(rows) >> power) for power in range(PORTIONS)])
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        yield rows[:begin], rows[begin:end]


def _bits(probability: Probabilities, num_labels: float) -> float:
    return float(-np.log2((1 - EVEN) * probability + EVEN / num_labels).sum())


class _Classes:
    """Codes of classes."""

    def __init__(self, labels: Labels) -> None:
        self.values = labels.values
        self.num_labels = float(labels.target.num_classes)

    def by_probe(self, x: Inputs, before: Rows, portion: Rows) -> Probabilities:
        """Return the probability of each label of a portion, by a probe of the problems before it."""
        values = self.values[before].astype(np.int64)
        if len(np.unique(values)) == 1:  # there is nothing to tell apart yet
            return np.asarray(self.values[portion] == values[0], np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # A fit that was cut short is a code too.
            model = LogisticRegression(C=0.1, max_iter=100, tol=1e-3).fit(x[before], values)
        found = np.zeros((len(portion), int(self.num_labels)))
        found[:, model.classes_] = model.predict_proba(x[portion])
        return np.asarray(found[np.arange(len(portion)), self.values[portion].astype(np.int64)])

    def by_distribution(self, before: Rows, portion: Rows) -> Probabilities:
        """Return the same by the counts of the labels before, each with one half more."""
        counts = np.bincount(self.values[before].astype(np.int64), minlength=int(self.num_labels)) + 0.5
        return np.asarray((counts / counts.sum())[self.values[portion].astype(np.int64)])


class _Numbers:
    """Codes of numbers on a grid."""

    def __init__(self, labels: Labels, rows: Rows) -> None:
        self.values = labels.values
        known = np.unique(labels.values[rows])
        self.unit = float(np.diff(known).min()) if len(known) > 1 else 1.0
        self.num_labels = float(np.ptp(known)) / self.unit + 1

    def by_probe(self, x: Inputs, before: Rows, portion: Rows) -> Probabilities:
        """Return the probability of each number of a portion, by a probe of the problems before it."""
        if len(before) < 3:
            return self.by_distribution(before, portion)
        model = RidgeCV([strength * len(before) for strength in STRENGTHS]).fit(x[before], self.values[before])
        return self._normal(portion, model.predict(x[portion]), -float(model.best_score_))

    def by_distribution(self, before: Rows, portion: Rows) -> Probabilities:
        """Return the same by mean and variance of the numbers before."""
        known = self.values[before]
        return self._normal(portion, np.full(len(portion), known.mean()), float(known.var(ddof=min(1, len(known) - 1))))

    def _normal(self, portion: Rows, mean: Probabilities, variance: float) -> Probabilities:
        # A grid point is never known better than to a tenth of the grid.
        deviation = max(float(np.sqrt(variance)), self.unit / 10)
        low, high = ((self.values[portion] + side * self.unit / 2 - mean) / deviation for side in (-1, 1))
        return np.asarray(norm.cdf(high) - norm.cdf(low))
