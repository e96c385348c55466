"""Stepwise Internalization (arXiv 2405.14838): a stage is the number of CoT units that are gone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import Method
from stepwise_pl.schedules.spread import Stage

if TYPE_CHECKING:
    from stepwise_pl.data.batch import CoTBatch
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

    def view(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> "CoTBatch":
        return batch.remove(stage.units, self.side, self.keep_position)
