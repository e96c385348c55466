"""Sets of keys: those that a resumed run may change, those that change nothing learned, those that hold paths."""

from typing import Any

# Keys that a resumed run may change: how long it runs, and what it shows and saves. Another Δ starts a new segment
# of the schedule. Any other change would make another run of it.
CHANGEABLE = (
    "run_dir", "resume", "objective", "expected.", "model.gradient_checkpointing", "guard.", "logger.", "data.num_workers", "data.eval_batch_size", "data.cache_dir", "schedule.delta", "optimizer.decay_steps",
    "trainer.accelerator", "trainer.max_epochs", "trainer.max_steps", "trainer.validate_every_epochs",
    "trainer.validate_every_removed", "trainer.log_every_n_steps", "trainer.checkpoint_every_n_steps", "trainer.keep_",
)  # fmt: skip

# Keys that change neither what is learned nor how.
ASIDE = (
    "seed", "run_dir", "resume", "objective", "expected.", "model.gradient_checkpointing", "logger.", "data.num_workers", "data.eval_batch_size", "data.cache_dir",
    "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.log_every_n_steps", "trainer.checkpoint_every_n_steps",
    "trainer.keep_",
)  # fmt: skip

# Keys of all commands that hold paths, or may: `~` is the home folder in them (`config.plain.to_object`).
PATHS = (
    "run_dir", "task.train", "task.validation", "task.test", "model.name", "model.tokenizer", "model.init_from", "data.cache_dir",
    "run", "runs", "checkpoint", "file", "out", "figures", "sweep",
)  # fmt: skip


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in plain.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
