"""How good a probe is on problems that it has not seen, with an interval over these problems."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.statistics import wilson
from stepwise_pl.inside.ridge import Floats, score
from stepwise_pl.inside.targets import CLASS

RESAMPLES = 1000


class Measure(NamedTuple):
    """Accuracy or R², its 95% interval, and the error: the share of wrong labels, or the mean absolute error in units of the quantity."""

    score: float
    low: float
    high: float
    error: float
    num_scored: int


def measure(kind: str, values: Floats, predicted: Floats) -> Measure:
    """Measure predicted labels, both [scored]: accuracy with Wilson's interval, or R² with a bootstrap over the problems."""
    found, count = score(kind, values, predicted), len(values)
    if kind == CLASS:
        return Measure(found, *wilson(found, count), 1 - found, count)
    return Measure(found, *_bootstrap(values, predicted, found), float(np.abs(values - predicted).mean()), count)


def _bootstrap(values: Floats, predicted: Floats, found: float) -> tuple[float, float]:
    """Return the percentile interval of R², widened to contain the estimate."""
    weights = _weights(len(values))
    centred = values - values.mean()
    missed = weights @ np.square(values - predicted)
    spread = weights @ np.square(centred) - np.square(weights @ centred) / len(values)
    scores = 1 - missed[spread > 0] / spread[spread > 0]
    if not len(scores):
        return found, found
    low, high = np.percentile(scores, (2.5, 97.5))
    return min(float(low), found), max(float(high), found)


@lru_cache(maxsize=8)
def _weights(count: int) -> npt.NDArray[np.float64]:
    """Return how often each problem is drawn in each resample, the same at every call; [resamples, problems]."""
    rng = np.random.default_rng([count, 3])
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
