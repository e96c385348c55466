"""Each field says whether a resumed run may change it, whether it changes what is learned, and whether it holds a path."""

import dataclasses

import pytest

from stepwise_pl.common import registry
from stepwise_pl.config.keys import aside, changeable, may_change, paths, settings_of
from stepwise_pl.config.run import Config
from tests.conftest import COMMANDS, schema_of

# Beginnings of the keys that a resumed run may change. A change of this list is a decision.
MAY_CHANGE = (
    "run_dir", "resume", "plugins", "objective", "expected.", "model.gradient_checkpointing", "guard.", "logger.",
    "data.num_workers", "data.eval_batch_size", "data.cache_dir", "schedule.delta", "schedule.keep", "schedule.check_every",
    "schedule.max_stay", "schedule.stop_when_", "optimizer.decay",
    "trainer.accelerator", "trainer.compile", "trainer.deterministic", "trainer.duration", "trainer.max_time", "trainer.max_tokens_read", "trainer.validate_every_epochs",
    "trainer.validate_every_removed", "trainer.log_every_n_steps", "trainer.log_signals_every_n_steps", "trainer.checkpoint_every_n_steps", "trainer.keep_",
)  # fmt: skip
# Beginnings of the keys that change neither what is learned nor how.
CHANGE_NOTHING = (
    "seed", "name", "run_dir", "resume", "plugins", "objective", "expected.", "model.gradient_checkpointing", "logger.",
    "data.num_workers", "data.eval_batch_size", "data.cache_dir", "trainer.accelerator", "trainer.compile", "trainer.deterministic", "trainer.devices",
    "trainer.num_nodes", "trainer.max_time", "trainer.strategy", "trainer.log_every_n_steps", "trainer.log_signals_every_n_steps", "trainer.checkpoint_every_n_steps", "trainer.keep_",
)  # fmt: skip
# Keys of all commands that hold paths.
HOLD_PATHS = {
    "run_dir", "task.train", "task.validation", "task.test", "model.name", "model.tokenizer", "model.init_from",
    "data.cache_dir", "plugins", "run", "runs", "checkpoint", "file", "out", "figures", "sweep", "beside", "explicit_cot", "no_cot", "space",
    "predictions",
}  # fmt: skip

# The kinds that these lists are about. A new kind decides on the marks of its own keys, in its own file.
KINDS = {
    "task": ("addition", "file", "gsm8k", "modular_sum", "multiplication", "parity", "word_problems"),
    "schedule": ("adaptive", "linear"),
    "method": ("stepwise",),
}


def is_among(key: str, keys: tuple[str, ...]) -> bool:
    """Whether the key is one of these, or begins like one that ends in the middle."""
    return key in keys or key.startswith(tuple(one for one in keys if one.endswith((".", "_"))))


def keys_of_kinds(listed: bool) -> set[str]:
    """The keys of the kinds that are listed above, or of those that are not."""
    classes = registry.load_all().items()
    return {
        f"{group}.{field.name}"
        for (group, kind), cls in classes
        if (kind in KINDS[group]) is listed
        for field in dataclasses.fields(cls)
    }


OF_NEW_KINDS = keys_of_kinds(False) - keys_of_kinds(True)
KEYS = {key for key, _ in settings_of(Config)} - OF_NEW_KINDS


@pytest.mark.parametrize("marked,expected", [(changeable(), MAY_CHANGE), (aside(), CHANGE_NOTHING)])
def test_the_marks_of_the_fields_are_the_keys_that_were_decided_on(
    marked: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    found = {key for key in KEYS if is_among(key, marked)}
    assert found == {key for key in KEYS if is_among(key, expected)}
    # Each of the beginnings holds for the key or the group that was marked, and for no other key.
    assert all(key in marked or f"{key.split('.')[0]}." in marked for key in found)
    for key in expected:
        assert any(one.startswith(key) for one in marked), key


def test_what_a_resumed_run_may_change() -> None:
    assert {key for key in KEYS if may_change(key)} == {key for key in KEYS if is_among(key, MAY_CHANGE)}
    assert may_change("optimizer.decay") and not may_change("optimizer.decay_all")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_that_holds_a_path_says_so_in_every_command_and_choice(command: str) -> None:
    for key, field in settings_of(schema_of(command)):
        assert key in OF_NEW_KINDS or bool(field.metadata.get("path")) == (key in HOLD_PATHS), key


def test_the_paths_of_a_training_run() -> None:
    assert set(paths()) - OF_NEW_KINDS == HOLD_PATHS & KEYS
