"""When to validate: by epochs, and as soon as tokens have been removed."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from stepwise_pl.training.lightning_gaps import validate_after
from stepwise_pl.training.module import StepwiseModule


class ValidationTimes(Callback):
    """Decides after which batches Lightning validates: it asks after `on_train_batch_end`.

    At the end of every `every_epochs`-th epoch (0: none); just before the next token
    leaves, once `every_removed` more are gone than when that was last done (0: never), so
    that each number of removed tokens is measured when it has been trained on for as long
    as it will be; and after the very last step. Also just before a token leaves where
    the number of removed ones is a multiple of `keep_every_removed` (0: none), because a
    checkpoint is kept there.
    """

    def __init__(self, every_epochs: int, every_removed: int, keep_every_removed: int = 0) -> None:
        self.every_epochs, self.every_removed, self.keep_every_removed = every_epochs, every_removed, keep_every_removed
        # Attempt and removed tokens at the last validation before one leaves.
        self.validated_at: list[int] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepwiseModule)
        validate_after(trainer, batch_idx, self._due(trainer, pl_module, batch_idx))

    def _due(self, trainer: L.Trainer, module: StepwiseModule, batch_idx: int) -> bool:
        epoch_ends = batch_idx + 1 == trainer.num_training_batches
        if epoch_ends and self.every_epochs and (trainer.current_epoch + 1) % self.every_epochs == 0:
            return True
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (epoch_ends and last_epoch):
            return True
        now = module.stage
        leaves = module.schedule.stage(trainer.global_step) > now
        before = self.validated_at
        # After the guard has gone back, the stage is another one.
        waited = before is None or before[0] != module.attempt or now - before[1] >= self.every_removed
        keep = self.keep_every_removed > 0 and now % self.keep_every_removed == 0
        return leaves and ((waited and self.every_removed > 0) or keep)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        if pl_module.schedule.stage(trainer.global_step) > pl_module.stage:
            self.validated_at = [pl_module.attempt, pl_module.stage]

    def state_dict(self) -> dict[str, Any]:
        return {"validated_at": self.validated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validated_at = state_dict["validated_at"]
