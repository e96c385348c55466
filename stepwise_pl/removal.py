"""Removing CoT tokens from a batch, and the random offsets that smooth the removal."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepwise_pl.batch import CoTBatch, Part

REMOVE_ALL = 1 << 30  # more than any CoT has tokens


def remove(batch: CoTBatch, count: Tensor | int, side: str = "left", keep_position: bool = False) -> CoTBatch:
    """The batch with the first (`side="left"`) or last (`"right"`) `count` units of each example's CoT gone.

    With tokens as units this makes z[1 + min(s + o, m) : m] of the paper's objective (arXiv
    2405.14838, section 3). No loop over examples: a running count over the CoT, a mask, and
    one gather.

    Args:
        batch: padded on the right; any lengths, an empty CoT included.
        count: units (tokens, or reasoning steps: `batch.unit_start`) to remove from each
            example, [batch] int64 or one number. More than there are removes all; 0 none.
        keep_position: tokens behind the gap keep their positions, which jump exactly at
            the gap; otherwise positions close up.

    Returns:
        A batch no wider than its longest example.
    """
    cot = batch.part == Part.COT
    count = torch.as_tensor(count, device=cot.device).reshape(-1, 1)
    rank = batch.unit_start.cumsum(1)  # 1 in the first unit, m in the last and behind it
    gone = cot & (rank <= count if side == "left" else rank > rank[:, -1:] - count)
    keep = ~gone & (batch.part != Part.PAD)
    # A stable sort by "not kept" moves the kept tokens to the front, in order.
    order = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices[:, : max(1, int(keep.sum(1).max()))]
    padding = ~keep.gather(1, order)
    position = batch.position.gather(1, order)
    if not keep_position:
        position = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return CoTBatch(
        tokens=batch.tokens.gather(1, order),
        part=batch.part.gather(1, order).masked_fill(padding, Part.PAD),
        position=position.masked_fill(padding, 0),
        unit_start=batch.unit_start.gather(1, order) & ~padding,
        draw=batch.draw,
    )


def removal_count(removed: int, max_removed: int, offset: Tensor | int = 0) -> Tensor | int:
    """min(s + o, m) as a count for `remove`: once s is m_max, everything goes, also from examples with a longer CoT."""
    return REMOVE_ALL if removed >= max_removed else removed + offset


def offsets(draw: npt.NDArray[np.int64], smoothing: float, seed: int) -> npt.NDArray[np.int64]:
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
    out = np.zeros(len(draw), np.int64)
    if not math.isinf(smoothing):
        # Inverse of P(o >= k) = e^-λk.
        out = np.minimum(np.floor(-np.log(uniform(draw, seed)) / smoothing), REMOVE_ALL).astype(np.int64)
    return out


def uniform(draw: npt.NDArray[np.int64], seed: int, stream: int = 0) -> npt.NDArray[np.float64]:
    """A number in (0, 1] for each draw; another stream, of which there are four, gives others."""
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
