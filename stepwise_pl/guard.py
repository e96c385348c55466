"""The guard: recognises a collapse, goes back to the last good checkpoint, and goes on more slowly.

A collapse is answer accuracy that falls to a small part of what it was and stays there, the
end of removal schedules that are too aggressive (arXiv 2405.14838, section 5), or a loss
that is no longer finite. Going back is an operation on files: `last.ckpt` is replaced by
the last good checkpoint with a slower schedule and the decision written into it, and
training starts from there as any resumed run does. A kill at any moment of this leaves
either the old `last.ckpt`, from which the same collapse and the same decision follow, or
the new one.
"""

import logging
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from stepwise_pl.config import GuardConfig
from stepwise_pl.disk import link, put_in_place
from stepwise_pl.errors import Collapse, UserError
from stepwise_pl.metrics import wilson
from stepwise_pl.models import read_checkpoint
from stepwise_pl.module import Rollback, StepwiseModule

log = logging.getLogger(__name__)


class Guard(Callback):
    """Watches validation: `good` says whether the last one is worth going back to.

    Raises:
        Collapse: from `on_validation_end`, once accuracy has collapsed and the guard is to
            act, or the validation loss is not finite.
    """

    def __init__(self, cfg: GuardConfig) -> None:
        self.cfg = cfg
        self.best = 0.0  # answer accuracy on validation
        self.low = 0  # successive validations far below it
        self.good = False

    @property
    def acts(self) -> bool:
        """Whether it goes back, rather than only say what it sees."""
        return self.cfg.action != "warn"

    @property
    def collapsed(self) -> bool:
        """Whether accuracy is down for as long as the guard's patience lasts."""
        return self.low >= self.cfg.patience

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, StepwiseModule)
        found = {key: float(trainer.callback_metrics[f"val/{key}"]) for key in ("loss", "answer_accuracy", "examples")}
        step = trainer.global_step
        if not math.isfinite(found["loss"]):
            raise Collapse(f"the validation loss is {found['loss']} at step {step}", step, not_finite=True)
        accuracy = found["answer_accuracy"]
        self.best = max(self.best, accuracy)
        low = wilson(accuracy, round(found["examples"]))[1] < self.cfg.collapsed * self.best
        self.low = self.low + 1 if low else 0
        self.good = accuracy >= self.cfg.good * self.best
        if self.low != self.cfg.patience and not (self.collapsed and self.acts):
            return
        message = (
            f"answer accuracy has collapsed: {accuracy:.1%} at step {step} with {pl_module.removed_tokens} tokens removed, "
            f"{self.best:.1%} at its best"
        )
        if self.acts:
            raise Collapse(message, step)
        log.warning("%s; guard=halve would go back and remove more slowly", message)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "low": self.low}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.low = state_dict["best"], state_dict["low"]


class Fitted(NamedTuple):
    """How training ended.

    Attributes:
        trainer, module: of the last attempt.
        steps: optimizer steps that led to the last checkpoint, without those given up.
        collapsed: accuracy was down at the end, or training was given up.
    """

    trainer: L.Trainer
    module: StepwiseModule
    steps: int
    seconds: float
    collapsed: bool
    rollbacks: list[Rollback]


def fit(
    build: Callable[[], tuple[L.Trainer, StepwiseModule]],
    data: L.LightningDataModule,
    checkpoints: Path,
    cfg: GuardConfig,
) -> Fitted:
    """Train from `last.ckpt`, or from the start where there is none, and after every collapse as the guard decides.

    Args:
        build: a new trainer and module for each attempt.
        checkpoints: the folder of `last.ckpt` and `good.ckpt`.

    After `max_rollbacks` collapses training is given up at the next one, and `last.ckpt`
    stands at the last good checkpoint.

    Raises:
        UserError: the loss is not finite and the guard does not go back, or there is no good checkpoint yet.
    """
    while True:
        trainer, module = build()
        last = checkpoints / "last.ckpt"
        try:
            trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
            guard = next(callback for callback in trainer.callbacks if isinstance(callback, Guard))  # type: ignore[attr-defined]
            return Fitted(trainer, module, trainer.global_step, module.seconds, guard.collapsed, module.rollbacks)
        except Collapse as collapse:
            rollbacks = go_back(collapse, trainer, module, checkpoints, cfg)
            if len(rollbacks) > cfg.max_rollbacks:
                log.warning(
                    "training ends here, after %d rollbacks; resume=true with a larger guard.max_rollbacks goes on",
                    cfg.max_rollbacks,
                )
                return Fitted(trainer, module, rollbacks[-1]["to_step"], module.seconds, True, rollbacks)


def go_back(
    collapse: Collapse, trainer: L.Trainer, module: StepwiseModule, checkpoints: Path, cfg: GuardConfig
) -> list[Rollback]:
    """Make the last good checkpoint, with the decision in it, the latest; return all decisions so far.

    Raises:
        UserError: the guard does not act, or there is nothing to go back to.
    """
    good, last, best = (checkpoints / f"{name}.ckpt" for name in ("good", "last", "best"))
    if cfg.action == "warn":
        kept = "last.ckpt is from before that" if last.is_file() else "there is no checkpoint yet"
        raise UserError(f"{collapse}; {kept}. Lower optimizer.lr, or go back and on with guard=halve")
    if not good.is_file():
        raise UserError(f"{collapse}, before there was a good checkpoint to go back to: lower optimizer.lr")
    state = read_checkpoint(good)
    step, removed = int(state["global_step"]), int(state["stepwise"]["removed"])
    tokens = module.data.limits.removed_tokens(removed)
    action = "learning_rate" if collapse.not_finite else cfg.action
    actions = [*(one["action"] for one in module.rollbacks), action]
    rate = Fraction(1, 2 ** actions.count("halve"))
    waits = actions.count("wait") if action == "wait" else 0
    wait = round(cfg.wait_epochs * module.schedule.steps_per_epoch) * 2 ** (waits - 1) if waits else 0
    does = {
        "halve": f"tokens leave at {rate} of the configured pace",
        "wait": f"no token leaves for {wait} steps",
        "learning_rate": f"the learning rate is {0.5 ** actions.count('learning_rate'):g} of the configured one",
    }[action]
    rollback: Rollback = {
        "action": action, "reason": str(collapse), "does": does, "at_step": collapse.step,
        "at_removed_tokens": module.removed_tokens, "to_step": step, "to_removed_tokens": tokens,
    }  # fmt: skip
    rollbacks = [*module.rollbacks, rollback]
    log.warning("%s. Back to step %d with %d tokens removed: %s", collapse, step, tokens, does)
    module.schedule.load_state_dict(state["stepwise"]["schedule"])
    module.schedule.slow_down(step, removed, rate, wait)
    state["stepwise"] |= {
        "schedule": module.schedule.state_dict(step), "rollbacks": rollbacks, "seconds": module.seconds
    }  # fmt: skip
    if trainer.is_global_zero:
        # Before the checkpoint: without it, a run that is resumed drops the row and comes here again.
        row = {"attempt": len(rollbacks), "epoch": int(state["epoch"]), "schedule/removed_tokens": tokens}
        for logger in trainer.loggers:
            logger.log_metrics({key: float(value) for key, value in row.items()}, step)
        for path in [best, *checkpoints.glob("removed-*.ckpt")]:
            if path.is_file() and int(read_checkpoint(path)["global_step"]) > step:
                path.unlink()  # what it was trained for has collapsed
        if not best.is_file():
            link(good, best)
        fresh = last.with_suffix(".tmp")
        torch.save(state, fresh)
        put_in_place(fresh, last)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    return rollbacks
