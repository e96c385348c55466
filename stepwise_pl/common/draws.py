"""Random numbers that are a function of a seed and the number of a draw."""

import numpy as np
import numpy.typing as npt


def uniform(draw: npt.NDArray[np.int64], seed: int, stream: int = 0) -> npt.NDArray[np.float64]:
    """A number in (0, 1] for each draw, a function of seed, stream and draw.

    Args:
        draw: numbers of the draws, of any shape.
        stream: 0 to 3; each stream gives numbers of its own.

    Returns:
        The shape of `draw`.
    """
    bits = _mix(draw.astype(np.uint64) + np.uint64(stream << 62), seed)
    return ((bits >> np.uint64(11)) + np.uint64(1)).astype(np.float64) / 2.0**53


def _mix(number: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """64 random bits for each number: output `number` of the SplitMix64 generator started from a mixed seed."""
    with np.errstate(over="ignore"):
        start = _scramble(np.array([seed], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        return _scramble(start + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def _scramble(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
