"""The paper's schedule: tokens leave at a constant rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Union

from stepwise_pl.common.errors import UserError, require
from stepwise_pl.common.registry import register
from stepwise_pl.common.settings import setting
from stepwise_pl.schedules.base import Schedule


@register("schedule")
@dataclass
class Linear(Schedule):
    """s(t) = remove_start_from + floor(Δ · max(0, t - t_pretrain) / T)  (arXiv 2405.14838, section 3).

    s grows by one every T/Δ optimizer steps, inside the epoch, in exact integer
    arithmetic. Explicit CoT removes at most 0 tokens; No CoT removes all beyond 0 tokens.

    If a run is resumed with another Δ (or another T), or slowed down by the guard, it goes on
    from the s that it had reached: another segment of the line begins there.

    Raises:
        UserError: a value is out of range, or `delta` is no number.
    """

    kind: str = "linear"
    # Δ: CoT tokens (or steps: `method.unit`) removed per epoch; an integer, a decimal or a fraction such as 1/2.
    # A resumed run that changes it begins another segment of the line.
    delta: Union[int, float, str] = setting(8, changeable=True)  # noqa: UP007 (OmegaConf reads typing.Union)
    # For so many epochs exactly `remove_start_from` tokens are gone: no offset is drawn, no stage is mixed in.
    pretrain_epochs: float = 0
    # s at the start: so many tokens (or steps) are gone from the first optimizer step on; at least 0.
    remove_start_from: int = 0
    # Once s reaches this number, the whole CoT goes at once (the paper's GSM8K runs: 39); 0: it is gone from the first step on.
    remove_all_beyond: int | None = None
    # s goes no further (the paper's 11x11 run: 320 of 368); 0 removes nothing, neither by offset nor by mixing.
    remove_at_most: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.rate_exact = Fraction(str(self.delta))
        except (ValueError, ZeroDivisionError):
            raise UserError(f"schedule.delta={self.delta}: must be a number, such as 8, 0.5 or 1/2") from None
        require(self.rate_exact >= 0, "schedule.delta", self.delta, "must be at least 0")
        self.slowed = Fraction(1)
        require(
            0 <= self.pretrain_epochs < math.inf, "schedule.pretrain_epochs", self.pretrain_epochs, "must be at least 0"
        )
        require(self.remove_start_from >= 0, "schedule.remove_start_from", self.remove_start_from, "must be at least 0")
        for key in ("remove_all_beyond", "remove_at_most"):
            value = getattr(self, key)
            require(value is None or value >= 0, f"schedule.{key}", value, "must be at least 0")

    def bind(self, steps_per_epoch: int, last: int) -> None:
        super().bind(steps_per_epoch, last)
        # The current segment of the line: `removed_from` tokens until `step_from`, Δ per T afterwards.
        self.step_from = self.pretrain_steps = round(self.pretrain_epochs * steps_per_epoch)
        self.removed_from = self.remove_start_from
        self.slowed = Fraction(1)  # factor on Δ; below 1 once the guard has slowed down

    def hurried(self) -> "Linear":
        """Two steps of explicit CoT, then two units a step, and after the eighth unit all that are left."""
        beyond = self.remove_all_beyond
        if self.rate_exact:  # else the number of removed units stays as it is
            beyond = 8 if beyond is None else min(8, beyond)
        return replace(
            self,
            delta=8 if self.rate_exact else 0,
            pretrain_epochs=0.5,
            remove_all_beyond=beyond,
            rewarmup_steps=min(1, self.rewarmup_steps),
        )

    def removed(self, step: int) -> int:
        rate, elapsed = self.rate_exact * self.slowed, step - self.step_from
        removed = self.removed_from + (rate.numerator * max(0, elapsed)) // (rate.denominator * self.steps_per_epoch)
        # Nothing leaves before the segment begins (in pre-training, or while the guard waits), not even all at once. No CoT
        # (`remove_all_beyond=0`) is the exception: it has removed everything from the start.
        begun = elapsed >= 0 or self.remove_all_beyond == 0
        if self.remove_all_beyond is not None and removed >= self.remove_all_beyond and begun:
            removed = max(removed, self.last)
        return removed if self.remove_at_most is None else min(removed, self.remove_at_most)

    @property
    def most(self) -> int:
        return self.last if self.remove_at_most is None else min(self.remove_at_most, self.last)

    def is_spread_at(self, step: int) -> bool:
        return step >= self.pretrain_steps and self.remove_at_most != 0

    def rate(self) -> float:
        gone_at_once = self.remove_all_beyond is not None and self.remove_start_from >= self.remove_all_beyond
        return 0.0 if gone_at_once or self.remove_at_most == 0 else float(self.rate_exact * self.slowed)

    def hold(self, step: int, removed: int, wait: int = 0) -> None:
        begins = max(step, self.pretrain_steps) + wait
        pace = self.rate_exact * self.slowed
        if self.remove_all_beyond is not None and removed >= self.remove_all_beyond:
            # The stage before everything goes lasts as long as any other stage. Without a pace it lasts one step.
            begins += math.ceil(self.steps_per_epoch / pace) if pace else 1
        self.removed_from, self.step_from = removed, max(self.step_from, begins)

    def slow_down(self, step: int, removed: int, rate: Fraction, wait: int) -> None:
        self.slowed = rate
        self.hold(step, removed, wait)

    def _line(self) -> dict[str, Any]:
        """Return the settings of the line. If they differ after a resume, a new segment begins."""
        return {
            "delta": str(self.rate_exact),
            "steps_per_epoch": self.steps_per_epoch,
            "pretrain_steps": self.pretrain_steps,
            "remove_start_from": self.remove_start_from,
        }

    def state_dict(self, step: int) -> dict[str, Any]:
        return {
            "line": self._line(),
            "step_from": self.step_from,
            "removed_from": self.removed_from,
            "slowed": str(self.slowed),
            "step": step,
            "removed": self.removed(step),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["line"] == self._line():
            self.step_from, self.removed_from = state["step_from"], state["removed_from"]
            self.slowed = Fraction(state["slowed"])
        else:
            self.step_from, self.removed_from = max(state["step"], self.pretrain_steps), state["removed"]
