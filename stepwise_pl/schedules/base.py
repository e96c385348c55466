"""The interface of a removal schedule, and the code that all schedules share."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.schedules.spread import Stage, mixed, offsets

# A clock (begin, time, rate) shows `time` at optimizer step `begin`, and gains `rate` at each later step.
REAL_TIME = (0, 0, Fraction(1))


@dataclass
class Schedule:
    """Decides s(t), the stage at optimizer step t. For Stepwise Internalization it is the number of CoT units removed.

    Pure Python: no torch, no trainer. The training module calls `bind` once, then
    `stage` and `spread` at every step, and `observe` whenever metrics were measured. An
    open-loop schedule ignores what it observes. A closed-loop one keeps what it learns in
    `state_dict`, because it must decide the same after a resume and on every process of a
    distributed run.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = ""
    # λ of removal smoothing, P(o) = (1 - e^-λ) e^-λo; inf draws no extra offset.
    smoothing: float = 4.0
    # Clear the optimizer's moments whenever a token leaves (section 3, "Optimizer reset").
    reset_optimizer: bool = True
    # Optimizer steps over which the learning rate climbs back to full after a reset (0: none).
    rewarmup_steps: int = 0
    # Stage mixing: this share of the examples gets a stage drawn uniformly, instead of s(t) with smoothing.
    mix: float = 0.0
    # Mixing draws from `earlier`, the stages 0 .. s(t) - 1, so that they are not forgotten, or from `all`, 0 .. m_max (Coconut).
    mix_from: str = "earlier"

    def __post_init__(self) -> None:
        require(self.smoothing >= 0.01, "schedule.smoothing", self.smoothing, "must be at least 0.01 (inf: none)")
        require(0 <= self.mix <= 1, "schedule.mix", self.mix, "must be at least 0 and at most 1")
        alone = self.mix == 1 and self.mix_from == "earlier"
        require(
            not alone,
            "schedule.mix",
            self.mix,
            "must be below 1 with schedule.mix_from=earlier: s(t) itself is never trained",
        )
        one_of("schedule.mix_from", self.mix_from, ("earlier", "all"))
        require(self.rewarmup_steps >= 0, "schedule.rewarmup_steps", self.rewarmup_steps, "must be at least 0")
        if self.rewarmup_steps and not self.reset_optimizer:
            raise UserError(
                "schedule.rewarmup_steps follows a reset: set schedule.reset_optimizer=true, or schedule.rewarmup_steps=0"
            )
        self.steps_per_epoch = 0
        self.last = 0

    @property
    def baseline(self) -> str | None:
        """`no_cot` if everything is removed from the start, `explicit_cot` if nothing is ever removed; else None."""
        if getattr(self, "remove_all_beyond", None) == 0:
            return "no_cot"
        return "explicit_cot" if getattr(self, "remove_at_most", None) == 0 else None

    def bind(self, steps_per_epoch: int, last: int) -> None:
        """Set T, the optimizer steps in an epoch, and the last stage: m_max, the units in the longest CoT trained on."""
        self.steps_per_epoch = steps_per_epoch
        self.last = last
        self._clock = REAL_TIME

    def hurried(self) -> "Schedule":
        """Return the schedule for a run of 12 steps with epochs of 4 (`debug=true`): it should reach its last stage. Default: itself."""
        return self

    def removed(self, step: int) -> int:
        """Return s at `step` of the schedule's time; `last` or more means that all units are removed."""
        raise NotImplementedError

    def at(self, step: int) -> int:
        """Return s(t) at optimizer step `step`. The clock counts here: the guard may have slowed it down."""
        return self.removed(self.time(step))

    def stage(self, step: int) -> int:
        """Return s(t), at most `last`."""
        return min(self.at(step), self.last)

    def spread(self, draw: npt.NDArray[np.int64], step: int, seed: int) -> Stage:
        """Return the stage at optimizer step `step`, with the stage of each example of a batch.

        Args:
            draw: numbers of the examples in the training stream, [batch].
            seed: the run's seed.
        """
        now, time = self.stage(step), self.time(step)
        each = now + offsets(draw, self.smoothing_at(time), seed)
        share = self.mix if self.is_spread_at(time) else 0.0
        count = now if self.mix_from == "earlier" else self.most + 1
        return Stage(now, self.last, mixed(each, draw, seed, share, count))

    def time(self, step: int) -> int:
        """Return the schedule's time at optimizer step `step`: the step itself, unless the default `slow_down` has changed the clock."""
        begins, time, rate = self._clock
        return time + math.floor(rate * max(0, step - begins))

    @property
    def most(self) -> int:
        """The stage at which s ends, at most `last`."""
        return self.last

    def is_spread_at(self, step: int) -> bool:
        """Whether examples may have other stages than s at `step` of the schedule's time, by offset or by mixing."""
        return True

    def smoothing_at(self, step: int) -> float:
        """Return λ at `step` of the schedule's time; inf if no offset is drawn."""
        return self.smoothing if self.is_spread_at(step) else math.inf

    def rate(self) -> float:
        """Return Δ, the units of CoT removed per epoch in the long run; nan if it is not known beforehand."""
        return math.nan

    def observe(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take note of metrics measured at `step` (0-d tensors or numbers). An open-loop schedule does nothing."""

    def wants_validation(self, step: int) -> bool:
        """Whether the schedule asks for a validation after `step` optimizer steps. An open-loop schedule never does."""
        return False

    def is_kept_stage(self, accuracy: float) -> bool:
        """Whether validation accuracy is good enough at the present stage for its checkpoint to be the run's best.

        An adaptive schedule may end in the dip after a token has left. The stage before is better then.
        """
        return True

    def needs_accuracy(self) -> bool:
        """Whether s never moves if answers stay bad. An open-loop schedule moves all the same."""
        return False

    def is_waiting(self) -> bool:
        """Whether s stays until the model is good enough, however long that takes. An open-loop schedule never waits."""
        return False

    @property
    def may_end_run(self) -> bool:
        """Whether `reason_to_end` may ever give a reason."""
        return False

    def reason_to_end(self) -> str:
        """Return, in words, why the run may end before its last step; empty if it may not. The training module asks after a validation."""
        return ""

    def waits_for(self) -> str:
        """Return, in words, what the run has done when s of a closed-loop schedule moves, such as `reached 95%`.

        The text is empty if s(t) follows from the step alone, so that `stage` is true of later steps too.
        """
        return "" if type(self).observe is Schedule.observe else f"reached what schedule.kind={self.kind} asks for"

    # These attributes have no annotation, so that they are no dataclass fields.
    _clock = REAL_TIME
    decision = ""  # the last decision of a closed-loop schedule in words, for the log

    def hold(self, step: int, removed: int, wait: int = 0) -> None:
        """Stay at s = `removed` at `step` and for `wait` more steps. The guard calls this after it has gone back.

        The pace does not change, and an earlier wait still lasts to its end. If the next unit
        was to leave at this very step, the default turns the schedule's time back by one step.
        """
        begins, _, rate = self._clock
        now = self.time(step)
        if now and self.removed(now) > removed:
            now -= 1
        self._clock = (max(begins, step + wait), now, rate)

    def slow_down(self, step: int, removed: int, rate: Fraction, wait: int) -> None:
        """Go on from s = `removed` at `step`, more slowly. The guard calls this after it has gone back from a collapse.

        The default lets the schedule's time pass more slowly. This is right if s follows from
        the step alone. A schedule that learns while it runs must override this method.

        Args:
            rate: the share of the configured pace that is left, at most 1.
            wait: optimizer steps during which nothing more is removed.
        """
        self.hold(step, removed, wait)
        self._clock = (*self._clock[:2], rate)

    def require_slow_down(self, action: str) -> None:
        """Raise `UserError` if the schedule says no stage, or if a guard with this action could not slow it down."""
        kind = type(self)
        name = f"schedule.kind={self.kind}: {kind.__module__}.{kind.__qualname__}"
        if kind.removed is Schedule.removed:
            if kind.at is Schedule.at and kind.stage is Schedule.stage:
                raise UserError(f"{name} has no removed(step), which returns how many units of CoT are gone")
            if action != "warn" and kind.hold is Schedule.hold:
                raise UserError(f"guard.action={action}: {name} has no removed(step), by which the guard goes back")
        calls: dict[str, tuple[Any, ...]] = {
            "removed": (0,),
            "observe": (0, {}),
            "state_dict": (0,),
            "load_state_dict": ({},),
        }
        names = {"observe": "step, metrics", "load_state_dict": "state"}
        for method, arguments in calls.items():
            try:
                inspect.signature(getattr(self, method)).bind(*arguments)
            except TypeError:
                raise UserError(f"{name}: {method} must take ({names.get(method, 'step')})") from None
        learns = kind.observe is not Schedule.observe
        if action != "warn" and learns and kind.slow_down is Schedule.slow_down:
            raise UserError(
                f"guard.action={action}: schedule.kind={self.kind} decides from what it observes and has no slow_down of its "
                f"own; give {kind.__name__} one, or set guard=warn"
            )

    def save(self, step: int) -> dict[str, Any]:
        """Return the state that `restore` needs to go on from `step`: the schedule's own state, and its clock if that was changed."""
        begins, time, rate = self._clock
        clock = {} if self._clock == REAL_TIME else {"clock": [begins, time, str(rate)]}
        return {**self.state_dict(step), **clock}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `save` left off. Called after `bind`."""
        begins, time, rate = state.get("clock", REAL_TIME)
        self._clock = (begins, time, Fraction(rate))
        self.load_state_dict({key: value for key, value in state.items() if key != "clock"})

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return the state that `load_state_dict` needs to go on from `step`; plain numbers and strings only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` left off. Called after `bind`."""
