"""Coconut (arXiv 2412.06769): hidden states, read as inputs, take the place of written steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import LATENT
from stepwise_pl.methods.in_place import BEGIN, END, InPlace

if TYPE_CHECKING:
    from stepwise_pl.data.limits import Limits


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
