"""Where the examples of a batch stand around s(t): random offsets that smooth the removal, and stage mixing."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.draws import uniform

ALL = 1 << 30  # more units than any CoT has

Stages = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """s(t), and the stage at which each example of a batch stands.

    Attributes:
        now: s(t), from 0 to `last`.
        last: the stage at which everything is gone; m_max for Stepwise Internalization.
        each: the stage of each example, [batch]; None: all stand at `now`, as in evaluation.
    """

    now: int
    last: int
    each: Stages | None = None

    @property
    def _each(self) -> Stages:
        """The stages of `each`, or `now` for all, [batch] or [1]."""
        return np.array([self.now]) if self.each is None else self.each

    @property
    def units(self) -> Stages:
        """min(s + o, m) as a count of units to remove, [batch] or [1]. At the last stage a CoT that is longer than m_max goes whole."""
        each = self._each
        return np.where(each >= self.last, np.int64(ALL), each)

    @property
    def levels(self) -> Stages:
        """The stages of `each`, at most `last`, [batch] or [1]: what a closed-loop schedule counts by."""
        levels: Stages = np.minimum(self._each, self.last)
        return levels


def offsets(draw: Stages, smoothing: float, seed: int) -> Stages:
    """The random extra removal o of each example, P(o) = (1 - e^-λ) e^-λo (arXiv 2405.14838, section 3).

    A pure function of the seed and the number of the draw: an example gets a fresh offset
    every time it is seen, the same one after a resume, on any number of processes, and
    with or without gradient accumulation.

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
    """The stages of a batch, a share of them replaced by stages drawn uniformly from 0 .. count - 1.

    A pure function of the seed and the number of the draw, as `offsets` is.

    Args:
        each: the stages before, [batch].
        draw: numbers of the examples in the training stream, [batch].
        share: the chance of each example to be replaced.
        count: how many stages are drawn from; 0 replaces none.

    Returns:
        [batch] int64.
    """
    if share == 0 or count == 0:
        return each
    u = uniform(draw, seed, stream=3)  # in (0, 1]
    # Given that u <= share, u / share is uniform in (0, 1]; the others are not looked at.
    drawn = np.ceil(np.minimum(u, share) / share * count).astype(np.int64) - 1
    return np.where(u <= share, drawn, each)
