"""The reaches into Lightning work with the pinned version."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from stepwise_pl.training.lightning_gaps import validate_after, validates_after


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.validated: list[int] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.validated.append(self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class After(Callback):
    """Asks for validation after the batches 1, 4 and 5 of each epoch."""

    said: list[bool]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        validate_after(trainer, batch_idx, batch_idx in (1, 4, 5))
        self.said.append(validates_after(trainer, batch_idx))


def test_validation_comes_after_the_chosen_batches_only(tmp_path) -> None:
    model, after = Model(), After()
    after.said = []
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[after], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    data = DataLoader(torch.zeros(7, 1))  # type: ignore[arg-type]
    trainer.fit(model, data, DataLoader(torch.zeros(1, 1)))  # type: ignore[arg-type]
    assert model.validated == [2, 5, 6, 9, 12, 13]
    assert after.said == 2 * [False, True, False, False, True, True, False]
