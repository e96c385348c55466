"""Random numbers as a function of seed, draw and stream."""

import math

import numpy as np

from stepwise_pl.common.draws import uniform


def test_streams_are_independent_and_uniform() -> None:
    drawn = np.array([uniform(np.arange(100_000), 3, stream) for stream in range(4)])
    assert drawn.min() > 0 and drawn.max() <= 1
    assert abs(drawn.mean(1) - 0.5).max() < 5 / math.sqrt(12 * 100_000)
    assert abs(np.corrcoef(drawn) - np.eye(4)).max() < 5 / math.sqrt(100_000)
    assert np.array_equal(uniform(np.arange(50, 60), 3, 2), drawn[2, 50:60])
