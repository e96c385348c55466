"""Metrics reach the callbacks of Lightning that watch them."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from stepwise_pl.config.training import DataConfig, OptimizerConfig
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.methods import Stepwise
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training.module import StepwiseModule
from tests.conftest import small_model

TASK = Multiplication(digits=2, min_digits=1, train_size=32, validation_size=10, test_size=10)
TOKENIZER = build_tokenizer("symbols", TASK.symbols())
STEPS = 8


class Losses(Callback):
    """Keeps what callbacks see after each batch, by optimizer steps done."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self.seen[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


def parts(*callbacks: Callback) -> tuple[L.Trainer, StepwiseModule, CoTDataModule]:
    L.seed_everything(0, verbose=False)
    data = CoTDataModule(TASK, TOKENIZER, DataConfig(batch_size=8, cache_dir=None))
    module = StepwiseModule(
        small_model(TOKENIZER), TOKENIZER, Linear(delta=1), OptimizerConfig(), 0, STEPS, method=Stepwise()
    )
    trainer = L.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, logger=False, callbacks=list(callbacks), num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1000,
    )  # fmt: skip
    return trainer, module, data


@pytest.mark.parametrize("monitor", ["train/loss", "val/loss"])
def test_callbacks_of_lightning_follow_a_metric(monitor: str, tmp_path: Path) -> None:
    seen = Losses()
    kept = ModelCheckpoint(
        tmp_path, "{step}", monitor=monitor, save_top_k=-1, every_n_train_steps=1 if "train" in monitor else None
    )
    # No loss falls by so much, so the second look ends the run.
    stop = EarlyStopping(monitor, min_delta=1e6, patience=1, check_on_train_epoch_end="train" in monitor)
    trainer, module, data = parts(seen, kept, stop)
    trainer.fit(module, data)
    assert trainer.global_step == STEPS and stop.stopped_epoch == 1
    assert list(seen.seen) == list(range(1, STEPS + 1)) and len(set(seen.seen.values())) == STEPS
    assert all(torch.isfinite(torch.tensor(loss)) for loss in seen.seen.values())
    scores = {Path(path).stem: float(score) for path, score in kept.best_k_models.items()}
    if monitor == "train/loss":
        assert scores == {f"step={step}": loss for step, loss in seen.seen.items()}
    else:
        assert list(scores) == ["step=4", "step=8"]
