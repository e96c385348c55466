"""A schedule that removes the next unit once the model answers as well as it should."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.registry import register
from stepwise_pl.common.settings import setting
from stepwise_pl.schedules.base import Schedule

ROUNDING = 1e-6  # Accuracy comes in float32, and 0.95 in float32 is a little below 0.95.
TOKEN_ACCURACY = "462c60e"  # the last commit whose adaptive schedule followed the token accuracy of training


@register("schedule")
@dataclass
class Adaptive(Schedule):
    """s grows when answer accuracy on the validation problems has reached `keep`, and waits otherwise.

    The run validates every `check_every` optimizer steps for as long as s waits. A validation decodes whole answers
    greedily, with the weights that the run would keep (`optimizer.average`), and is the same on all processes. Accuracy
    counts answers within the tokens that targets take: a model that still writes a token that has left is not ready.

    The measure is on validation problems and not on problems of the training stream, because the stream repeats its
    problems after the first pass. Frequent validation makes accuracy look a little too good, because a unit leaves at the
    first validation that passes. The test set is not looked at.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = "adaptive"
    # The next unit leaves once answer accuracy on validation is at least this.
    keep: float = setting(0.95, changeable=True)
    # Optimizer steps between two validations while s waits.
    check_every: int = setting(50, changeable=True)
    # Optimizer steps after which the next unit leaves all the same; null: never.
    max_stay: int | None = setting(None, changeable=True)
    # Units that leave at a time: `one`, or `double`, as many as are gone already and one more, so that s is 1, 3, 7, 15, ...
    # (geometric chunks, arXiv 2605.28600). trainer.keep_every_removed above 1 then keeps only those that it divides.
    chunk: str = "one"
    # s goes no further.
    remove_at_most: int | None = None
    # End the run once everything, or `remove_at_most`, has left and accuracy has come to `keep` again.
    stop_when_done: bool = setting(False, changeable=True)
    # End the run if a stage is still below `keep` after this many optimizer steps; null: go on.
    stop_when_stuck: int | None = setting(None, changeable=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, "schedule.keep", self.keep, "must be above 0 and at most 1")
        require(self.check_every >= 1, "schedule.check_every", self.check_every, "must be at least 1")
        one_of("schedule.chunk", self.chunk, ("one", "double"))
        if self.max_stay is not None and self.max_stay < self.check_every:
            raise UserError(
                f"schedule.max_stay={self.max_stay}: must be at least schedule.check_every={self.check_every}"
            )
        require(self.stop_when_stuck is None or self.stop_when_stuck >= self.check_every, "schedule.stop_when_stuck",
                self.stop_when_stuck, f"must be at least schedule.check_every={self.check_every}")  # fmt: skip
        require(self.remove_at_most is None or self.remove_at_most >= 0, "schedule.remove_at_most",
                self.remove_at_most, "must be at least 0")  # fmt: skip

    def bind(self, steps_per_epoch: int, last: int) -> None:
        super().bind(steps_per_epoch, last)
        self.now, self.since = 0, 0  # s, and the step at which it became that
        # A stage lasts at least `longer * check_every` steps. The guard raises `longer` when it slows the schedule down.
        self.longer = Fraction(1)
        # Accuracies are kept and not verdicts, because a resumed run may have another `keep`.
        self.best_at_end: float | None = None  # the best accuracy of the looks at the end of s; None: there was none
        # Steps of this stage and accuracy at its last look; None: there was none.
        self.last_look: tuple[int, float] | None = None

    def hurried(self) -> "Adaptive":
        """A chunk leaves at every step, however bad the answers are."""
        return replace(self, keep=ROUNDING, check_every=1, chunk="double", rewarmup_steps=min(1, self.rewarmup_steps))

    @property
    def most(self) -> int:
        """The stage at which s ends."""
        return self.last if self.remove_at_most is None else min(self.remove_at_most, self.last)

    def removed(self, step: int) -> int:
        return self.now

    def needs_accuracy(self) -> bool:
        return self.max_stay is None

    def is_waiting(self) -> bool:
        return self.now < self.most

    @property
    def _goal(self) -> str:
        """The accuracy to keep, as text."""
        return f"{100 * self.keep:g}%"

    def waits_for(self) -> str:
        late = f", or trained a stage for {self.max_stay:,} steps" if self.max_stay is not None else ""
        return f"reached {self._goal} answer accuracy on validation{late}"

    def is_kept_stage(self, accuracy: float) -> bool:
        return self._is_good(accuracy) or self.max_stay is not None

    def wants_validation(self, step: int) -> bool:
        stayed = step - self.since
        looks = self.is_waiting() or (self.may_end_run and not self.is_done)
        return looks and stayed > 0 and stayed % self.check_every == 0

    @property
    def may_end_run(self) -> bool:
        return self.stop_when_done or self.stop_when_stuck is not None

    def _is_good(self, accuracy: float) -> bool:
        return accuracy >= self.keep - ROUNDING

    @property
    def is_done(self) -> bool:
        """Whether all that leaves has left, and accuracy has come to `keep` again."""
        return self.best_at_end is not None and self._is_good(self.best_at_end)

    @property
    def below(self) -> int:
        """Steps of this stage at its last look, if accuracy was below `keep` there; else 0."""
        return 0 if self.last_look is None or self._is_good(self.last_look[1]) else self.last_look[0]

    def reason_to_end(self) -> str:
        if self.stop_when_done and self.is_done:
            allowed = f"as much has left as schedule.remove_at_most={self.remove_at_most} allows"
            gone = "everything has left" if self.most == self.last else allowed
            return f"{gone}, and accuracy has reached {self._goal} (schedule.stop_when_done)"
        if self.stop_when_stuck is not None and self.below >= self.stop_when_stuck * self.longer:
            return f"stage {self.now} is below {self._goal} after {self.below:,} steps (schedule.stop_when_stuck)"
        return ""

    def observe(self, step: int, metrics: Mapping[str, Any]) -> None:
        if "val/answer_accuracy" not in metrics:
            return
        stayed = step - self.since
        # Only a validation that the schedule has asked for decides. Others, such as one after the last step of a run that is
        # resumed later, must not change what follows.
        is_look_due = self.wants_validation(step) and stayed >= self.check_every * self.longer
        accuracy = float(metrics["val/answer_accuracy"])
        is_good = self._is_good(accuracy)
        is_late = self.max_stay is not None and stayed >= self.max_stay * self.longer
        if is_look_due:
            self.last_look = stayed, accuracy
        if self.now >= self.most:
            if is_look_due:
                self.best_at_end = max(accuracy, self.best_at_end or 0)
            self.decision = ""
            return
        if is_look_due and is_good:
            self.decision = f"stage {self.now} has reached {self._goal}"
        elif is_look_due and is_late:
            self.decision = f"stage {self.now} ends below {self._goal} after {stayed} steps (schedule.max_stay)"
        else:
            self.decision = f"stage {self.now} waits for {self._goal} since step {self.since}"
            return
        chunk = 1 if self.chunk == "one" else self.now + 1
        self.now, self.since, self.last_look = min(self.now + chunk, self.most), step, None

    def hold(self, step: int, removed: int, wait: int = 0) -> None:
        self.best_at_end = self.last_look = None
        self.now, self.since = removed, max(self.since, step + wait)

    def slow_down(self, step: int, removed: int, rate: Fraction, wait: int) -> None:
        self.hold(step, removed, wait)
        self.longer = 1 / rate

    def state_dict(self, step: int) -> dict[str, Any]:
        state = {"now": self.now, "since": self.since, "longer": str(self.longer)}
        return {**state, "best_at_end": self.best_at_end, "last_look": self.last_look and list(self.last_look)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "targets" in state:
            raise UserError(
                "the checkpoint's adaptive schedule follows token accuracy; the last version that goes on with it is commit "
                f"{TOKEN_ACCURACY} of stepwise_pl"
            )
        self.now, self.since, self.longer = state["now"], state["since"], Fraction(state["longer"])
        self.best_at_end, look = state.get("best_at_end"), state.get("last_look")  # older checkpoints lack these
        self.last_look = None if look is None else (look[0], look[1])
