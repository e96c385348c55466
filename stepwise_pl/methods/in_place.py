"""Inputs in the place of removed units: the part that Coconut, SIM-CoT and pauses share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError, require
from stepwise_pl.methods.base import Method, own
from stepwise_pl.schedules.spread import ALL, Stage

if TYPE_CHECKING:
    from stepwise_pl.data.batch import CoTBatch
    from stepwise_pl.data.limits import Limits
    from stepwise_pl.models.learner import Learner

# The learned inputs before and after thoughts.
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
        if self.side != "left" or self.keep_position:
            key = "method.keep_position=true" if self.keep_position else f"method.side={self.side}"
            raise UserError(
                f"{key}: the inputs of method={self.kind} stand at the left end of the CoT and push the rest"
            )

    def last_stage(self, limits: "Limits") -> int:
        return limits.max_removed if self.stages is None else min(self.stages + 1, limits.max_removed)

    def removed(self, stage: int, limits: "Limits") -> int:
        return limits.max_removed if stage >= self.last_stage(limits) else stage

    def added(self, stage: int, limits: "Limits") -> int:
        return len(self.inputs(*self._replaced(np.array([stage]), self.last_stage(limits))))

    def view(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> "CoTBatch":
        left = batch.remove(stage.units)
        each = np.full(len(batch), stage.now) if stage.each is None else stage.each
        return left.insert([self.inputs(count) for count in self._replaced(each, stage.last)])

    def _replaced(self, each: npt.NDArray[np.int64], last: int) -> list[int]:
        """Return the number of units that inputs stand for at each stage."""
        found: list[int] = np.minimum(np.minimum(each, last), ALL if self.stages is None else self.stages).tolist()
        return found

    def inputs(self, replaced: int) -> Sequence[int]:
        """Return the ids of the inputs that stand for `replaced` units."""
        raise NotImplementedError
