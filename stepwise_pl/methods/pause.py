"""Pause tokens (arXiv 2310.02226): a learned input gives the model more places to compute at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import own
from stepwise_pl.methods.in_place import InPlace

if TYPE_CHECKING:
    from stepwise_pl.data.limits import Limits

PAUSE = own(0)


@register("method")
@dataclass
class Pause(InPlace):
    """One learned input, repeated between prompt and CoT; it is read and never written.

    With `schedule=no_cot` and `tokens=M` it is the paper's: M pauses, and no CoT at any time. With `thoughts` above 0 it is
    *pause as thought* (arXiv 2412.06769): a pause takes the place of what is removed. It asks whether a model misses the
    written token or the computation in its place.

    Raises:
        UserError: a value is out of range.
    """

    paper: ClassVar[str] = "Goyal and others, *Think before you speak*, arXiv 2310.02226"
    trains_in_parts: ClassVar[bool] = True  # without `tokens`, no pause stands at stage 0

    kind: str = "pause"
    unit: str = "token"
    # Pauses in the place of each removed unit; 0: none.
    thoughts: int = 0
    # M: pauses at every stage.
    tokens: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tokens >= 0, "method.tokens", self.tokens, "must be at least 0")

    def num_tokens(self, limits: "Limits") -> int:
        return 1 if self.tokens or self.thoughts else 0

    def inputs(self, replaced: int) -> Sequence[int]:
        return [PAUSE] * (self.tokens + self.thoughts * replaced)
