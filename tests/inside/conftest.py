"""A small run that kept the weights of three stages, for probes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import command, made_once

MODULAR = (
    "task=modular_sum", "task.modulus=3", "task.terms=6", "task.train_size=500", "task.validation_size=110", "task.test_size=110",
    "model.layers=2", "model.heads=2", "model.width=32", "data.batch_size=32", "data.epoch_size=640", "optimizer.lr=5e-3",
    "schedule=stepwise", "schedule.delta=3", "trainer.duration=3epochs", "trainer.keep_every_removed=3",
)  # fmt: skip


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that kept the weights of stages 0, 3 and 6."""

    def make(folder: Path) -> None:
        command("train", *MODULAR, f"run_dir={folder / 'run'}")

    return made_once("modular", make, tmp_path_factory)


@pytest.fixture
def run_folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original / "run", tmp_path / "run"))


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    """Two threads add in another order than one."""
    torch.set_num_threads(1)
    yield
