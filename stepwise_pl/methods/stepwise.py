"""Stepwise Internalization (arXiv 2405.14838): a stage is the number of CoT units that are gone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import Method, own
from stepwise_pl.schedules.spread import Stage

if TYPE_CHECKING:
    from stepwise_pl.data.batch import CoTBatch
    from stepwise_pl.data.limits import Limits
    from stepwise_pl.models.learner import Learner


@register("method")
@dataclass
class Stepwise(Method):
    """The model reads the prompt; it writes the rest of the CoT and then the answer (section 3).

    Explicit CoT and No CoT are schedules of this method: one removes nothing, the other has
    removed everything.
    """

    has_baselines: ClassVar[bool] = True

    kind: str = "stepwise"
    # Tell the model the stage, by a learned input after the prompt. With `schedule.mix` one model then answers at every stage
    # as it is told. Such a model cannot be exported.
    tell_stage: bool = False

    def num_tokens(self, limits: "Limits") -> int:
        return self.last_stage(limits) + 1 if self.tell_stage else 0

    def added(self, stage: int, limits: "Limits") -> int:
        return 1 if self.tell_stage else 0

    def view(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> "CoTBatch":
        left = batch.remove(stage.units, self.side, self.keep_position)
        if not self.tell_stage:
            return left
        each = [stage.now] * len(batch) if stage.each is None else stage.each.tolist()
        return left.insert([[own(min(number, stage.last))] for number in each])
