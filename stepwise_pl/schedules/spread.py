"""The stages of single examples around s(t): random offsets that smooth the removal, and stage mixing."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.draws import uniform

ALL = 1 << 30  # more units than any CoT has

Stages = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """s(t), and the stage of each example of a batch.

    Attributes:
        now: s(t), from 0 to `last`.
        last: the stage at which everything is gone; m_max for Stepwise Internalization.
        each: the stage of each example, [batch]; None: all examples are at `now`, as in evaluation.
    """

    now: int
    last: int
    each: Stages | None = None

    @property
    def _each(self) -> Stages:
        """The stage of each example, [batch]; `now` alone, [1], if all have it."""
        return np.array([self.now]) if self.each is None else self.each

    @property
    def units(self) -> Stages:
        """The units to remove, min(s + o, m), [batch] or [1]. At the last stage it is `ALL`, because some CoTs may be longer than m_max."""
        each = self._each
        return np.where(each >= self.last, np.int64(ALL), each)


def offsets(draw: Stages, smoothing: float, seed: int) -> Stages:
    """Return the random extra removal o of each example, P(o) = (1 - e^-λ) e^-λo (arXiv 2405.14838, section 3).

    The offset is a pure function of the seed and the number of the draw. An example gets a
    fresh offset every time it is seen. A resume, another number of processes, or gradient
    accumulation does not change it.

    Args:
        draw: numbers of the examples in the training stream, [batch].
        smoothing: λ; inf gives 0 everywhere.
        seed: the run's seed.

    Returns:
        [batch] int64.
    """
    if math.isinf(smoothing):
        return np.zeros(len(draw), np.int64)
    # Inverse of P(o >= k) = e^-λk.
    return np.minimum(np.floor(-np.log(uniform(draw, seed)) / smoothing), ALL).astype(np.int64)


def mixed(each: Stages, draw: Stages, seed: int, share: float, count: int) -> Stages:
    """Return the stages of a batch, with a share of them replaced by stages drawn uniformly from 0 .. count - 1.

    The result is a pure function of the seed and the number of the draw, as in `offsets`.

    Args:
        each: the stages before, [batch].
        draw: numbers of the examples in the training stream, [batch].
        share: the probability that the stage of an example is replaced.
        count: the number of stages to draw from; 0 replaces none.

    Returns:
        [batch] int64.
    """
    if share == 0 or count == 0:
        return each
    u = uniform(draw, seed, stream=3)  # in (0, 1]
    # If u <= share, u / share is uniform in (0, 1]. Other values of u leave the stage as it is.
    drawn = np.ceil(np.minimum(u, share) / share * count).astype(np.int64) - 1
    return np.where(u <= share, drawn, each)
