"""Say what a run will do: at its start, and how long it takes once its first steps are measured."""

import logging
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from stepwise_pl.config.request import Request
from stepwise_pl.config.run import Config
from stepwise_pl.config.training import TrainerConfig
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.models.compiled import CompiledBlocks
from stepwise_pl.models.devices import accelerator_of, wait_for
from stepwise_pl.runs.outlook import Removal, length_line, removal_line, stages_line, sweep_time_line, time_line
from stepwise_pl.training.module import StepwiseModule

log = logging.getLogger(__name__)

# The pace is told after so many measured steps, or after so many seconds of them.
MEASURED_STEPS, MEASURED_SECONDS = 20, 5.0
RECENT_STEPS = 100  # Older steps count less and less: sequences get shorter while tokens leave.


def introduce(cfg: TrainerConfig, data: CoTDataModule, model: nn.Module, blocks: CompiledBlocks | None = None) -> None:
    """Log device, precision, parameters and the sizes of the splits."""
    name = torch.cuda.get_device_name() if (found := accelerator_of(cfg.accelerator)) == "gpu" else found
    shared = f"{cfg.processes} x {name} ({cfg.strategy})" if cfg.processes > 1 else name
    weights = list(model.parameters())
    count, trained = (sum(w.numel() for w in found) for found in (weights, [w for w in weights if w.requires_grad]))
    chosen = " (trainer.accelerator=auto)" if cfg.accelerator == "auto" else ""
    tf32 = " with TF32" if cfg.tf32 else ""
    ways = "" if blocks is None else f", compiled{' with CUDA graphs' if blocks.graphs else ''}"
    log.info("device: %s%s, precision %s%s%s", shared, chosen, cfg.precision, tf32, ways)
    log.info("model: %s parameters", f"{count:,}" if trained == count else f"{trained:,} trained of {count:,}")
    log.info("data: %s examples", ", ".join(f"{len(split):,} {name}" for name, split in data.encoded.items()))


def removal_of(module: StepwiseModule) -> Removal:
    """The removal that the schedule of the run foresees, from its present state."""
    schedule, method, limits = module.schedule, module.method, module.data.limits

    def tokens(stage: int) -> int:
        return limits.removed_tokens(method.removed(stage, limits))

    return Removal(
        lambda step: tokens(schedule.stage(step)), limits.max_cot, tokens(schedule.most), schedule.waits_for()
    )


class Outlook(Callback):
    """Measures the pace of the run, and says what it will do and how long that takes.

    The first step after a start is not measured, because it warms up. Validations, with the checkpoints that follow
    them, have a sum of their own, which is spread over the steps since the start.

    Args:
        config: the configuration of the run.
        asked: the command that started the run.

    Attributes:
        steps: optimizer steps of the whole run; known once training starts.
        step_seconds: the mean of a step, of the last `RECENT_STEPS`; 0 before one is measured.
    """

    def __init__(self, config: Config, asked: Request | None = None) -> None:
        self.config, self.asked = config, asked
        self.steps, self.step_seconds = 0, 0.0
        self.measured, self.validations, self.validation_seconds = 0, 0, 0.0
        self._begin = 0
        self._before: float | None = None  # the end of the step before
        self._paused: float | None = None  # since when steps wait for a validation
        self._is_told = False

    def seconds(self, steps: int) -> float:
        """Seconds that so many steps will take, with their share of validations; 0 before a step is measured."""
        if not self.measured:
            return 0.0
        # One validation does not tell how often there is one.
        validations = self.validation_seconds / (self.measured + 1) if self.validations > 1 else 0.0
        return steps * (self.step_seconds + validations)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        self._begin = trainer.global_step
        per_epoch = pl_module.data.steps_per_epoch
        self.steps = pl_module.data.steps
        if not trainer.is_global_zero or self._begin >= self.steps:
            return
        if pl_module.extra is not None:
            count = sum(parameter.numel() for parameter in pl_module.extra.parameters())
            log.info("method=%s: %s parameters besides the model", pl_module.method.kind, f"{count:,}")
        log.info("%s", length_line(self._begin, self.steps, self.config.data.batch_size, per_epoch))
        if (budget := self.config.trainer.max_tokens_read) is not None:
            log.info(
                "the run ends before that once training has read %s tokens (trainer.max_tokens_read)", f"{budget:,}"
            )
        lines = [removal_line(removal_of(pl_module), self._begin, self.steps)]
        schedule, names = pl_module.schedule, pl_module.method.stage_names
        if names and not schedule.waits_for():
            lines.append(stages_line(schedule.stage, names, self._begin, self.steps))
        for line in lines:
            log.log(logging.WARNING if line.is_warning else logging.INFO, "%s", line.text)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if not self._is_told:
            wait_for(pl_module.device)
        now = time.monotonic()
        if self._before is not None:
            self.measured += 1
            self.step_seconds += (now - self._before - self.step_seconds) / min(self.measured, RECENT_STEPS)
        self._before = now
        is_enough = self.measured >= MEASURED_STEPS or self.measured * self.step_seconds >= MEASURED_SECONDS
        if is_enough and not self._is_told:
            self._is_told = True
            if trainer.is_global_zero:
                self._tell(pl_module)

    def _tell(self, module: L.LightningModule) -> None:
        assert isinstance(module, StepwiseModule)
        removal = removal_of(module)
        shrinks = bool(removal.waits_for) or removal.gone(self.steps - 1) > removal.gone(self._begin)
        may_end = self.config.trainer.max_tokens_read is not None or module.schedule.may_end_run
        # A guard that goes back trains some steps again.
        is_bound = (shrinks or may_end) and self.config.guard.action == "warn"
        seconds, validated = self.seconds(self.steps - self._begin), self.validations > 1
        log.info("%s", time_line(
            seconds, self.step_seconds, self.measured, is_resumed=self._begin > 0, is_bound=is_bound,
            has_validated=validated,
        ))  # fmt: skip
        self._tell_sweep()

    def _tell_sweep(self) -> None:
        if self.asked is not None and (sweep := self.asked.sweep) is not None:
            log.info("%s", sweep_time_line(self.seconds(self.steps) * sweep.times, sweep.jobs, sweep.workers))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.measured and not self._is_told:  # the run is short, the sweep may be long
            self._tell_sweep()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.monotonic()
        self.validations += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._count_pause()

    def on_train_batch_start(self, *args: Any) -> None:
        # Lightning calls the callback of the checkpoints after all others. They are written by now.
        self._count_pause()
        self._paused = None

    def _count_pause(self) -> None:
        """Count the time since the validation began, or since the last call, as time of validations."""
        if self._paused is None:
            return
        seconds, self._paused = time.monotonic() - self._paused, time.monotonic()
        self.validation_seconds += seconds
        if self._before is not None:
            self._before += seconds
