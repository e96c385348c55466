"""A run tells in words how it will go: the step at which the CoT is gone is that of the schedule, and lengths are counted."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.runs.outlook import (
    Removal,
    length_line,
    most_steps,
    removal_line,
    stages_line,
    sweep_line,
    sweep_time_line,
    time_line,
)
from stepwise_pl.schedules import Adaptive, Linear, Schedule
from tests.config.test_config import composed


def removal(schedule: Schedule, steps_per_epoch: int = 10, last: int = 8) -> Removal:
    """A removal whose units are tokens."""
    schedule.bind(steps_per_epoch, last)
    return Removal(schedule.stage, last, schedule.most, schedule.waits_for())


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


@given(
    delta=st.sampled_from(["0", "1/3", "0.5", "1", "3", "8", "100"]),
    pretrain=st.sampled_from([0, 0.5, 2.25]),
    start=st.integers(0, 9),
    beyond=st.none() | st.integers(0, 9),
    most=st.none() | st.integers(0, 9),
    begin=st.integers(0, 40),
    more=st.integers(1, 60),
)
def test_the_announced_step_is_the_first_that_trains_with_as_much_gone(
    delta: str, pretrain: float, start: int, beyond: int | None, most: int | None, begin: int, more: int
) -> None:
    """The oracle looks at every step."""
    schedule = Linear(
        delta=delta, pretrain_epochs=pretrain, remove_start_from=start, remove_all_beyond=beyond, remove_at_most=most
    )
    found, steps = removal(schedule), begin + more
    line = removal_line(found, begin, steps)
    gone = [schedule.stage(step) for step in range(steps)]
    goal = min(8, 8 if most is None else most)
    reached = [step + 1 for step in range(begin, steps) if gone[step] == goal]
    if goal == 0:
        assert line == ("CoT: all 8 tokens stay (explicit CoT)", False)
    elif not reached:
        assert line.is_warning and f" of 8 CoT tokens will be gone when the run ends at step {steps}" in line.text
        assert line.text.startswith(f"only {gone[-1]} of" if gone[-1] else "none of")
        later = next((step + 1 for step in range(steps, 1000) if schedule.stage(step) == goal), None)
        assert ("would be gone" in line.text) is (later is not None)
        assert later is None or numbers(line.text)[-1] == later
    elif reached[0] == begin + 1:
        assert not line.is_warning and line.text.endswith("by now" if begin else "from the first step on")
    else:
        assert not line.is_warning and numbers(line.text)[-2:] == [reached[0], steps]
        assert line.text.startswith("all 8 CoT tokens will be gone" if goal == 8 else f"{goal} of 8 CoT tokens")


def test_a_schedule_that_waits_announces_no_step() -> None:
    schedule = Adaptive(keep=0.975)
    found = removal(schedule)
    line = removal_line(found, 0, 1000)
    assert not line.is_warning and "reached 97.5% answer accuracy on validation, so the step" in line.text
    assert "or trained a stage for 300 steps" in removal_line(removal(Adaptive(max_stay=300)), 0, 1000).text
    schedule.now = 8
    assert removal_line(found, 500, 1000).text == "all 8 CoT tokens are gone by now"


def test_every_schedule_that_observes_says_that_it_does_not_know_its_steps() -> None:
    class Own(Linear):
        def observe(self, step: int, metrics: object) -> None:
            self.step_from = step

    assert Linear().waits_for() == "" and Own(kind="own").waits_for() == "reached what schedule.kind=own asks for"


def test_a_training_set_without_cot_is_named() -> None:
    assert removal_line(Removal(lambda step: 0, 0, 0), 0, 10).text == "CoT: the training set has none"


@pytest.mark.parametrize(
    "asked,most",
    [
        (["trainer.duration=100steps"], 100),
        (["trainer.duration=6epochs", "data.epoch_size=640"], 120),
        (["trainer.duration=6epochs", "task.train_size=640"], 120),
        (["trainer.duration=640examples", "data.epoch_size=64"], 20),
        (["task=file", "task.train=some.jsonl", "trainer.duration=6epochs"], None),
        (["task=file", "task.train=some.jsonl", "trainer.duration=100steps"], 100),
    ],
)
def test_the_steps_of_a_job_are_known_before_its_data_if_they_can_be(asked: list[str], most: int | None) -> None:
    assert most_steps(composed(*asked, "data.batch_size=32")) == most


def test_a_length_is_told_in_steps_examples_and_epochs() -> None:
    assert (
        length_line(0, 4000, 64, 400) == "length: 4,000 steps of 64 examples: 256,000 examples, 10 epochs of 400 steps"
    )
    assert length_line(0, 1, 1, 3) == "length: 1 step of 1 example: 1 example, 0.333 epochs of 3 steps"
    assert length_line(3999, 4000, 64, 4000).endswith("1 epoch of 4,000 steps; goes on after step 3,999, 1 step left")


def test_a_duration_says_what_it_rests_on() -> None:
    text = time_line(144_000, 0.0288, 20, is_resumed=False, is_bound=False, has_validated=True)
    expected = "the run takes about 40 h 0 min at 0.029 s a step (measured over 20 steps)"
    assert text == f"{expected}; Ctrl-C stops, and resume=true goes on"
    text = time_line(100, 5.5, 1, is_resumed=True, is_bound=True, has_validated=False)
    expected = (
        "the rest of the run takes at most about 2 min at 5.5 s a step (measured over 1 step; validations come on top)"
    )
    assert text.startswith(expected)


def test_a_sweep_is_told_with_its_workers() -> None:
    assert sweep_line([100, 1000], 1) == "2 jobs to do, at most 1,100 steps in all"
    assert sweep_line([100, None], 2) == "2 jobs to do, 2 at a time"
    assert sweep_line([100], None) == "1 job to do, at most 100 steps in all"
    text = sweep_time_line(7200, 9, 2)
    assert text == "the whole sweep takes about 67 min for 9 jobs with 2 at a time, if all keep this pace"


def test_named_stages_are_announced_from_where_a_run_stands() -> None:
    names = ("read", "emulate", "couple")

    def stage(step: int) -> int:
        return min(step // 20, 2)

    never = "never: couple (trainer.duration and schedule.delta decide)"
    for begin, steps, text in (
        (0, 60, "stage 0 (read) from step 1; stage 1 (emulate) from step 21; stage 2 (couple) from step 41"),
        (20, 60, "stage 1 (emulate) from step 21; stage 2 (couple) from step 41"),
        (25, 60, "stage 1 (emulate) goes on; stage 2 (couple) from step 41"),
        (59, 60, "stage 2 (couple) goes on"),
        (5, 40, f"stage 0 (read) goes on; stage 1 (emulate) from step 21; {never}"),
    ):
        assert stages_line(stage, names, begin, steps) == (text, never in text)
    assert stages_line(lambda step: 2 * (step > 9), names, 0, 30).text.startswith(
        "stage 0 (read) from step 1; stage 2 (couple) from step 11; never: emulate"
    )
    assert stages_line(lambda step: 2, names, 0, 30).text.startswith(
        "stage 2 (couple) from step 1; never: read, emulate"
    )
