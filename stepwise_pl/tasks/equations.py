"""The numbers that reasoning steps come to."""

import math
import re

import numpy as np
import numpy.typing as npt

from stepwise_pl.tasks.base import Example

# The digits of a number, written one by one: `2 8`.
_SPACED = re.compile(r"\s*(-?\s?[0-9](?: [0-9])+)(?![^\s>])")
_NUMBER = re.compile(r"\s*(-?)\s*\$?\s*([0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?![0-9/])")


def step_results(example: Example) -> npt.NDArray[np.float64]:
    """Return the number behind the last equals sign of each reasoning step, [steps]; nan for a step that has none."""
    ends = [*example.steps[1:], len(example.cot)]
    return np.array(
        [_result(example.cot[begin:end]) for begin, end in zip(example.steps, ends, strict=False)], np.float64
    )


def _result(step: str) -> float:
    """Return the number behind the last equals sign of a step: 24 of `<<48/2=24>>`, 28 of `7 * 4 = 2 8`; nan if there is none."""
    _, sign, right = step.rpartition("=")
    if not sign:
        return math.nan
    if spaced := _SPACED.match(right):
        return float(spaced[1].replace(" ", ""))
    if number := _NUMBER.match(right):
        return float(number[1] + number[2].replace(",", ""))
    return math.nan
