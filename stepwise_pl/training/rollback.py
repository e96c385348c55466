"""Train under the guard: after a collapse, go back to the good checkpoint with a slower pace or a lower learning rate.

Slower removal cannot help if as many tokens were removed at the good checkpoint, or if the
loss was not finite. The guard then halves the learning rate instead.

Going back is an operation on files. The good checkpoint, with the slower schedule and the
decision written into it, replaces `last.ckpt`, and training resumes from there as any run
does. A kill at any moment leaves either the new `last.ckpt` or the old one. The old one leads
to the same collapse and the same decision.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from stepwise_pl.common.disk import put_in_place
from stepwise_pl.common.errors import Collapse, UserError
from stepwise_pl.common.text import counted
from stepwise_pl.config.training import GuardConfig
from stepwise_pl.models.checkpoint import read_checkpoint
from stepwise_pl.runs.folder import kept_checkpoints
from stepwise_pl.runs.records import Rollback
from stepwise_pl.training.guard import Guard, log
from stepwise_pl.training.module import StepwiseModule
from stepwise_pl.training.ranks import any_of
from stepwise_pl.training.resume import require_own
from stepwise_pl.training.validation_times import ValidationTimes


class Fitted(NamedTuple):
    """The end of training.

    Attributes:
        trainer, module: of the last attempt.
        steps: optimizer steps up to the last checkpoint, without steps that were given up.
        seconds: of training and validation.
        tokens_read: tokens of all forward passes of training up to that checkpoint; None if a part was not counted.
        collapsed: accuracy was low at the end, or the guard gave up.
        collapsed_at: removed CoT tokens at the first collapse, without attempts that were given up.
        ended_early: why training ended before its last step; empty if it did not.
    """

    trainer: L.Trainer
    module: StepwiseModule
    steps: int
    seconds: float
    collapsed: bool
    rollbacks: list[Rollback]
    collapsed_at: int | None = None
    tokens_read: int | None = None
    ended_early: str = ""


def fit(
    build: Callable[[], tuple[L.Trainer, StepwiseModule]],
    data: L.LightningDataModule,
    checkpoints: Path,
    cfg: GuardConfig,
) -> Fitted:
    """Train from `last.ckpt`, or from the start if there is none. After a collapse, do what the guard decides.

    After `max_rollbacks` rollbacks, the next collapse ends training; `last.ckpt` is then the
    last good checkpoint.

    Args:
        build: returns a new trainer and module for each attempt.
        checkpoints: the folder of `last.ckpt` and `good.ckpt`.

    Raises:
        UserError: the loss is not finite and the guard only warns, or there is no checkpoint to go back to.
    """
    last = checkpoints / "last.ckpt"
    while True:
        trainer, module = build()
        if last.is_file():
            state = read_checkpoint(last)
            rollbacks = state["stepwise"]["rollbacks"]
            if cfg.action != "warn" and len(rollbacks) > cfg.max_rollbacks:
                log.warning(
                    "training has ended, after %d rollbacks; resume=true with a larger guard.max_rollbacks goes on",
                    cfg.max_rollbacks,
                )
                module.schedule.restore(state["stepwise"]["schedule"])  # the summary reports its pace
                seconds, step = float(state["stepwise"]["seconds"]), int(state["global_step"])
                # A run that had done all its steps may be resumed with fewer rollbacks allowed.
                gave_up = f"the run has collapsed after {counted(len(rollbacks) - 1, 'rollback')} (guard.max_rollbacks)"
                return Fitted(
                    trainer, module, step, seconds, True, rollbacks, tokens_read=state["stepwise"].get("tokens_read"),
                    ended_early=gave_up if step < trainer.max_steps else "",
                )  # fmt: skip
            # The state is mapped from the file. Without `del` the file would take room on the disk until training ends,
            # even after another one has replaced it.
            del state
        try:
            trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
        except Collapse as collapse:
            go_back(collapse, trainer, module, checkpoints, cfg)
            if any_of(trainer, trainer.received_sigterm or module.stop.is_asked):
                raise SIGTERMException from None
            continue
        guard = next(callback for callback in trainer.callbacks if isinstance(callback, Guard))  # type: ignore[attr-defined]
        times = next(callback for callback in trainer.callbacks if isinstance(callback, ValidationTimes))  # type: ignore[attr-defined]
        steps, seconds = trainer.global_step, module.seconds
        return Fitted(
            trainer, module, steps, seconds, guard.collapsed, module.rollbacks, guard.collapsed_at, module.tokens_read,
            times.reason_to_end(module) if steps < trainer.max_steps else "",
        )  # fmt: skip


def go_back(
    collapse: Collapse, trainer: L.Trainer, module: StepwiseModule, checkpoints: Path, cfg: GuardConfig
) -> None:
    """Replace `last.ckpt` by the last good checkpoint, with the guard's decision written into it.

    Raises:
        UserError: the guard only warns, or there is no checkpoint to go back to.
    """
    last = checkpoints / "last.ckpt"
    state = read_good(collapse, module, checkpoints, cfg)
    stepwise, step = state["stepwise"], int(state["global_step"])
    removed = int(stepwise["removed"])
    # If the good checkpoint is of this stage, slower removal changes nothing: the collapse would come again.
    action = "learning_rate" if collapse.not_finite or module.stage == removed else cfg.action
    actions = [*(rollback["action"] for rollback in module.rollbacks), action]
    before = len(stepwise["rollbacks"])
    rate, wait = pace(actions, before, cfg.wait_epochs * module.schedule.steps_per_epoch)
    go_on_from(module, stepwise, step, actions[before:], rate, wait)
    limits = module.data.limits
    has_named_stages = bool(module.method.stage_names)
    rollback: Rollback = {
        "action": action,
        "reason": str(collapse),
        "does": {
            "halve": f"{'stages follow' if has_named_stages else 'tokens leave'} at {rate} of the configured pace",
            "wait": f"{'the stage stays' if has_named_stages else 'no token leaves'} for {wait} steps",
            "learning_rate": f"the learning rate is {0.5 ** actions.count('learning_rate'):g} of the configured one",
        }[action],
        "at_step": collapse.step,
        "at_removed_tokens": module.removed_tokens,
        "to_step": step,
        "to_removed_tokens": limits.removed_tokens(module.method.removed(module.schedule.stage(step), limits)),
    }
    place = module.method.place(module.schedule.stage(step), rollback["to_removed_tokens"])
    log.warning("%s. Back to step %d %s: %s", collapse, step, place, rollback["does"])
    stepwise["schedule"] = module.schedule.save(step)
    stepwise["rollbacks"] = [*module.rollbacks, rollback]
    # Time and tokens of steps that are given up have been spent all the same.
    stepwise["seconds"], stepwise["tokens_read"] = module.seconds, module.tokens_read
    if trainer.is_global_zero:
        # The row comes before the checkpoint. After a kill between the two, the resumed run drops the row and comes here again.
        row = {
            "attempt": len(actions),
            "epoch": int(state["epoch"]),
            "schedule/removed_tokens": rollback["to_removed_tokens"],
            **({"schedule/stage": module.schedule.stage(step)} if has_named_stages else {}),
        }
        for logger in trainer.loggers:
            logger.log_metrics({key: float(value) for key, value in row.items()}, step)
        forget(checkpoints, state)
        write(state, last)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def pace(actions: Sequence[str], before: int, first_wait: float) -> tuple[Fraction, int]:
    """The fraction of the configured pace after all actions, and the steps to wait at the good checkpoint.

    Args:
        before: number of actions that the good checkpoint was trained under.
        first_wait: steps of the first wait; each further wait is twice as long as the one before.
    """
    waits = [number for number, action in enumerate(actions) if action == "wait"]
    wait = round(first_wait * 2 ** (len(waits) - 1)) if waits and waits[-1] >= before else 0
    return Fraction(1, 2 ** actions.count("halve")), wait


def go_on_from(
    module: StepwiseModule, good: Mapping[str, Any], step: int, decided: Sequence[str], rate: Fraction, wait: int
) -> None:
    """Set the schedule back to the good checkpoint's s, and apply the actions that were decided since.

    Args:
        good: the state of module and schedule in the good checkpoint.
        step: the optimizer steps of the good checkpoint.
        decided: the actions that the good checkpoint was not trained under; the last one is new.
        rate, wait: see `pace`.
    """
    removed = int(good["removed"])
    module.schedule.restore(good["schedule"])
    if any(action != "learning_rate" for action in decided):
        module.schedule.slow_down(step, removed, rate, wait)
    elif module.schedule.stage(step) != removed:  # the checkpoint was written just before a unit was to leave
        module.schedule.hold(step, removed)


def read_good(collapse: Collapse, module: StepwiseModule, checkpoints: Path, cfg: GuardConfig) -> dict[str, Any]:
    """Read the checkpoint to go back to: the good one. If there is none and the loss is not finite: the last one.

    Raises:
        UserError: the guard only warns, there is no checkpoint, or it is of another run.
    """
    good, last = (checkpoints / f"{name}.ckpt" for name in ("good", "last"))
    if cfg.action == "warn":
        kept = "last.ckpt is from before that" if last.is_file() else "there is no checkpoint yet"
        raise UserError(f"{collapse}; {kept}. Lower optimizer.lr in another run, or go back and on with guard=halve")
    path = good if good.is_file() or not collapse.not_finite else last  # weights that are not finite are never saved
    if not path.is_file():
        raise UserError(
            f"{collapse}, before there was a checkpoint to go back to: start another run with a lower optimizer.lr"
        )
    state = read_checkpoint(path)
    require_own(state, path, module.config)
    return state


def forget(checkpoints: Path, state: dict[str, Any]) -> None:
    """Remove the checkpoints that are newer than `state`. If `best.ckpt` is among them, `state` takes its place."""
    best = checkpoints / "best.ckpt"
    for path in [best, *kept_checkpoints(checkpoints)]:
        if path.is_file() and int(read_checkpoint(path)["global_step"]) > state["global_step"]:
            path.unlink()
    if not best.is_file():
        training = ("optimizer_states", "lr_schedulers", "callbacks")
        write({key: value for key, value in state.items() if key not in training}, best)
        for callback in state["callbacks"].values():
            if "best_score" in callback:
                callback["best_score"] = callback["score"]


def write(state: dict[str, Any], path: Path) -> None:
    """Save a checkpoint in one go."""
    fresh = path.with_suffix(".tmp")
    with fresh.open("wb") as file:
        torch.save(state, file)
    put_in_place(fresh, path)
