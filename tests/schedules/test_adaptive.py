"""The adaptive schedule: its rule against a plain oracle, and its behaviour under the real trainer."""

import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.schedules import Adaptive, Linear
from stepwise_pl.training.module import StepwiseModule
from tests.training.test_module import Spy, fit

MOST = 6


def bound(**settings) -> Adaptive:
    schedule = Adaptive(**settings)
    schedule.bind(100, MOST)
    return schedule


def trained(schedule: Adaptive, accuracies: list[float], start: int = 0) -> list[tuple[int, int]]:
    """Train a step for each accuracy. Returns (step, s) of each validation that the schedule has asked for."""
    looks = []
    for step, accuracy in enumerate(accuracies, start=start + 1):
        if schedule.wants_validation(step):
            looks.append((step, schedule.removed(step)))
            schedule.observe(step, {"val/answer_accuracy": torch.tensor(accuracy), "val/loss": torch.tensor(1.0)})
    return looks


def oracle(
    accuracies: list[float], keep: float, check_every: int, max_stay: int | None, chunk: str, most: int
) -> list[tuple[int, int]]:
    """Stage by stage: look every `check_every` steps of the stay, and leave at the first look that is good or too late."""
    looks, start = [], 0
    stages = range(most) if chunk == "one" else [2**power - 1 for power in range(9) if 2**power - 1 < most]
    for stage in stages:
        for stayed in range(check_every, len(accuracies) - start + 1, check_every):
            step = start + stayed
            looks.append((step, stage))
            if accuracies[step - 1] >= keep or (max_stay is not None and stayed >= max_stay):
                start = step
                break
        else:
            break
    return looks


@given(
    st.lists(st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0]), max_size=60), st.sampled_from([0.5, 0.9, 1.0]), st.integers(1, 7),
    st.sampled_from([None, 7, 10]), st.sampled_from(["one", "double"]), st.sampled_from([None, 0, 2, 9]), st.integers(0, 60),
)  # fmt: skip
def test_a_unit_leaves_at_the_first_look_that_is_good_enough(
    accuracies, keep, check_every, max_stay, chunk, at_most, stop
) -> None:
    settings = {
        "keep": keep,
        "check_every": check_every,
        "max_stay": max_stay,
        "chunk": chunk,
        "remove_at_most": at_most,
    }
    schedule = bound(**settings)
    looks = trained(schedule, accuracies[:stop])
    # A resume in between changes nothing.
    resumed = bound(**settings)
    resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict(stop))))
    looks += trained(resumed, accuracies[stop:], start=stop)
    assert looks == oracle(
        accuracies, keep, check_every, max_stay, chunk, MOST if at_most is None else min(at_most, MOST)
    )


def test_each_look_is_told_with_the_stage_and_its_wait() -> None:
    schedule, told = bound(keep=0.9, check_every=5, max_stay=10), []
    for step, accuracy in ((5, 0.9), (10, 0.5), (12, 0.95), (15, 0.95), (20, 0.5), (25, 0.5)):
        schedule.observe(step, {"val/answer_accuracy": accuracy})
        told.append(schedule.decision)
    assert told == [
        "stage 0 has reached 90%",
        "stage 1 waits for 90% since step 5",
        "stage 1 waits for 90% since step 5",  # the schedule has not asked for this validation
        "stage 1 has reached 90%",
        "stage 2 waits for 90% since step 15",
        "stage 2 ends below 90% after 10 steps (schedule.max_stay)",
    ]


def test_a_stage_that_does_not_keep_is_not_the_best() -> None:
    assert [Adaptive(keep=0.9).is_kept_stage(accuracy) for accuracy in (0.89, 0.9)] == [False, True]
    assert Adaptive(keep=0.9, max_stay=50).is_kept_stage(0.1) and Linear().is_kept_stage(0.0)


def test_what_is_measured_while_training_decides_nothing() -> None:
    schedule = bound(check_every=5)
    for step in range(100):
        schedule.observe(step, {"train/loss": 0.0, "train/token_accuracy": 1.0})
    assert schedule.removed(100) == 0


def test_the_guard_slows_it_down() -> None:
    schedule = bound(check_every=3)
    assert trained(schedule, [1.0] * 7) == [(3, 0), (6, 1)]
    schedule.slow_down(7, 1, Fraction(1, 2), 5)
    again = bound(check_every=3)
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict(7))))
    # It waits 5 steps, and then stays for two looks instead of one.
    assert trained(again, [1.0] * 20, start=7) == [(15, 1), (18, 1), (21, 2), (24, 2), (27, 3)]


@pytest.mark.parametrize(
    "bad", [{"keep": 0}, {"keep": 1.5}, {"check_every": 0}, {"max_stay": 5}, {"remove_at_most": -1}, {"chunk": "two"}]
)
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(UserError, match=f"schedule.{next(iter(bad))}="):
        Adaptive(**bad)


@pytest.mark.parametrize("keep,micro,stop", [(0.9, 1, 17), (1e-9, 1, 18), (0.9, 2, 16)])
def test_a_run_with_averaged_weights_resumes_exactly(keep: float, micro: int, stop: int, tmp_path) -> None:
    """The stage leaves by `max_stay`, or by `keep`; after two micro-batches a step, or one; a stop comes at a look, or between two."""

    def schedule() -> Adaptive:
        return Adaptive(keep=keep, check_every=4, max_stay=8, reset_optimizer=False)

    def train(name: str, steps: int, resume: str | None = None) -> tuple[StepwiseModule, Spy]:
        optimizer = OptimizerConfig(lr=1e-3, matrices="muon", warmup_steps=3, average=0.9)
        return fit(
            tmp_path / name, schedule(), steps, batch_size=8 // micro, micro=micro, optimizer=optimizer, dropout=0.1, resume=resume
        )  # fmt: skip

    whole, spy = train("whole", 30)
    assert len(set(spy.removed)) > 2
    looks = [step for step, _ in spy.validated]
    assert looks == sorted(set(looks))  # none is repeated inside the next optimizer step
    train("first", stop)
    second, after = train("second", 30, str(tmp_path / "first" / "last.ckpt"))
    assert spy.removed[stop:] == after.removed
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.average is not None and second.average is not None
    for name, mean in whole.average.weights.items():
        assert torch.equal(mean, second.average.weights[name])


def test_a_token_leaves_at_every_look_that_is_good_enough(tmp_path) -> None:
    module, spy = fit(tmp_path, Adaptive(keep=1e-9, check_every=3, smoothing=math.inf), steps=14)
    assert spy.removed == [t // 3 for t in range(14)]
    assert [step for step, _ in spy.validated] == [3, 6, 9, 12, 14]
    assert module.schedule.decision == "stage 4 waits for 1e-07% since step 12"


def test_a_reset_follows_its_steps(tmp_path) -> None:
    schedule = Adaptive(check_every=2, max_stay=4, keep=1.0, smoothing=math.inf)
    _, spy = fit(tmp_path, schedule, steps=14, every_removed=1)
    assert spy.removed == [t // 4 for t in range(14)]
    assert [t for t, state in enumerate(spy.had_state) if not state] == [0, 4, 8, 12]
    assert spy.validated == [(2, 0), (4, 0), (6, 1), (8, 1), (10, 2), (12, 2), (14, 3)]
