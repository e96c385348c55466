"""No step of training waits for the device.

The weights of these runs are on torch's `meta` device, which computes shapes and no numbers. Whoever asks it for a number gets an
error. On a GPU the same question would make the host wait until all kernels so far have run.
"""

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode

from stepwise_pl.config.training import DataConfig, OptimizerConfig
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.methods import Method, Stepwise
from stepwise_pl.models.learner import Learner
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training.module import StepwiseModule
from tests.conftest import small_model

TASK = Multiplication(digits=2, min_digits=1, train_size=64, validation_size=10, test_size=10)
TOKENIZER = build_tokenizer("symbols", TASK.symbols())
META = torch.device("meta")


class MetaAccelerator(CPUAccelerator):
    """Takes the meta device."""

    def setup_device(self, device: torch.device) -> None:
        pass


class OnMeta(SingleDeviceStrategy):
    """Trains on the meta device."""

    def __init__(self) -> None:
        super().__init__(META, MetaAccelerator())

    def reduce(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.ones(())  # Lightning asks before the first step whether there is data


class NoNumbersFromTheHost(TorchFunctionMode):
    """Refuses tensors that are made of a number on the device: the copy waits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == META:
            raise RuntimeError(f"a number was copied to the device: {args[0]}")
        return func(*args, **kwargs)


class Watch(Callback):
    """Refuses such tensors from the first step on."""

    def __init__(self) -> None:
        self.mode = NoNumbersFromTheHost()

    def on_train_start(self, *args: Any) -> None:
        self.mode.__enter__()

    def on_train_end(self, *args: Any) -> None:
        self.mode.__exit__(None, None, None)

    def on_exception(self, *args: Any) -> None:
        self.mode.__exit__(None, None, None)


class WaitsForTheLoss(Stepwise):
    """A method that looks at its loss."""

    def loss(self, learner: Learner, batch: Any, stage: Any) -> Any:
        losses = super().loss(learner, batch, stage)
        assert losses.scored is not None
        float(losses.scored.loss)
        return losses


def train(method: Method, **optimizer: Any) -> StepwiseModule:
    """Train for twelve steps on the meta device; a token leaves every third step, and nothing is logged."""
    L.seed_everything(0, verbose=False)
    cfg = DataConfig(batch_size=8)
    data = CoTDataModule(TASK, TOKENIZER, cfg, 0, 2, method.unit, method.side)
    module = StepwiseModule(
        small_model(TOKENIZER), TOKENIZER, Linear(delta=3), OptimizerConfig(**optimizer), 0, 12, method=method
    )
    plain = module.configure_optimizers

    def not_fused() -> torch.optim.Optimizer:
        found = plain()
        for group in found.param_groups:
            group.update(fused=False, foreach=True)  # `meta` has no fused kernel
        return found

    module.configure_optimizers = not_fused  # type: ignore[method-assign]
    trainer = L.Trainer(
        strategy=OnMeta(), max_steps=12, max_epochs=-1, accumulate_grad_batches=2,
        limit_val_batches=0, logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        log_every_n_steps=1000, gradient_clip_val=1.0, callbacks=[Watch()],
    )  # fmt: skip
    # Lightning moves logged values to the CPU once the run is over.
    trainer._teardown = lambda: None  # type: ignore[method-assign]
    trainer.fit(module, data)
    return module


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("keep_position", [False, True])
def test_no_step_asks_the_device_for_a_number(average: float, keep_position: bool) -> None:
    module = train(Stepwise(keep_position=keep_position), average=average)
    assert module.trainer.global_step == 12 and module.stage == 4
    assert module.trained["train/loss"].device == META


def test_a_step_that_asks_is_found() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        train(WaitsForTheLoss())
