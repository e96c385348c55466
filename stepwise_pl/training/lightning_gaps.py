"""Reaches into Lightning where it has no public hook, all in this file. Tested against the pinned version (tests/training/test_lightning_gaps.py)."""

import lightning as L

_NEVER = 1 << 62


def validate_after(trainer: L.Trainer, batch_idx: int, is_due: bool) -> None:
    """Let Lightning validate after this batch of the epoch, or not. To be called in `on_train_batch_end`.

    Lightning can validate every N batches or epochs, but not when a schedule asks for it. It
    validates if the number of batches is a multiple of `val_check_batch`.
    """
    trainer.val_check_batch = batch_idx + 1 if is_due else _NEVER


def validates_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch of the epoch."""
    return trainer.val_check_batch == batch_idx + 1
