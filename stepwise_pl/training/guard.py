"""The guard recognises a collapse; `rollback.py` goes back to the good checkpoint.

In a collapse, answer accuracy falls to a small part of its best and stays there until the next
token leaves. Low accuracy right after a token has left is a dip. While an adaptive schedule
waits, a stage is judged once accuracy has come back in it. Answers of any length count: a model that
answers right, and still writes a CoT that should be gone, has lost nothing. Removal schedules
that are too aggressive end in a collapse (arXiv 2405.14838, section 5). A loss that is not
finite counts as a collapse.

With `guard.early` a stage is judged soon after it has begun, too. experiments/early_warning measures how well this tells a lost stage.
"""

import logging
import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from stepwise_pl.common.errors import Collapse, UserError
from stepwise_pl.common.statistics import wilson
from stepwise_pl.config.training import GuardConfig
from stepwise_pl.training.module import StepwiseModule
from stepwise_pl.training.signals import PROBLEMS, early_accuracy

log = logging.getLogger(__name__)


class Guard(Callback):
    """Watches validation accuracy; `good` says whether the last checkpoint is worth going back to.

    Raises:
        Collapse: from `on_validation_end`, if accuracy has collapsed and the guard acts, or if
            the validation loss is not finite; from `on_train_batch_end`, if a stage begins as
            lost ones do (`guard.early`) and the guard acts.
        UserError: from `on_train_start`, if `guard.early` is set and weights are shared out.
    """

    def __init__(self, cfg: GuardConfig) -> None:
        self.cfg = cfg
        self.best = 0.0  # answer accuracy on validation, at any length
        self.low = 0  # consecutive validations far below `best`
        self.removed: int | None = None  # stage at the last validation
        self.came_back = False  # whether accuracy has been good at this stage
        self.good = False
        self.collapsed_at: int | None = None  # removed CoT tokens at the first collapse

    @property
    def acts(self) -> bool:
        """Whether the guard goes back after a collapse; with `action=warn` it only warns."""
        return self.cfg.action != "warn"

    @property
    def collapsed(self) -> bool:
        """Whether accuracy has been low for `patience` validations."""
        return self.low >= self.cfg.patience

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        if self.cfg.early is not None and pl_module.sharded:
            raise UserError("guard.early: needs whole weights; set it to null, or trainer.strategy=ddp")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.cfg.early is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(pl_module, StepwiseModule)
        step, stage, schedule = trainer.global_step, pl_module.stage, pl_module.schedule
        begun = step - self.cfg.early_after
        if begun < 1 or schedule.stage(begun) != stage or schedule.stage(begun - 1) >= stage:
            return
        accuracy = early_accuracy(pl_module)
        if accuracy >= self.cfg.early * self.best or not pl_module.method.is_judged_at(stage):
            return
        place = pl_module.method.place(stage, pl_module.removed_tokens)
        message = (
            f"an early sign of a collapse: {accuracy:.1%} of the first {PROBLEMS} validation problems at step {step} {place}, "
            f"{self.best:.1%} at its best"
        )
        if self.acts:
            raise Collapse(message, step)
        log.warning("%s; guard=halve would go back and remove more slowly", message)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, StepwiseModule)
        keys = ("loss", "answer_accuracy_any_length", "examples")
        found = {key: float(trainer.callback_metrics[f"val/{key}"]) for key in keys}
        step = trainer.global_step
        if not math.isfinite(found["loss"]):
            raise Collapse(f"the validation loss is {found['loss']} at step {step}", step, not_finite=True)
        if not pl_module.method.is_judged_at(pl_module.stage):
            self.good = True
            return
        accuracy = found["answer_accuracy_any_length"]
        self.best = max(self.best, accuracy)
        low = wilson(accuracy, round(found["examples"]))[1] < self.cfg.collapsed * self.best
        is_settled = self._is_settled(pl_module, step)
        has_come_back = accuracy >= self.cfg.good * self.best
        self.came_back = (pl_module.stage == self.removed and self.came_back) or has_come_back
        self.removed = pl_module.stage
        if is_settled:
            self.low = self.low + 1 if low else 0
        elif low and not pl_module.schedule.is_waiting():
            log.info(
                "a dip: accuracy is %.1f%% at step %d, and was %.1f%% at its best; a stage has just begun, and a collapse is "
                "only what stays", 100 * accuracy, step, 100 * self.best,
            )  # fmt: skip
        self.good = accuracy >= self.cfg.good * self.best
        if self.collapsed and self.collapsed_at is None:
            self.collapsed_at = pl_module.removed_tokens
        if self.low != self.cfg.patience and not (self.collapsed and self.acts):
            return
        place = pl_module.method.place(pl_module.stage, pl_module.removed_tokens)
        message = f"answer accuracy has collapsed: {accuracy:.1%} at step {step} {place}, {self.best:.1%} at its best"
        if self.acts:
            raise Collapse(message, step)
        log.warning("%s; guard=halve would go back and remove more slowly", message)

    def _is_settled(self, module: StepwiseModule, step: int) -> bool:
        """Whether low accuracy at this validation is more than the dip right after a token has left."""
        schedule, stage = module.schedule, module.stage
        if schedule.stage(step) > stage:  # the next token leaves
            return True
        seen_before = stage == self.removed
        if schedule.is_waiting():
            return seen_before and self.came_back
        # Half of the stage is over. At a fractional Δ no validation may come at its end. The last stage has no end.
        pace = schedule.rate()
        half = math.ceil(schedule.steps_per_epoch / (2 * pace)) if pace > 0 and stage < schedule.last else math.inf
        return seen_before or (half <= step and schedule.stage(step - int(half)) == stage)

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("best", "low", "removed", "came_back", "collapsed_at")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.low, self.removed = (state_dict[key] for key in ("best", "low", "removed"))
        self.collapsed_at = state_dict.get("collapsed_at")  # older checkpoints lack these two
        self.came_back = state_dict.get("came_back", False)
