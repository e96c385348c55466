"""Decide when to validate: at the end of epochs, and before tokens leave."""

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from stepwise_pl.common.errors import UserError
from stepwise_pl.training.lightning_gaps import validate_after
from stepwise_pl.training.module import StepwiseModule

log = logging.getLogger(__name__)


class ValidationTimes(Callback):
    """Decides after which batches Lightning validates.

    - At the end of every `every_epochs`-th epoch (0: none).
    - Just before the next token leaves, if `every_removed` tokens have left since the last
      such validation (0: never). A stage is thus measured at its end, after all its training.
    - Just before a token leaves at a stage that is a multiple of `keep_every_removed` (0:
      never), because a checkpoint is kept there.
    - When an adaptive schedule asks for it.
    - After the last step, and after the step that has used up `max_tokens_read`.

    After a validation the run may end before its last step, by its budget of tokens or by its schedule.
    """

    def __init__(
        self, every_epochs: int, every_removed: int, keep_every_removed: int = 0, max_tokens_read: int | None = None
    ) -> None:
        self.every_epochs, self.every_removed, self.keep_every_removed = every_epochs, every_removed, keep_every_removed
        self.max_tokens_read = max_tokens_read
        # Attempt and stage of the last validation just before a token left.
        self.validated_at: list[int] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        if self.max_tokens_read is not None and pl_module.tokens_read is None:
            raise UserError(
                f"trainer.max_tokens_read={self.max_tokens_read}: an earlier part of this run did not count its tokens; set it to null"
            )
        # A run that has ended before its last step is over when it is resumed, too.
        reason = self.reason_to_end(pl_module)
        trainer.should_stop = bool(reason)
        if reason and trainer.global_step < trainer.max_steps:
            log.info("the run has ended at step %d: %s; with other settings it goes on", trainer.global_step, reason)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepwiseModule)
        validate_after(trainer, batch_idx, self._due(trainer, pl_module, batch_idx))

    def _due(self, trainer: L.Trainer, module: StepwiseModule, batch_idx: int) -> bool:
        epoch_ends = batch_idx + 1 == trainer.num_training_batches
        # Inside an optimizer step nothing is validated, because a checkpoint there would lose half a gradient.
        if not epoch_ends and (batch_idx + 1) % trainer.accumulate_grad_batches:
            return False
        if epoch_ends and self.every_epochs and (trainer.current_epoch + 1) % self.every_epochs == 0:
            return True
        if trainer.global_step == trainer.max_steps or self._has_read_all(module):
            return True
        if module.schedule.wants_validation(trainer.global_step):
            return True
        now = module.stage
        leaves = module.schedule.stage(trainer.global_step) > now
        before = self.validated_at
        # After a rollback of the guard, the stage before does not count.
        waited = before is None or before[0] != module.attempt or now - before[1] >= self.every_removed
        keep = self.keep_every_removed > 0 and now % self.keep_every_removed == 0
        return leaves and ((waited and self.every_removed > 0) or keep)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        if pl_module.schedule.stage(trainer.global_step) > pl_module.stage:
            self.validated_at = [pl_module.attempt, pl_module.stage]
        reason = self.reason_to_end(pl_module)
        if reason and trainer.state.fn == "fit" and trainer.global_step < trainer.max_steps:
            log.info("the run ends at step %d: %s", trainer.global_step, reason)
            trainer.should_stop = True

    def _has_read_all(self, module: StepwiseModule) -> bool:
        """Whether training has used up its budget of tokens."""
        return self.max_tokens_read is not None and (module.tokens_read or 0) >= self.max_tokens_read

    def reason_to_end(self, module: StepwiseModule) -> str:
        """Why the run ends before its last step; empty if it does not."""
        if self._has_read_all(module):
            return f"{module.tokens_read:,} tokens are read (trainer.max_tokens_read)"
        return module.schedule.reason_to_end()

    def state_dict(self) -> dict[str, Any]:
        return {"validated_at": self.validated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validated_at = state_dict["validated_at"]
