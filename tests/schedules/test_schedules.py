"""The linear schedule against exact arithmetic."""

import json
from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.run import Config
from stepwise_pl.config.training import GuardConfig
from stepwise_pl.methods import Stepwise
from stepwise_pl.models.early import check
from stepwise_pl.schedules import Adaptive, Linear, Schedule
from stepwise_pl.tasks import Multiplication

deltas = st.one_of(
    st.integers(0, 50), st.fractions(0, 50, max_denominator=97).map(str), st.decimals(0, 50, places=2).map(float)
)


def bound(steps_per_epoch: int = 100, max_cot: int = 50, **kwargs) -> Linear:
    schedule = Linear(**kwargs)
    schedule.bind(steps_per_epoch, max_cot)
    return schedule


@given(deltas, st.integers(1, 5000), st.integers(0, 10), st.integers(0, 4), st.integers(0, 10**7))
def test_removed_is_the_papers_formula(delta, steps_per_epoch, start, pretrain, step) -> None:
    schedule = bound(steps_per_epoch, delta=delta, remove_start_from=start, pretrain_epochs=pretrain)
    elapsed = max(0, step - pretrain * steps_per_epoch)
    assert schedule.removed(step) == start + floor(Fraction(str(delta)) * elapsed / steps_per_epoch)
    assert schedule.removed(step + 1) >= schedule.removed(step)


def test_tokens_leave_inside_the_epoch() -> None:
    schedule = bound(100, delta=8)
    assert [t for t in range(1, 101) if schedule.removed(t) > schedule.removed(t - 1)] == [
        13,
        25,
        38,
        50,
        63,
        75,
        88,
        100,
    ]


def test_no_offset_before_the_end_of_pretraining() -> None:
    schedule = bound(100, pretrain_epochs=2, smoothing=4.0, remove_start_from=3)
    assert {schedule.removed(t) for t in range(200)} == {3}
    assert {schedule.smoothing_at(t) for t in range(200)} == {inf}
    assert schedule.smoothing_at(200) == 4.0


def test_remove_all_beyond() -> None:
    schedule = bound(10, max_cot=50, delta=10, remove_all_beyond=4)
    assert [schedule.removed(t) for t in range(6)] == [0, 1, 2, 3, 50, 50]


def test_remove_at_most() -> None:
    schedule = bound(10, max_cot=50, delta=10, remove_at_most=3)
    assert [schedule.removed(t) for t in range(6)] == [0, 1, 2, 3, 3, 3]
    assert schedule.smoothing_at(5) == 4.0
    assert bound(remove_at_most=0).smoothing_at(5) == inf


def test_baselines_are_schedules() -> None:
    assert {bound(delta=8, remove_at_most=0).removed(t) for t in (0, 1, 10**9)} == {0}
    assert {bound(max_cot=50, delta=0, remove_all_beyond=0).removed(t) for t in (0, 1, 10**9)} == {50}


@given(deltas, deltas, st.integers(0, 3000))
def test_a_changed_delta_goes_on_from_the_s_reached(before, after, step) -> None:
    first = bound(97, delta=before)
    second = bound(97, delta=after)
    second.load_state_dict(first.state_dict(step))
    if Fraction(str(before)) == Fraction(str(after)):
        assert all(second.removed(t) == first.removed(t) for t in range(step, step + 300))
    else:
        start = first.removed(step)
        grown = [start + floor(Fraction(str(after)) * k / 97) for k in range(300)]
        assert [second.removed(step + k) for k in range(300)] == grown


@given(st.integers(0, 500), st.integers(1, 500))
def test_two_resumes_are_one(first_stop, second_stop) -> None:
    original = bound(13, delta="3/7")
    resumed = bound(13, delta="3/7")
    resumed.load_state_dict(original.state_dict(first_stop))
    again = bound(13, delta="3/7")
    again.load_state_dict(resumed.state_dict(first_stop + second_stop))
    assert all(again.removed(t) == original.removed(t) for t in range(1200))


@pytest.mark.parametrize(
    "bad",
    [
        {"delta": -1}, {"delta": "eight"}, {"delta": "1/0"}, {"smoothing": 0}, {"mix": 1.1}, {"mix_from": "later"}, {"pretrain_epochs": -1},
        {"remove_start_from": -1}, {"remove_all_beyond": -1}, {"rewarmup_steps": -1},
    ],
)  # fmt: skip
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(UserError, match=f"schedule.{next(iter(bad))}="):
        Linear(**bad)


@given(
    deltas, st.fractions("1/64", 1), st.integers(0, 90), st.integers(0, 500), st.integers(0, 30), st.integers(0, 2000)
)
def test_a_schedule_slowed_down_goes_on_from_the_given_s(delta, rate, wait, step, removed, later) -> None:
    """s stays until `step`, the wait and pre-training are over. Then it grows at the given share of Δ."""
    schedule = bound(60, delta=delta, pretrain_epochs=2)
    schedule.slow_down(step, removed, rate, wait)
    begins = max(step, 120) + wait
    expected = removed + floor(rate * Fraction(str(delta)) * max(0, later - begins) / 60)
    assert schedule.removed(later) == expected
    again = bound(60, delta=delta, pretrain_epochs=2)
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict(step))))
    assert again.removed(later) == expected


@given(
    st.integers(0, 12), st.integers(1, 12), st.sampled_from(["1/2", "1/3", "0.7", 1, 2]), st.sampled_from([None, 2, 9]),
    st.sampled_from([0, 1, "1/2", 3]),
)  # fmt: skip
def test_pretraining_removes_exactly_the_configured_number(start, beyond, epochs, at_most, delta) -> None:
    kwargs = {"remove_start_from": start, "remove_all_beyond": beyond, "remove_at_most": at_most, "delta": delta}
    schedule = bound(10, 12, pretrain_epochs=float(Fraction(epochs)), **kwargs)
    ends, most = schedule.pretrain_steps, inf if at_most is None else at_most
    assert ends > 0 and {schedule.removed(t) for t in range(ends)} == {min(start, most)}
    assert {schedule.smoothing_at(t) for t in range(ends)} == {inf}
    if start >= beyond:
        assert schedule.removed(ends) == min(12, most)
    # The run is resumed in the middle, with the same Δ and with another one.
    for other in (delta, 7):
        again = bound(10, 12, pretrain_epochs=float(Fraction(epochs)), **(kwargs | {"delta": other}))
        again.restore(json.loads(json.dumps(schedule.save(ends // 2))))
        assert {again.removed(t) for t in range(ends // 2, ends)} == {min(start, most)}
        assert again.removed(ends) == schedule.removed(ends)


def test_the_wait_ends_before_everything_goes() -> None:
    """If the guard goes back to the last stage of pre-training, nothing leaves during the wait and one more stage."""
    schedule = bound(10, 12, pretrain_epochs=1, remove_start_from=3, remove_all_beyond=3, delta=2)
    schedule.slow_down(10, 3, Fraction(1, 2), 4)
    assert [schedule.removed(t) for t in (10, 14, 23, 24)] == [3, 3, 3, 12]
    schedule.hold(10, 3)
    assert [schedule.removed(t) for t in (23, 24)] == [3, 12]


@dataclass
class Staircase(Schedule):
    """A user's schedule without code for the guard: a token leaves at each of the given steps."""

    kind: str = "staircase"
    leaves: tuple[int, ...] = ()

    def removed(self, step: int) -> int:
        return sum(at <= step for at in self.leaves)


@given(
    st.lists(st.integers(1, 60), max_size=10), st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20)), max_size=5)
)
def test_any_schedule_of_the_step_alone_can_be_slowed_down(leaves, rollbacks) -> None:
    """After each rollback time passes more slowly; s neither jumps nor falls."""
    schedule = Staircase(leaves=tuple(leaves))
    schedule.bind(10, 8)
    step, rate = 0, Fraction(1)
    for trained, wait in rollbacks:
        step, rate = step + trained, rate / 2
        removed = schedule.at(step - 1)  # the stage of the checkpoint
        time = max(t for t in range(1000) if schedule.removed(t) == removed and t <= schedule.time(step))
        schedule.slow_down(step, removed, rate, wait)
        assert {schedule.at(t) for t in range(step, step + wait + 1)} == {removed}
        expected = [schedule.removed(time + floor(rate * k)) for k in range(200)]
        begins = schedule._clock[0]
        assert begins >= step + wait and [schedule.at(begins + k) for k in range(200)] == expected
        again = Staircase(leaves=tuple(leaves))
        again.bind(10, 8)
        again.restore(json.loads(json.dumps(schedule.save(step))))
        assert [again.at(t) for t in range(step, step + 300)] == [schedule.at(t) for t in range(step, step + 300)]


def test_a_schedule_that_learns_and_cannot_be_slowed_down_is_refused_at_the_start() -> None:
    @dataclass
    class Learning(Staircase):
        def observe(self, step: int, metrics: object) -> None:
            self.seen = step

    with pytest.raises(
        UserError, match=r"guard\.action=halve: schedule\.kind=staircase .* give Learning one, or set guard=warn"
    ):
        Learning().require_slow_down("halve")
    Learning().require_slow_down("warn")
    for schedule in (Staircase(), Linear(), Adaptive()):
        schedule.require_slow_down("wait")
    config = Config(task=Multiplication(), schedule=Learning(), method=Stepwise(), guard=GuardConfig("halve"))
    with pytest.raises(UserError, match="has no slow_down of its own"):
        check(config)


def test_a_schedule_that_says_no_stage_is_refused_at_the_start() -> None:
    @dataclass
    class Blank(Schedule):
        kind: str = "blank"

    @dataclass
    class OfItsOwn(Blank):
        def stage(self, step: int) -> int:
            return step // 10

    for action in ("warn", "halve"):
        with pytest.raises(UserError, match=r"schedule\.kind=blank: .*Blank has no removed\(step\), which returns"):
            Blank().require_slow_down(action)
    OfItsOwn().require_slow_down("warn")
    with pytest.raises(UserError, match=r"guard\.action=halve: .*OfItsOwn has no removed\(step\), by which the guard"):
        OfItsOwn().require_slow_down("halve")
