"""A run that ends before its last step: by its budget of tokens, or because its schedule is through or stuck."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.records import read_metrics
from stepwise_pl.schedules import Adaptive, Linear
from tests.conftest import SMALL, command
from tests.schedules.test_adaptive import MOST, bound, trained

ADAPTIVE = tuple(word for word in SMALL if not word.startswith(("schedule.", "trainer.duration")))


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())  # type: ignore[no-any-return]


@given(
    st.lists(st.sampled_from([0.5, 0.9, 1.0]), min_size=40, max_size=90), st.integers(1, 4),
    st.sampled_from([None, 4, 8, 13]), st.booleans(), st.integers(0, 40),
)  # fmt: skip
def test_the_reason_is_the_first_look_that_is_good_at_the_end_or_bad_for_too_long(
    accuracies: list[float], check_every: int, stuck: int | None, done: bool, stop: int
) -> None:
    """The oracle goes through the looks of the schedule one by one, and counts the steps of each stage itself."""
    settings = {"keep": 0.9, "check_every": check_every, "stop_when_done": done, "stop_when_stuck": stuck}
    schedule, begun, stage, reason = bound(**settings), 0, 0, ""
    for step, accuracy in enumerate(accuracies, start=1):
        if step == stop:  # a resume in between changes nothing
            again = bound(**settings)
            again.load_state_dict(json.loads(json.dumps(schedule.state_dict(step))))
            schedule = again
        before = schedule.removed(step)
        assert before == stage
        trained(schedule, [accuracy], start=step - 1)
        if (step - begun) % check_every == 0 and not (stage == MOST and not (done or stuck)):
            if accuracy < 0.9:
                reason = "stuck" if stuck is not None and step - begun >= stuck else ""
            elif stage == MOST:
                # Without `stop_when_done` nothing ends the run any more.
                reason = "done" if done else ""
                break
            else:
                stage, begun = stage + 1, step
        assert ("stop_when_stuck" in schedule.reason_to_end()) == (reason == "stuck")
        if reason:
            break
    assert ("stop_when_done" in schedule.reason_to_end()) == (reason == "done")


def test_a_resumed_run_may_give_more_time_or_go_on_to_the_end() -> None:
    schedule = bound(keep=0.9, check_every=2, stop_when_stuck=4)
    trained(schedule, [0.5] * 4)
    assert "stage 0 is below 90% after 4 steps" in schedule.reason_to_end()
    for changed, ends in ({}, True), ({"stop_when_stuck": 6}, False), ({"stop_when_stuck": None}, False):
        again = bound(**{"keep": 0.9, "check_every": 2, "stop_when_stuck": 4, **changed})
        again.load_state_dict(json.loads(json.dumps(schedule.state_dict(4))))
        assert bool(again.reason_to_end()) is ends
    assert not Linear().may_end_run and Adaptive(stop_when_done=True).may_end_run


@given(st.floats(0, 1), st.floats(0.01, 1), st.booleans())
def test_a_resumed_run_judges_the_last_accuracy_by_its_own_keep(accuracy: float, keep: float, at_the_end: bool) -> None:
    """The verdict of a checkpoint does not depend on the `keep` that it was written under."""
    schedule = bound(keep=0.5, check_every=2, remove_at_most=0 if at_the_end else None, stop_when_stuck=1000)
    schedule.observe(2, {"val/answer_accuracy": accuracy, "val/loss": 1.0})
    if not at_the_end and accuracy >= 0.5:
        return  # the unit has left
    ends = {"stop_when_done": True, "stop_when_stuck": 2}
    again = bound(keep=keep, check_every=2, remove_at_most=schedule.remove_at_most, **ends)
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict(2))))
    if accuracy >= keep:
        assert ("remove_at_most=0 allows" in again.reason_to_end()) is at_the_end
        assert at_the_end or not again.reason_to_end()
    elif accuracy < keep - 1e-5:
        assert "(schedule.stop_when_stuck)" in again.reason_to_end()


def test_it_must_look_before_it_gives_up() -> None:
    with pytest.raises(UserError, match=r"schedule.stop_when_stuck=5: must be at least schedule.check_every=50"):
        Adaptive(stop_when_stuck=5)


def test_a_budget_of_tokens_ends_the_run_after_the_step_that_uses_it_up(tmp_path: Path) -> None:
    """The same steps as without a budget, a validation and a checkpoint at the end, and nothing left to do for a resume."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    words = (*SMALL, "trainer.log_every_n_steps=1")
    command("train", *words, "trainer.duration=40steps", f"run_dir={whole}")
    read = {
        int(row["step"]): int(row["tokens_read"]) for row in read_metrics(whole / "metrics.csv") if row["train/loss"]
    }
    budget = read[30] - 1
    out = command("train", *words, "trainer.duration=60steps", f"trainer.max_tokens_read={budget}", f"run_dir={folder}")
    assert f"the run ends at step 30: {read[30]:,} tokens are read (trainer.max_tokens_read)" in out.stderr
    rows = read_metrics(folder / "metrics.csv")
    assert [row["train/loss"] for row in rows if row["train/loss"]] == [
        row["train/loss"] for row in read_metrics(whole / "metrics.csv") if row["train/loss"] and int(row["step"]) <= 30
    ]
    assert [int(row["step"]) for row in rows if row["val/answer_accuracy"]] == [20, 30]
    assert (summary(folder)["steps"], summary(folder)["tokens_read"]) == (30, read[30])
    assert summary(whole)["ended_early"] is None
    assert summary(folder)["ended_early"] == f"{read[30]:,} tokens are read (trainer.max_tokens_read)"
    assert "the run takes at most" in out.stderr
    assert f"the run ends before that once training has read {budget:,} tokens (trainer.max_tokens_read)" in out.stderr
    (last,) = [line for line in out.stderr.splitlines() if line.startswith("step 30 of 60")]
    assert " left" not in last
    again = command("train", f"run_dir={folder}", "resume=true")
    assert summary(folder)["steps"] == 30 and "resuming at step 30" in again.stderr
    assert (
        "the run has ended at step 30: " in again.stderr and "(trainer.max_tokens_read); with other set" in again.stderr
    )
    # With a larger budget it goes on, as if it had had that budget from the start.
    command("train", f"run_dir={folder}", "resume=true", f"trainer.max_tokens_read={read[40]}")
    after = [row["train/loss"] for row in read_metrics(folder / "metrics.csv") if row["train/loss"]]
    assert after == [row["train/loss"] for row in read_metrics(whole / "metrics.csv") if row["train/loss"]]


@pytest.mark.parametrize(
    "words,reason",
    [
        (
            ("schedule.keep=1e-6", "schedule.stop_when_done=true"),
            "everything has left, and accuracy has reached 0.0001%",
        ),
        (("schedule.keep=1", "schedule.stop_when_stuck=10"), "stage 0 is below 100% after 10 steps"),
    ],
)
def test_a_schedule_ends_its_run(tmp_path: Path, words: tuple[str, ...], reason: str) -> None:
    folder = tmp_path / "run"
    own = ("schedule=adaptive", "schedule.check_every=5", "trainer.duration=2000steps", f"run_dir={folder}")
    out = command("train", *ADAPTIVE, *own, *words)
    ended = summary(folder)["steps"]
    assert f"the run ends at step {ended}: {reason}" in out.stderr and ended < 2000
    assert max(int(row["step"]) for row in read_metrics(folder / "metrics.csv")) == ended
    # A resume says that nothing is left to do, or goes on if another `keep` lets it.
    again = command("train", f"run_dir={folder}", "resume=true")
    assert f"the run has ended at step {ended}: {reason}" in again.stderr and summary(folder)["steps"] == ended
    assert summary(folder)["ended_early"].startswith(reason)
    other = "schedule.keep=1" if "has left" in reason else "schedule.keep=1e-6"
    again = command("train", f"run_dir={folder}", "resume=true", other, f"trainer.duration={ended + 5}steps")
    assert "the run has ended" not in again.stderr and summary(folder)["steps"] == ended + 5
    assert summary(folder)["ended_early"] is None
