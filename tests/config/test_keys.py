"""Each field says whether a resumed run may change it, whether it changes what is learned, and whether it holds a path."""

import pytest

from stepwise_pl.config.keys import ASIDE, CHANGEABLE, PATHS, settings_of
from stepwise_pl.config.run import Config
from tests.conftest import COMMANDS, schema_of

# Beginnings of the keys that a resumed run may change. A change of this list is a decision.
MAY_CHANGE = (
    "run_dir", "resume", "objective", "expected.", "model.gradient_checkpointing", "guard.", "logger.",
    "data.num_workers", "data.eval_batch_size", "data.cache_dir", "schedule.delta", "schedule.keep", "schedule.check_every",
    "schedule.max_stay", "optimizer.decay_steps",
    "trainer.accelerator", "trainer.max_epochs", "trainer.max_steps", "trainer.validate_every_epochs",
    "trainer.validate_every_removed", "trainer.log_every_n_steps", "trainer.checkpoint_every_n_steps", "trainer.keep_",
)  # fmt: skip
# Beginnings of the keys that change neither what is learned nor how.
CHANGE_NOTHING = (
    "seed", "name", "run_dir", "resume", "objective", "expected.", "model.gradient_checkpointing", "logger.",
    "data.num_workers", "data.eval_batch_size", "data.cache_dir", "trainer.accelerator", "trainer.devices",
    "trainer.strategy", "trainer.log_every_n_steps", "trainer.checkpoint_every_n_steps", "trainer.keep_",
)  # fmt: skip
# Keys of all commands that hold paths.
HOLD_PATHS = {
    "run_dir", "task.train", "task.validation", "task.test", "model.name", "model.tokenizer", "model.init_from",
    "data.cache_dir", "run", "runs", "checkpoint", "file", "out", "figures", "sweep",
}  # fmt: skip

KEYS = {key for key, _ in settings_of(Config)}


@pytest.mark.parametrize("marked,expected", [(CHANGEABLE, MAY_CHANGE), (ASIDE, CHANGE_NOTHING)])
def test_the_marks_of_the_fields_are_the_keys_that_were_decided_on(
    marked: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert {key for key in KEYS if key.startswith(marked)} == {key for key in KEYS if key.startswith(expected)}
    # Each of the beginnings holds for the key or the group that was marked, and for no other key.
    assert all(key in marked or f"{key.split('.')[0]}." in marked for key in KEYS if key.startswith(marked))
    for key in expected:
        assert any(one.startswith(key) for one in marked), key


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_that_holds_a_path_says_so_in_every_command_and_choice(command: str) -> None:
    for key, field in settings_of(schema_of(command)):
        assert bool(field.metadata.get("path")) == (key in HOLD_PATHS), key


def test_the_paths_of_a_training_run() -> None:
    assert set(PATHS) == HOLD_PATHS & KEYS
