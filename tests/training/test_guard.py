"""The guard under the real trainer: collapses are recognised, rolled back, and survive kills."""

import itertools
import json
import math
import os
from fractions import Fraction
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stepwise_pl.common.errors import Collapse, UserError
from stepwise_pl.config.run import Config
from stepwise_pl.config.training import GuardConfig
from stepwise_pl.methods import ICoTKD, Method, Stepwise
from stepwise_pl.models.early import check
from stepwise_pl.runs.records import all_rows, read_attempts, read_metrics, read_stage_records
from stepwise_pl.runs.stages import read_stages
from stepwise_pl.schedules import Adaptive, Linear, Schedule
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training.guard import Guard
from stepwise_pl.training.module import StepwiseModule
from stepwise_pl.training.rollback import go_on_from, pace
from tests import forked
from tests.conftest import REPO
from tests.system.test_resume import CODES, RUN, assert_the_same, start, state

# A token leaves after steps 20 and 40. In the first attempt accuracy is lost for good from step 40 on.
FIRST_ATTEMPT = "--accuracy=0.0 if attempt == 0 and step >= 40 else 0.9"


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "run"
    out = start(folder, "guard=halve", "trainer.duration=6epochs", options=(FIRST_ATTEMPT,))
    assert out.returncode == 0, out.stderr[-2000:]
    (folder / "log.txt").write_text(out.stderr + out.stdout)
    return folder


def test_after_a_collapse_the_run_goes_back_and_continues_with_half_of_delta(collapsed: Path) -> None:
    (rollback,) = summary(collapsed)["rollbacks"]
    assert rollback["action"] == "halve"
    # Step 20 was good. The guard sees the collapse at the second bad validation that counts: steps 40 and 80 count, step 60
    # does not, because the last token has just left.
    where = ("at_step", "at_removed_tokens", "to_step", "to_removed_tokens")
    assert [rollback[key] for key in where] == [80, 2, 20, 0]
    assert (summary(collapsed)["collapsed"], summary(collapsed)["steps"]) == (False, 120)
    assert summary(collapsed)["abandoned_examples"] == 60 * 32
    # The configuration gives 640. The run ended with half of Δ, so with twice the examples.
    assert summary(collapsed)["examples_per_token"] == 1280
    assert "1280 examples per removed token" in (collapsed / "log.txt").read_text()
    last = state(collapsed)
    assert Fraction(last["stepwise"]["schedule"]["slowed"]) == Fraction(1, 2)
    # Half of Δ = 1 per 20 steps, from s = 0 at step 20: tokens leave after steps 60 and 100.
    removed = {int(row["step"]): int(row["schedule/removed_tokens"]) for row in read_metrics(collapsed / "metrics.csv")}
    assert [removed[step] for step in (20, 41, 60, 61, 100, 101, 120)] == [0, 0, 0, 1, 1, 2, 2]
    assert "back from step 80 (2 removed) to 20 (0 removed)" in (collapsed / "log.txt").read_text()
    assert (collapsed / "accuracy.png").stat().st_size > 10_000


def test_tokens_of_steps_that_were_given_up_count(collapsed: Path) -> None:
    """They belong to the budget that methods share, and `trainer.max_tokens_read` must end a run that goes back again and again."""
    rows = [row for row in all_rows(collapsed / "metrics.csv") if row["train/loss"]]
    read = [int(row["tokens_read"]) for row in rows]
    assert [int(row["attempt"]) for row in rows] == sorted(int(row["attempt"]) for row in rows) and rows[-1][
        "attempt"
    ] == "1"
    assert read == sorted(set(read)) and summary(collapsed)["tokens_read"] == read[-1]


def test_metrics_name_the_attempt_and_count_no_row_twice(collapsed: Path) -> None:
    kept, (given_up,) = read_attempts(collapsed / "metrics.csv")
    steps = [int(row["step"]) for row in kept if row["train/loss"]]
    assert steps == list(range(1, 121))
    assert {row["attempt"] for row in given_up} == {"0"}
    assert [int(row["step"]) for row in given_up if row["train/loss"]] == list(range(21, 81))
    # s falls only between attempts.
    rows = all_rows(collapsed / "metrics.csv")
    for one, other in itertools.pairwise(rows):
        if int(other["schedule/removed_tokens"]) < int(one["schedule/removed_tokens"]):
            assert int(other["attempt"]) == int(one["attempt"]) + 1 or other["test/loss"]
    # Every validation has a line, also those of the attempt that was given up.
    validated = [
        [int(row[key]) for key in ("step", "attempt", "schedule/removed_tokens")] for row in rows if row["val/loss"]
    ]
    records = read_stage_records(collapsed / "stages.jsonl")
    assert [[one["step"], one["attempt"], one["removed_tokens"]] for one in records] == validated
    stages, (abandoned,) = read_stages(collapsed / "metrics.csv")
    assert [stage.removed_tokens for stage in stages] == [0, 1, 2]
    assert [(stage.removed_tokens, stage.accuracy) for stage in abandoned] == [(1, 0.0), (2, 0.0)]


@pytest.mark.long
@pytest.mark.parametrize(
    "end",
    [
        "after the step,33,SIGKILL",
        *(pytest.param(end, marks=pytest.mark.long) for end in (
            "before going back,0,SIGKILL", "after going back,0,SIGKILL", "inside the step,70,SIGTERM",
            "between good and last,20,SIGKILL", "in validation,80,SIGTERM",
        )),
    ],
)  # fmt: skip
def test_a_run_killed_around_a_collapse_equals_an_uninterrupted_one(collapsed: Path, tmp_path: Path, end: str) -> None:
    """The kill comes before the collapse, while the files are exchanged, or in the next attempt."""
    arguments = ("guard=halve", "trainer.duration=6epochs")
    out = start(tmp_path / "run", *arguments, end=end, options=(FIRST_ATTEMPT,))
    assert out.returncode in CODES[end.rpartition(",")[2]], out.stderr[-2000:]
    out = start(tmp_path / "run", *arguments, "resume=true", options=(FIRST_ATTEMPT,))
    assert out.returncode == 0, out.stderr[-2000:]
    assert_the_same(collapsed, tmp_path / "run")


@pytest.mark.long
def test_the_guard_gives_up_after_max_rollbacks_and_can_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hopeless = "--accuracy=0.0 if step >= 40 and attempt < 4 else 0.9"
    arguments = ("trainer.duration=6epochs", "trainer.keep_every_removed=1")
    out = start(folder, "guard=halve", "guard.max_rollbacks=2", *arguments, options=(hopeless,))
    assert out.returncode == 0, out.stderr[-2000:]
    found = summary(folder)
    assert (found["collapsed"], found["steps"], len(found["rollbacks"])) == (True, 20, 3)
    assert found["ended_early"] == "the run has collapsed after 2 rollbacks (guard.max_rollbacks)"
    assert found["abandoned_examples"] == sum(one["at_step"] - 20 for one in found["rollbacks"]) * 32
    # Only the checkpoints of step 20 are left, and none from a collapse.
    kept = {
        path.name: torch.load(path, weights_only=True)["global_step"] for path in (folder / "checkpoints").iterdir()
    }
    assert kept == dict.fromkeys(("best.ckpt", "good.ckpt", "last.ckpt", "removed-0.ckpt"), 20)
    assert "optimizer_states" in torch.load(folder / "checkpoints" / "good.ckpt", weights_only=True)
    # The end is final until more rollbacks are allowed, even if the process ended before the test.
    before = summary(folder)
    (folder / "summary.json").unlink()
    out = start(folder, "resume=true", *arguments, options=(hopeless,))
    assert out.returncode == 0, out.stderr[-2000:]
    assert summary(folder) | {"seconds": 0} == before | {"seconds": 0}
    out = start(folder, "guard.max_rollbacks=5", "resume=true", *arguments, options=(hopeless,))
    assert out.returncode == 0, out.stderr[-2000:]
    found = summary(folder)
    assert (found["collapsed"], found["steps"], len(found["rollbacks"])) == (False, 120, 4)
    assert [int(row["step"]) for row in read_metrics(folder / "metrics.csv") if row["train/loss"]] == [*range(1, 121)]


@pytest.mark.long
def test_the_action_wait_removes_nothing_for_a_while(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    accuracy = "--accuracy=0.0 if step >= (40, 100, 999)[attempt] else 0.9"
    out = start(folder, "guard=wait", "trainer.duration=8epochs", options=(accuracy,))
    assert out.returncode == 0, out.stderr[-2000:]
    assert [one["does"] for one in summary(folder)["rollbacks"]] == [
        f"no token leaves for {steps} steps" for steps in (20, 40)
    ]
    removed = {int(row["step"]): int(row["schedule/removed_tokens"]) for row in read_metrics(folder / "metrics.csv")}
    # From step 20: 20 steps of waiting and 20 of the stage. From step 80: 40 steps of waiting and 20 of the stage.
    assert [removed[step] for step in (20, 60, 61, 140, 141)] == [0, 0, 1, 1, 2]


@pytest.mark.long
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_halves_the_learning_rate(tmp_path: Path, value: str) -> None:
    folder = tmp_path / "run"
    good, bad = "--accuracy=0.9", f"--weights={value},0,33"
    out = start(folder, "guard=halve", options=(good, bad))
    assert out.returncode == 0, out.stderr[-2000:]
    (rollback,) = summary(folder)["rollbacks"]
    assert (rollback["action"], rollback["at_step"], rollback["to_step"]) == ("learning_rate", 34, 20)
    rows = {int(row["step"]): row for row in read_metrics(folder / "metrics.csv") if row["train/lr"]}
    # At step 31 the re-warm-up of 5 steps is over in both attempts; only the halving lowers the learning rate.
    assert float(rows[20]["train/lr"]) == pytest.approx(5e-3)
    assert float(rows[39]["train/lr"]) == pytest.approx(2.5e-3)
    assert all(bool(value.isfinite().all()) for value in state(folder)["state_dict"].values())
    assert "nan" not in "".join(row["train/loss"] for row in rows.values())


def test_without_the_guard_a_loss_that_is_not_finite_is_one_line_and_spares_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    out = start(folder, "trainer.log_every_n_steps=1000", options=("--weights=nan,0,33",))
    assert out.returncode == 2
    line = out.stderr.strip().splitlines()[-1]
    assert line.startswith("error: the weights are not finite at step 35; last.ckpt is from before that. Lower ")
    assert "Traceback" not in out.stderr
    assert state(folder)["global_step"] == 28
    assert all(bool(value.isfinite().all()) for value in state(folder)["state_dict"].values())


@pytest.mark.long
def test_a_run_that_collapsed_under_warn_can_go_back_later(tmp_path: Path) -> None:
    """The last good checkpoint was kept; a resume with `guard=halve` goes back to it."""
    folder = tmp_path / "run"
    out = start(folder, options=(FIRST_ATTEMPT,))
    assert out.returncode == 0
    assert (summary(folder)["collapsed"], summary(folder)["rollbacks"]) == (True, [])
    assert summary(folder)["collapsed_at"] is not None
    assert "answer accuracy has collapsed" in out.stderr and "guard=halve" in out.stderr + out.stdout
    out = start(folder, "resume=true", "guard=halve", "trainer.duration=6epochs", options=(FIRST_ATTEMPT,))
    assert out.returncode == 0, out.stderr[-2000:]
    (rollback,) = summary(folder)["rollbacks"]
    assert (rollback["at_step"], rollback["to_step"]) == (100, 20)
    assert (summary(folder)["collapsed"], summary(folder)["steps"]) == (False, 120)
    assert summary(folder)["collapsed_at"] is None  # the collapse is in steps that were given up


@pytest.mark.long
def test_a_collapse_that_comes_back_is_reported(tmp_path: Path) -> None:
    """Under `warn`, accuracy is low from step 40 to 80; a stop between them changes nothing. Step 60 is right after the last token has left."""
    down = "--accuracy=0.0 if 40 <= step <= 80 else 0.9"
    out = start(tmp_path / "run", "trainer.duration=6epochs", options=(down,))
    assert out.returncode == 0, out.stderr[-2000:]
    rows = {row["step"]: row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["val/loss"]}
    found = summary(tmp_path / "run")
    assert (found["collapsed"], found["collapsed_at"]) == (False, int(rows["80"]["schedule/removed_tokens"]))
    assert f"accuracy had collapsed with {found['collapsed_at']} tokens removed, and came back" in out.stdout
    assert (
        start(
            tmp_path / "killed", "trainer.duration=6epochs", end="after the step,50,SIGKILL", options=(down,)
        ).returncode
        == -9
    )
    assert start(tmp_path / "killed", "trainer.duration=6epochs", "resume=true", options=(down,)).returncode == 0
    assert_the_same(tmp_path / "run", tmp_path / "killed")


@pytest.mark.long
def test_if_slower_removal_changes_nothing_the_learning_rate_is_halved(tmp_path: Path) -> None:
    """Everything is removed at the good step 60, and accuracy is lost later: slower removal cannot help."""
    folder = tmp_path / "run"
    lost_late = "--accuracy=0.0 if attempt == 0 and step >= 80 else 0.9"
    out = start(folder, "guard=halve", "trainer.duration=7epochs", options=(lost_late,))
    assert out.returncode == 0, out.stderr[-2000:]
    (rollback,) = summary(folder)["rollbacks"]
    assert (rollback["action"], rollback["at_step"], rollback["to_step"]) == ("learning_rate", 100, 60)
    assert rollback["does"] == "the learning rate is 0.5 of the configured one"


@pytest.mark.long
def test_halving_the_learning_rate_leaves_the_schedule_alone(tmp_path: Path) -> None:
    """The loss is not finite while the guard waits: the rest of the wait stays."""
    folder = tmp_path / "run"
    out = start(
        folder, "guard=wait", "guard.wait_epochs=2", "trainer.duration=7epochs",
        options=(FIRST_ATTEMPT, "--weights=nan,1,46"),
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    assert [one["action"] for one in summary(folder)["rollbacks"]] == ["wait", "learning_rate"]
    removed = {int(row["step"]): int(row["schedule/removed_tokens"]) for row in read_metrics(folder / "metrics.csv")}
    assert [removed[step] for step in (20, 60, 80, 81, 100, 101)] == [0, 0, 0, 1, 1, 2]  # 20 + 40 of waiting + 20


def test_every_stage_is_validated_before_the_next_token_leaves_also_after_a_rollback(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = "--accuracy=0.0 if attempt == 0 and step >= 40 else 0.9"
    arguments = ("guard=halve", "guard.patience=1", "trainer.validate_every_epochs=0", "trainer.duration=6epochs")
    out = start(folder, *arguments, options=(given,))
    assert out.returncode == 0, out.stderr[-2000:]
    rows = [row for row in all_rows(folder / "metrics.csv") if row["val/loss"]]
    seen = [(int(row["attempt"]), int(row["step"]), int(row["schedule/removed_tokens"])) for row in rows]
    assert seen == [(0, 20, 0), (0, 40, 1), (1, 60, 0), (1, 100, 1), (1, 120, 2)]


@pytest.mark.long
def test_the_best_checkpoint_ignores_steps_that_were_given_up(tmp_path: Path) -> None:
    """A better checkpoint of an attempt that was given up does not stand in the way of later ones."""
    folder = tmp_path / "run"
    given = "--accuracy={20: 0.9, 40: 0.7, 60: 0.6}.get(step, 0.0) if attempt == 0 else 0.65"
    out = start(folder, "guard=halve", "trainer.duration=8epochs", options=(given,))
    assert out.returncode == 0, out.stderr[-2000:]
    (rollback,) = summary(folder)["rollbacks"]
    assert (rollback["at_step"], rollback["to_step"]) == (100, 40)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert (best["global_step"], best["stepwise"]["removed"]) == (100, 2)
    assert "optimizer_states" not in best


def test_a_collapse_before_the_first_checkpoint_is_one_line(tmp_path: Path) -> None:
    out = start(tmp_path / "run", "guard=halve", "optimizer.lr=1e30")
    line = out.stderr.strip().splitlines()[-1]
    assert out.returncode == 2
    assert "before there was a checkpoint to go back to: start another run with a lower optimizer.lr" in line


@pytest.mark.long
def test_two_processes_go_back_together(tmp_path: Path) -> None:
    """Two processes (DDP with gloo) decide and remove as one process does."""
    found = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        out = start(
            folder, "guard=halve", "trainer.duration=6epochs", "model.dropout=0", "trainer.accumulate_grad_batches=1",
            f"trainer.devices={devices}", options=(FIRST_ATTEMPT,),
        )  # fmt: skip
        assert out.returncode == 0, out.stderr[-2000:]
        rows = all_rows(folder / "metrics.csv")
        losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
        where = [[row[key] for key in ("step", "attempt", "schedule/removed_tokens")] for row in rows]
        found.append((summary(folder)["rollbacks"], where, losses))
    assert found[0][:2] == found[1][:2]
    records = [read_stage_records(tmp_path / str(devices) / "stages.jsonl") for devices in (1, 2)]
    assert [[one["step"], one["attempt"], one["examples"]] for one in records[0]] == [
        [one["step"], one["attempt"], one["examples"]] for one in records[1]
    ]
    # The losses agree until the moments are cleared; rounding grows right after that.
    assert found[1][2][:20] == pytest.approx(found[0][2][:20], rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("options", [(FIRST_ATTEMPT,), ("--accuracy=0.9", "--weights=nan,0,33")])
def test_shared_weights_go_back(tmp_path: Path, options: tuple[str, ...]) -> None:
    """FSDP2 goes back after a collapse, at a validation and in the middle of a step."""
    out = start(
        tmp_path / "run", "guard=halve", "trainer.duration=4epochs", "model.dropout=0", "trainer.accumulate_grad_batches=1",
        "trainer.devices=2", "trainer.strategy=fsdp2", options=options,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    (rollback,) = summary(tmp_path / "run")["rollbacks"]
    assert rollback["to_step"] == 20 and rollback["action"] == ("halve" if len(options) == 1 else "learning_rate")
    steps = [int(row["step"]) for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["train/loss"]]
    assert steps[-1] == 80 and steps == sorted(set(steps))


# Rollbacks: the logged line, the row of metrics.csv and the first training step after them have the same s.

# 2x2 digits: 8 CoT tokens, epochs of 20 steps.
MORE_TOKENS = (
    "task.digits=2",
    "task.train_size=500",
    "task.validation_size=50",
    "task.test_size=50",
)


def assert_rollbacks_agree(folder: Path) -> None:
    rows = all_rows(folder / "metrics.csv")
    for attempt, rollback in enumerate(summary(folder)["rollbacks"], start=1):
        own = [row for row in rows if int(row["attempt"]) == attempt]
        first = next(row for row in own if row["train/loss"])
        assert int(first["step"]) == rollback["to_step"] + 1
        assert int(own[0]["step"]) == rollback["to_step"]
        for row in (own[0], first):
            assert int(row["schedule/removed_tokens"]) == rollback["to_removed_tokens"]


@pytest.mark.long
def test_halving_the_learning_rate_keeps_the_s_of_the_good_checkpoint_with_an_adaptive_schedule(tmp_path: Path) -> None:
    """A token leaves every 5 steps. The good checkpoint, of step 10, is from just before the second token leaves."""
    folder, without = tmp_path / "run", ("schedule.delta", "schedule.rewarmup_steps")
    arguments = [argument for argument in RUN if not argument.startswith(without)]
    own = (
        "schedule=adaptive", "schedule.check_every=5", "schedule.max_stay=5", "schedule.reset_optimizer=true", "guard=halve",
        "trainer.duration=2epochs", f"run_dir={folder}", *MORE_TOKENS,
    )  # fmt: skip
    options = ["--accuracy=0.9 if step <= 10 or attempt else 0.5", "--weights=nan,0,18"]
    out = forked.run(
        "tests.driver", [*options, "--", *arguments, *own], REPO, dict(os.environ, OMP_NUM_THREADS="1"), 300
    )
    assert out.returncode == 0, out.stderr[-2000:]
    (rollback,) = summary(folder)["rollbacks"]
    assert (rollback["action"], rollback["to_step"], rollback["to_removed_tokens"]) == ("learning_rate", 10, 1)
    assert "Back to step 10 with 1 token removed" in out.stderr
    assert_rollbacks_agree(folder)
    removed = {int(row["step"]): int(row["schedule/removed_tokens"]) for row in read_metrics(folder / "metrics.csv")}
    assert [removed[step] for step in (11, 15, 16, 20, 21)] == [1, 1, 2, 2, 3]


@pytest.mark.long
def test_halving_the_learning_rate_keeps_the_s_of_the_good_checkpoint_after_a_change_of_delta(tmp_path: Path) -> None:
    """The run resumes at step 28 with ten times the Δ: a token leaves every other step, until the loss of step 33 is not finite."""
    folder = tmp_path / "run"
    options = ("--accuracy=0.9 if step <= 20 or attempt else 0.5", "--weights=nan,0,33")
    out = start(folder, "guard=halve", *MORE_TOKENS, end="after the step,30,SIGKILL", options=options)
    assert out.returncode == -9, out.stderr[-2000:]
    again = ("guard=halve", "resume=true", "schedule.delta=10", "trainer.duration=2epochs")
    out = start(folder, *MORE_TOKENS, *again, options=options)
    assert out.returncode == 0, out.stderr[-2000:]
    (rollback,) = summary(folder)["rollbacks"]
    assert (rollback["action"], rollback["to_step"], rollback["to_removed_tokens"]) == ("learning_rate", 20, 0)
    assert_rollbacks_agree(folder)
    removed = {int(row["step"]): int(row["schedule/removed_tokens"]) for row in read_metrics(folder / "metrics.csv")}
    assert [removed[step] for step in (21, 22, 23, 36)] == [0, 0, 1, 7]


def test_rollbacks_of_every_kind_agree(collapsed: Path) -> None:
    assert_rollbacks_agree(collapsed)


class Scheduled(StepwiseModule):
    """The parts of a module that the schedule needs."""

    def __init__(self, schedule: Schedule) -> None:
        schedule.bind(10, 9)
        self.schedule = schedule


schedules_of = st.one_of(
    st.builds(
        Linear, delta=st.sampled_from([0, 1, "3/2", 4]), pretrain_epochs=st.sampled_from([0, 0.5, 2]),
        remove_start_from=st.integers(0, 4), remove_all_beyond=st.sampled_from([None, 3, 6]),
        remove_at_most=st.sampled_from([None, 5]),
    ),
    st.builds(
        Adaptive, keep=st.just(0.5), check_every=st.integers(1, 9), max_stay=st.sampled_from([None, 9]),
    ),
)  # fmt: skip
# For each attempt: steps to the next good checkpoint (0: no new one), further steps to the collapse, the action.
attempts_of = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 40), st.sampled_from(["halve", "wait", "learning_rate"])), min_size=1,
    max_size=5,
)  # fmt: skip


@settings(deadline=None)
@given(schedules_of, attempts_of, st.integers(0, 99))
@example(Linear(delta=0, pretrain_epochs=0.5, remove_start_from=3, remove_all_beyond=3), [(5, 1, "halve")], 0)
@example(Linear(delta=0, pretrain_epochs=0.5, remove_start_from=3, remove_all_beyond=3), [(5, 1, "wait")], 0)
def test_after_every_action_the_next_step_has_the_s_of_the_good_checkpoint(
    schedule: Schedule, attempts: list[tuple[int, int, str]], seed: int
) -> None:
    """Every schedule and action, after any history. The pace, the wait and the state of the checkpoint are kept as well."""
    module = Scheduled(schedule)
    actions: list[str] = []
    random = Random(seed)
    step, trained = 0, module.schedule.stage(0)
    good: dict[str, Any] = {}

    def train(steps: int) -> None:
        nonlocal step, trained
        for _ in range(steps):
            trained = module.schedule.stage(step)
            step += 1
            if schedule.wants_validation(step):
                schedule.observe(step, {"val/answer_accuracy": random.random()})

    def checkpoint() -> dict[str, Any]:
        found = {"removed": trained, "schedule": schedule.save(step), "rollbacks": list(actions), "step": step}
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]

    for until_good, until_collapse, action in attempts:
        train(until_good)
        if until_good or not good:
            good = checkpoint()
        train(until_collapse)
        actions.append(action)
        step, trained = good["step"], good["removed"]
        decided = actions[len(good["rollbacks"]) :]
        rate, wait = pace(actions, len(good["rollbacks"]), 8)
        go_on_from(module, good, step, decided, rate, wait)
        assert module.schedule.stage(step) == trained
        assert {module.schedule.stage(step + later) for later in range(wait + 1)} == {trained}
        state = schedule.save(step)
        slowed = Fraction(state["slowed"]) if isinstance(schedule, Linear) else 1 / Fraction(state["longer"])
        assert slowed == rate == Fraction(1, 2 ** actions.count("halve"))
        if set(decided) == {"learning_rate"}:
            schedule.restore(good["schedule"])
            if module.schedule.stage(step) == trained:
                assert state == good["schedule"]
            schedule.restore(state)


# The guard's verdicts, without a trainer.


class Stage(StepwiseModule):
    """The parts of a module that the guard reads."""

    removed_tokens = 3  # type: ignore[assignment]

    def __init__(self, removed: int, leaves: bool, waits: bool, method: Method | None = None) -> None:
        self.stage, self.method = removed, method or Stepwise()
        self.schedule = SimpleNamespace(  # type: ignore[assignment]
            stage=lambda step: removed + leaves,
            is_waiting=lambda: waits,
            rate=lambda: math.nan,
            steps_per_epoch=10,
            last=9,
        )


def verdicts(accuracies: list[float], examples: int = 500, stages: str | None = None, **cfg: Any) -> list[str]:
    """The verdicts of a guard on validations at the end of a stage (`|`), at the start of one (`>`), later in it (`-`), or at the start of one that waits (`W`) and later in that (`w`)."""
    guard = Guard(GuardConfig(**{"action": "halve", **cfg}))
    out, removed = [], 0
    for accuracy, where in zip(accuracies, stages or "|" * len(accuracies), strict=True):
        removed += where in ">W"
        values = {"val/loss": 1.0, "val/answer_accuracy_any_length": accuracy, "val/examples": examples}
        trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), callback_metrics=values, global_step=1)
        try:
            guard.on_validation_end(trainer, Stage(removed, where == "|", where in "Ww"))  # type: ignore[arg-type]
            out.append("good" if guard.good else "low" if guard.low else "fair")
        except Collapse:
            out.append("collapse")
    return out


def test_a_collapse_is_low_accuracy_for_long_after_a_good_time() -> None:
    assert verdicts([0.9, 0.95, 0.7, 0.72, 0.0, 0.0]) == ["good", "good", "fair", "good", "low", "collapse"]
    # A dip that is over at the next validation is no collapse.
    assert verdicts([0.9, 0.0, 0.8, 0.0, 0.3, 0.0]) == ["good", "low", "good", "low", "fair", "low"]
    # A model that has learned nothing can lose nothing.
    assert verdicts([0.0, 0.002, 0.0, 0.0, 0.0]) == ["good", "good", "fair", "fair", "fair"]
    # With so few examples, low accuracy may be chance.
    assert verdicts([1.0, 0.1, 0.1, 0.1], examples=10) == ["good", "fair", "fair", "fair"]
    assert verdicts([1.0, 0.1], patience=1) == ["good", "collapse"]
    assert verdicts([1.0, 0.4], patience=1, collapsed=0.5) == ["good", "collapse"]
    # Low accuracy right after a token has left does not count. Later in the stage it counts.
    assert verdicts([0.9, 0.0, 0.0, 0.0], stages="|>>>") == ["good", "fair", "fair", "fair"]
    assert verdicts([0.9, 0.0, 0.0, 0.0], stages="|>--") == ["good", "fair", "low", "collapse"]
    # While an adaptive schedule waits, a stage may begin as low as it likes. A stage that ends low counts.
    assert verdicts([0.9, 0.0, 0.0, 0.9], stages="|Ww|") == ["good", "fair", "fair", "good"]
    assert verdicts([0.9, 0.0, 0.0, 0.0, 0.0], stages="|W|W|") == ["good", "fair", "low", "low", "collapse"]
    # Once accuracy has come back in a stage, a later fall counts, however long the schedule waits.
    assert verdicts([0.9, 0.0, 0.8, 0.0, 0.0], stages="|Wwww") == ["good", "fair", "good", "low", "collapse"]
    # A stage that has risen a little was not learned yet, so that it has lost nothing.
    assert verdicts([0.9, 0.0, 0.3, 0.0, 0.0], stages="|Wwww") == ["good", "fair", "fair", "fair", "fair"]
    assert verdicts([0.9, 0.0, 0.0, 0.0, 0.0], stages="|>|>|") == ["good", "fair", "low", "low", "collapse"]


def test_accuracy_in_a_stage_that_does_not_count_is_no_collapse() -> None:
    """ICoT-KD answers by chance until its last stage, where a fall counts."""
    guard, seen = Guard(GuardConfig(action="halve")), []
    for step, (stage, accuracy) in enumerate(
        [(0, 0.4), (0, 0.0), (1, 0.0), (1, 0.0), (2, 0.1), (2, 0.9), (2, 0.0), (2, 0.0)]
    ):
        values = {"val/loss": 1.0, "val/answer_accuracy_any_length": accuracy, "val/examples": 500}
        trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), callback_metrics=values, global_step=step)
        try:
            guard.on_validation_end(trainer, Stage(stage, False, False, ICoTKD()))  # type: ignore[arg-type]
            seen.append("good" if guard.good else "low")
        except Collapse:
            seen.append("collapse")
    assert seen == [*["good"] * 6, "low", "collapse"]


def test_a_guard_that_warns_judges_as_one_that_acts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert verdicts([0.9, 0.0, 0.0, 0.0], stages="|>>>", action="warn") == ["good", "fair", "fair", "fair"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3 and all("a dip: accuracy is 0.0%" in line and "90.0% at its best" in line for line in told)
    caplog.clear()
    assert verdicts([0.9, 0.0, 0.0], stages="|||", action="warn") == ["good", "low", "low"]
    assert caplog.messages[0].startswith("answer accuracy has collapsed: 0.0%")


@pytest.mark.parametrize("delta,begins", [("1", 0), ("1", 5), ("1/2", 7), ("2.7", 0), ("8", 3)])
def test_a_guard_that_warns_sees_a_collapse_also_if_no_validation_ends_a_stage(delta: str, begins: int) -> None:
    """Validations come at the ends of epochs, of 10 steps. Removal begins inside one."""
    schedule = Linear(delta=delta, pretrain_epochs=begins / 10)
    schedule.bind(10, 40)
    guard, told = Guard(GuardConfig(action="warn")), None
    for epoch in range(1, 20):
        step = 10 * epoch
        module = Stage(schedule.stage(step - 1), False, False)
        module.schedule = schedule
        values = {"val/loss": 1.0, "val/answer_accuracy_any_length": 0.9 * (epoch < 4), "val/examples": 500}
        trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), callback_metrics=values, global_step=step)
        guard.on_validation_end(trainer, module)  # type: ignore[arg-type]
        told = told or (epoch if guard.collapsed else None)
    assert told is not None and told <= 10


# The early judgement: 10 steps after a token has left, by the accuracy of the weights that train.


@pytest.mark.parametrize("action,rollbacks", [("halve", 1), ("warn", 0)])
def test_a_stage_that_begins_badly_is_a_collapse_at_once(tmp_path: Path, action: str, rollbacks: int) -> None:
    """Validation says 90% throughout. The weights have learned nothing: the first token leaves after step 20, and step 25 judges it."""
    folder = tmp_path / "run"
    words = (
        f"guard={action}",
        "guard.early=0.5",
        "guard.early_after=5",
        "guard.max_rollbacks=1",
        "trainer.duration=3epochs",
    )
    out = start(folder, *words, options=("--accuracy=0.9",))
    assert out.returncode == 0, out.stderr[-2000:]
    sign = "an early sign of a collapse: "
    assert out.stderr.count(sign) >= 1 and "at step 25 with 1 token removed, 90.0% at its best" in out.stderr
    found = summary(folder)["rollbacks"]
    assert [(one["at_step"], one["to_step"], one["action"]) for one in found[:1]] == [(25, 20, "halve")][:rollbacks]


def test_a_stage_that_begins_well_goes_on(tmp_path: Path) -> None:
    """Any accuracy is at least 1% of a best of 0."""
    out = start(tmp_path / "run", "guard=halve", "guard.early=0.01", "guard.early_after=5", options=("--accuracy=0.0",))
    assert out.returncode == 0, out.stderr[-2000:]
    assert "early sign" not in out.stderr


def test_a_schedule_that_waits_has_no_use_for_the_early_judgement() -> None:
    config = Config(task=Multiplication(), schedule=Adaptive(), method=Stepwise(), guard=GuardConfig(early=0.5))
    with pytest.raises(UserError, match="guard.early=0.5: schedule.kind=adaptive waits for accuracy"):
        check(config)
