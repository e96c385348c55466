"""Coconut (arXiv 2412.06769): hidden states, read as inputs, take the place of written steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import LATENT
from stepwise_pl.methods.in_place import BEGIN, END, InPlace

if TYPE_CHECKING:
    from torch import Tensor

    from stepwise_pl.data.limits import Limits
    from stepwise_pl.models.learner import Learner


@register("method")
@dataclass
class Coconut(InPlace):
    """Continuous thoughts take the place of written steps, one step after the other (section 3).

    A thought is the hidden state after the last norm, read as the next input: n thoughts take n + 1 forward passes. The loss is
    the cross entropy of the steps that are left, and of the answer. The paper's GSM8K runs: 2 thoughts a step, `stages=3`.
    Its controls are settings: `thoughts=0` (without thought), `schedule=no_cot` (without curriculum), `schedule.mix` with
    `schedule.mix_from=all` (stage mixing).

    Raises:
        UserError: a value is out of range.
    """

    paper: ClassVar[str] = (
        "Hao and others, *Training Large Language Models to Reason in a Continuous Latent Space*, arXiv 2412.06769"
    )

    kind: str = "coconut"
    # A thought is multiplied by this (the paper: 1); above 0. The last norm makes an entry of a thought as large as 1. In a model
    # whose embeddings are far smaller, thoughts of scale 1 drown the positions; then take the deviation of the embeddings.
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.scale < math.inf, "method.scale", self.scale, "must be a number above 0")

    def num_tokens(self, limits: "Limits") -> int:
        return 2 if self.thoughts else 0

    def inputs(self, replaced: int) -> Sequence[int]:
        return (BEGIN, *[LATENT] * (self.thoughts * replaced), END) if self.thoughts else ()

    def thought(self, learner: "Learner", hidden: "Tensor") -> "Tensor":
        return hidden * self.scale
