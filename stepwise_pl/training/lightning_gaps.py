"""Every reach into Lightning for which it has no public hook.

tests/training/test_lightning_gaps.py checks them against the pinned version.
"""

import lightning as L

_NEVER = 1 << 62


def validate_after(trainer: L.Trainer, batch_idx: int, is_due: bool) -> None:
    """Tell Lightning whether to validate after this batch of the epoch. Call it in `on_train_batch_end`.

    Lightning can validate every N batches or epochs, but not when a schedule asks for it.
    Lightning validates if the number of batches is a multiple of `val_check_batch`.
    """
    trainer.val_check_batch = batch_idx + 1 if is_due else _NEVER


def validates_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch of the epoch."""
    return trainer.val_check_batch == batch_idx + 1
