"""A schedule that removes the next token when the model is ready for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from stepwise_pl.common.errors import UserError, require
from stepwise_pl.common.registry import register
from stepwise_pl.schedules.base import Schedule


@register("schedule")
@dataclass
class Adaptive(Schedule):
    """s grows when the running token accuracy at s, or at a later stage, reaches a gate.

    Every training example of optimizer step t has some number k of units removed: s, more
    by smoothing, or another number by mixing. The examples with k units removed have
    n_k(t) target tokens, of which c_k(t) are predicted (arg-max, teacher-forced). Let

        a_k(t) = C_k(t) / N_k(t),  C_k(t) = C_k(t-1) + c_k(t) - C_k(t-1) / memory,  N_k alike,

    be the accuracy at k over about the last `memory` steps. Once s has stayed for
    `min_stay` steps, it moves

        to the largest k > s with a_k >= gate and N_k of at least `evidence` tokens, else
        to s + 1 if a_s >= gate (N_s of at least `evidence`) or s has stayed for `max_stay` steps.

    The first line lets s jump over a stage that is harder than the stages after it, if
    smoothing gives evidence of them. s ends at `remove_at_most`.

    The counts are summed over processes and micro-batches, so that all ranks decide the
    same. They are in the checkpoint.

    Raises:
        UserError: a value is out of range.
    """

    closed_loop: ClassVar[bool] = True

    kind: str = "adaptive"
    gate: float = 0.95
    # Optimizer steps that the running accuracy looks back on.
    memory: int = 10
    # Optimizer steps that s stays at each number of removed units; null: there is no longest stay.
    min_stay: int = 20
    max_stay: int | None = None
    # Target tokens N_k that an accuracy needs before it counts.
    evidence: int = 300
    # s goes no further.
    remove_at_most: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gate <= 1, "schedule.gate", self.gate, "must be above 0 and at most 1")
        for key in ("memory", "min_stay", "evidence"):
            require(getattr(self, key) >= 1, f"schedule.{key}", getattr(self, key), "must be at least 1")
        if self.max_stay is not None and self.max_stay < self.min_stay:
            raise UserError(f"schedule.max_stay={self.max_stay}: must be at least schedule.min_stay={self.min_stay}")
        require(self.remove_at_most is None or self.remove_at_most >= 0, "schedule.remove_at_most",
                self.remove_at_most, "must be at least 0")  # fmt: skip

    def bind(self, steps_per_epoch: int, last: int) -> None:
        super().bind(steps_per_epoch, last)
        self.now, self.since = 0, 0  # s, and the step since which it has this value
        self.longer = Fraction(1)  # factor on min_stay and max_stay; above 1 once the guard has slowed down
        self._forget()

    def _forget(self) -> None:
        """Clear the running counts N_k and C_k, for k = 0 .. m_max."""
        self.targets = [0.0] * (self.last + 1)
        self.right = [0.0] * (self.last + 1)

    @property
    def most(self) -> int:
        """The stage at which s ends."""
        return self.last if self.remove_at_most is None else min(self.remove_at_most, self.last)

    def removed(self, step: int) -> int:
        return self.now

    def accuracy(self, removed: int) -> float:
        """Return the running token accuracy a_k at k = `removed`; 0 if there is too little evidence."""
        targets = self.targets[removed]
        return self.right[removed] / targets if targets >= self.evidence else 0.0

    def observe_levels(self, step: int, targets: Sequence[int], right: Sequence[int]) -> None:
        fade = 1 - 1 / self.memory
        self.targets = [fade * before + now for before, now in zip(self.targets, targets, strict=True)]
        self.right = [fade * before + now for before, now in zip(self.right, right, strict=True)]
        stayed = step + 1 - self.since
        if self.now >= self.most or stayed < self.min_stay * self.longer:
            return
        ready = [k for k in range(self.now + 1, self.most + 1) if self.accuracy(k) >= self.gate]
        waited = self.max_stay is not None and stayed >= self.max_stay * self.longer
        if ready:
            self.now = ready[-1]
        elif self.accuracy(self.now) >= self.gate or waited:
            self.now += 1
        else:
            return
        self.since = step + 1

    def hold(self, step: int, removed: int, wait: int = 0) -> None:
        self.now, self.since = removed, max(self.since, step + wait)

    def slow_down(self, step: int, removed: int, rate: Fraction, wait: int) -> None:
        self.hold(step, removed, wait)
        self.longer = 1 / rate
        self._forget()

    def state_dict(self, step: int) -> dict[str, Any]:
        return {
            "now": self.now,
            "since": self.since,
            "longer": str(self.longer),
            "targets": list(self.targets),
            "right": list(self.right),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.now, self.since, self.longer = state["now"], state["since"], Fraction(state["longer"])
        self.targets, self.right = list(state["targets"]), list(state["right"])
