"""Training under the guard: after a collapse, back to the good checkpoint with another pace or learning rate.

Where slower removal cannot help, because as many tokens were removed at the good checkpoint
or the loss was not finite, the learning rate is halved instead. Going back is an operation
on files: `last.ckpt` is replaced by the last good checkpoint with a slower schedule and the
decision written into it, and training starts from there as any resumed run does. A kill at
any moment leaves either the old `last.ckpt`, from which the same collapse and the same
decision follow, or the new one.
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
from stepwise_pl.config.training import GuardConfig
from stepwise_pl.models.checkpoint import read_checkpoint
from stepwise_pl.runs.records import Rollback
from stepwise_pl.training.guard import Guard, log
from stepwise_pl.training.module import StepwiseModule
from stepwise_pl.training.ranks import any_of
from stepwise_pl.training.resume import require_own


class Fitted(NamedTuple):
    """How training ended.

    Attributes:
        trainer, module: of the last attempt.
        steps: optimizer steps that led to the last checkpoint, without those given up.
        collapsed: accuracy was down at the end, or training was given up.
        collapsed_at: CoT tokens gone when it had collapsed for the first time, of what was not given up.
    """

    trainer: L.Trainer
    module: StepwiseModule
    steps: int
    seconds: float
    collapsed: bool
    rollbacks: list[Rollback]
    collapsed_at: int | None = None


def fit(
    build: Callable[[], tuple[L.Trainer, StepwiseModule]],
    data: L.LightningDataModule,
    checkpoints: Path,
    cfg: GuardConfig,
) -> Fitted:
    """Train from `last.ckpt`, or from the start where there is none, and after every collapse as the guard decides.

    After `max_rollbacks` collapses training is given up at the next one, and `last.ckpt`
    stands at the last good checkpoint.

    Args:
        build: a new trainer and module for each attempt.
        checkpoints: the folder of `last.ckpt` and `good.ckpt`.

    Raises:
        UserError: the loss is not finite and the guard does not go back, or there is nothing to go back to.
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
                module.schedule.load_state_dict(state["stepwise"]["schedule"])  # for the pace that is reported
                seconds = float(state["stepwise"]["seconds"])
                return Fitted(trainer, module, int(state["global_step"]), seconds, True, rollbacks)
            del state  # is mapped: the file, replaced by then, would take room on the disk until training ends
        try:
            trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
        except Collapse as collapse:
            go_back(collapse, trainer, module, checkpoints, cfg)
            if any_of(trainer, trainer.received_sigterm or module.stop_asked):
                raise SIGTERMException from None
            continue
        guard = next(callback for callback in trainer.callbacks if isinstance(callback, Guard))  # type: ignore[attr-defined]
        steps, seconds = trainer.global_step, module.seconds
        return Fitted(trainer, module, steps, seconds, guard.collapsed, module.rollbacks, guard.collapsed_at)


def go_back(
    collapse: Collapse, trainer: L.Trainer, module: StepwiseModule, checkpoints: Path, cfg: GuardConfig
) -> None:
    """Make the last good checkpoint, with the decision in it, the latest.

    Raises:
        UserError: the guard does not act, or there is nothing to go back to.
    """
    last = checkpoints / "last.ckpt"
    state = read_good(collapse, module, checkpoints, cfg)
    stepwise, step = state["stepwise"], int(state["global_step"])
    removed = int(stepwise["removed"])
    # With as many tokens removed as there, slower removal would change nothing: the same would happen again.
    action = "learning_rate" if collapse.not_finite or module.stage == removed else cfg.action
    actions = [*(one["action"] for one in module.rollbacks), action]
    before = len(stepwise["rollbacks"])
    rate, wait = pace(actions, before, cfg.wait_epochs * module.schedule.steps_per_epoch)
    go_on_from(module, stepwise, step, actions[before:], rate, wait)
    rollback: Rollback = {
        "action": action,
        "reason": str(collapse),
        "does": {
            "halve": f"tokens leave at {rate} of the configured pace",
            "wait": f"no token leaves for {wait} steps",
            "learning_rate": f"the learning rate is {0.5 ** actions.count('learning_rate'):g} of the configured one",
        }[action],
        "at_step": collapse.step,
        "at_removed_tokens": module.removed_tokens,
        "to_step": step,
        "to_removed_tokens": module.data.limits.removed_tokens(module.schedule.stage(step)),
    }
    log.warning(
        "%s. Back to step %d with %d tokens removed: %s",
        collapse, step, rollback["to_removed_tokens"], rollback["does"],
    )  # fmt: skip
    stepwise["schedule"] = module.schedule.save(step)
    stepwise["rollbacks"] = [*module.rollbacks, rollback]
    stepwise["seconds"] = module.seconds
    if trainer.is_global_zero:
        # Before the checkpoint: without it, a run that is resumed drops the row and comes here again.
        row = {
            "attempt": len(actions),
            "epoch": int(state["epoch"]),
            "schedule/removed_tokens": rollback["to_removed_tokens"],
        }
        for logger in trainer.loggers:
            logger.log_metrics({key: float(value) for key, value in row.items()}, step)
        forget(checkpoints, state)
        write(state, last)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def pace(actions: Sequence[str], before: int, first_wait: float) -> tuple[Fraction, int]:
    """The part of the configured pace that is left after all actions, and the steps to wait at the good checkpoint.

    Args:
        before: how many of the actions the good checkpoint was trained under.
        first_wait: steps of the first wait; each is twice as long as the one before.
    """
    waits = [number for number, action in enumerate(actions) if action == "wait"]
    wait = round(first_wait * 2 ** (len(waits) - 1)) if waits and waits[-1] >= before else 0
    return Fraction(1, 2 ** actions.count("halve")), wait


def go_on_from(
    module: StepwiseModule, good: Mapping[str, Any], step: int, decided: Sequence[str], rate: Fraction, wait: int
) -> None:
    """Let the schedule go on from the good checkpoint, with what was decided since: s is what it was there.

    Args:
        good: what that checkpoint holds of module and schedule.
        step: of that checkpoint.
        decided: the actions that it was not trained under; the last of them is the one that is taken now.
        rate, wait: see `pace`.
    """
    removed = int(good["removed"])
    module.schedule.restore(good["schedule"])
    if any(action != "learning_rate" for action in decided):
        module.schedule.slow_down(step, removed, rate, wait)
    elif module.schedule.stage(step) != removed:  # the checkpoint is from just before a unit was to leave
        module.schedule.hold(step, removed)


def read_good(collapse: Collapse, module: StepwiseModule, checkpoints: Path, cfg: GuardConfig) -> dict[str, Any]:
    """The checkpoint to go back to: the last good one; before there is one, after a loss that is not finite, the last one.

    Raises:
        UserError: the guard does not act, there is none, or it is of another run.
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
    """Remove the checkpoints that were written after the one gone back to; `best.ckpt` becomes that one."""
    best = checkpoints / "best.ckpt"
    for path in [best, *checkpoints.glob("removed-*.ckpt")]:
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
