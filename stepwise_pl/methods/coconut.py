"""Coconut (arXiv 2412.06769): hidden states, read as inputs, take the place of written steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import LATENT, Method, own
from stepwise_pl.schedules.spread import ALL, Stage

if TYPE_CHECKING:
    from stepwise_pl.data.batch import CoTBatch
    from stepwise_pl.data.limits import Limits
    from stepwise_pl.models.learner import Learner

# The learned inputs before and after the thoughts.
BEGIN, END = own(0), own(1)


@dataclass
class InPlace(Method):
    """A method that puts inputs in the place of removed units: `thoughts` for each, between two separators, before the rest.

    At stage s the first s units are gone, and s · `thoughts` inputs stand in their place. From the stage after `stages` on,
    all units are gone, and the inputs are as many as at stage `stages`. The number of inputs follows from the stage alone: a
    model that answers does not know how long a CoT would have been.

    Raises:
        UserError: a value is out of range.
    """

    unit: str = "step"
    # Inputs in the place of each removed unit; 0: none, so that only the removal is left.
    thoughts: int = 2
    # S: the stages with a part of the CoT removed; then the whole rest goes at once. null: as many as the longest CoT has units.
    stages: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.thoughts >= 0, "method.thoughts", self.thoughts, "must be at least 0")
        require(self.stages is None or self.stages >= 0, "method.stages", self.stages, "must be at least 0")

    def last_stage(self, limits: "Limits") -> int:
        return limits.max_removed if self.stages is None else min(self.stages + 1, limits.max_removed)

    def removed(self, stage: int, limits: "Limits") -> int:
        return limits.max_removed if stage >= self.last_stage(limits) else stage

    def added(self, limits: "Limits") -> int:
        return len(self.inputs(self._replaced(np.array([limits.max_removed]), limits.max_removed)[0]))

    def view(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> "CoTBatch":
        left = batch.remove(stage.units, self.side, self.keep_position)
        each = np.full(len(batch), stage.now) if stage.each is None else stage.each
        return left.insert([self.inputs(count) for count in self._replaced(each, stage.last)])

    def _replaced(self, each: npt.NDArray[np.int64], last: int) -> list[int]:
        """Return the number of units that inputs stand for at each stage."""
        found: list[int] = np.minimum(np.minimum(each, last), ALL if self.stages is None else self.stages).tolist()
        return found

    def inputs(self, replaced: int) -> Sequence[int]:
        """Return the ids of the inputs that stand for `replaced` units."""
        raise NotImplementedError


@register("method")
@dataclass
class Coconut(InPlace):
    """Continuous thoughts take the place of written steps, one step after the other (section 3).

    A thought is the hidden state after the last norm, read as the next input: n thoughts take n + 1 forward passes. The loss is
    the cross entropy of the steps that are left, and of the answer. The paper's GSM8K runs: 2 thoughts a step, `stages=3`.
    Its controls are settings: `thoughts=0` (without thought), `schedule=no_cot` (without curriculum), `schedule.mix` with
    `schedule.mix_from=all` (stage mixing).
    """

    kind: str = "coconut"

    def num_tokens(self, limits: "Limits") -> int:
        return 2 if self.thoughts else 0

    def inputs(self, replaced: int) -> Sequence[int]:
        return (BEGIN, *[LATENT] * (self.thoughts * replaced), END) if self.thoughts else ()
