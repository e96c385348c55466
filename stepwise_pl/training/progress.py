"""Record stages and show progress during training, as a bar or as lines of a log."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from stepwise_pl.common import terminal
from stepwise_pl.common.text import clock, duration, percent
from stepwise_pl.runs.records import StagesFile
from stepwise_pl.training.checkpoints import log
from stepwise_pl.training.module import StepwiseModule
from stepwise_pl.training.outlook import Outlook

REDRAW_SECONDS = 0.5  # Reading the loss makes a GPU wait.
SILENT_SECONDS = 60.0  # the longest silence of a log, but for the steps and validations that take longer
LEAST_BAR = 4  # columns


class StageRecords(Callback):
    """Writes a line of stages.jsonl at every validation while training."""

    def __init__(self, path: Path) -> None:
        self.file = StagesFile(path)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        if trainer.is_global_zero and trainer.state.fn == "fit" and pl_module.record is not None:
            self.file.append(pl_module.record)


class ProgressBar(Callback):
    """One bar for the whole run on a terminal, and above it a line for each validated stage, once the stage is over.

    Lightning's own bar begins anew in every epoch. The log goes above the bar as long as the bar is there.

    Args:
        outlook: knows the number of steps and the time that is left. It comes before this callback.
        job: the job's number in a sweep, `2/9`; empty outside a sweep.
    """

    def __init__(self, outlook: Outlook, job: str = "") -> None:
        self.outlook, self.job = outlook, f"[{job}] " if job else ""
        self.bar: Any = None
        self._above = contextlib.ExitStack()  # the redirection of the log
        self._drawn = 0.0
        self._validated: tuple[int, str] | None = None  # the stage of the last validation, and its line

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step < self.outlook.steps:
            self._above.enter_context(logging_redirect_tqdm())
            self.bar = tqdm(
                total=self.outlook.steps, initial=trainer.global_step, file=sys.stderr,
                bar_format=f"{self.job}|{{bar}}| {{desc}}",
            )  # fmt: skip
            self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, StepwiseModule)
        if self._validated is not None and pl_module.stage != self._validated[0]:
            self._end_stage()
        if time.monotonic() - self._drawn >= REDRAW_SECONDS:
            self._draw(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer, pl_module, "validating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        self._validated = (
            pl_module.stage,
            f"stage {pl_module.stage}: {percent(float(trainer.callback_metrics['val/answer_accuracy']))} with {removed(pl_module, ' of ')} CoT tokens gone, "
            f"step {trainer.global_step:,} of {self.outlook.steps:,}",
        )
        self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule, doing: str = "") -> None:
        if self.bar is None:
            return
        assert isinstance(module, StepwiseModule)
        self._drawn = time.monotonic()
        step, steps = trainer.global_step, self.outlook.steps
        left = self.outlook.seconds(steps - step)
        parts = [
            f"{step:,}/{steps:,}",
            doing or (f"{duration(left)} left" if left else ""),
            f"{removed(module, '/')} gone",
            *([shown_accuracy(trainer)] if "val/answer_accuracy" in trainer.callback_metrics else []),
            *shown_losses(module),
        ]
        self.bar.n, self.bar.ncols = step, max(1, terminal.width(sys.stderr) - 1)
        room = self.bar.ncols - len(f"{self.job}|| ") - LEAST_BAR
        self.bar.set_description_str(fitting(parts, room), refresh=False)
        self.bar.refresh()

    def _end_stage(self) -> None:
        """Write the line of the validated stage."""
        if self._validated is not None and self.bar is not None:
            log.info("%s", self._validated[1])
        self._validated = None

    def _close(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the bar as it is and begin a new line. A second call does nothing."""
        if self.bar is None:
            return
        self._end_stage()
        self._draw(trainer, module)
        self._above.close()
        self.bar.close()
        sys.stderr.flush()  # tqdm leaves the end of its line in the buffer
        self.bar = None


def fitting(parts: list[str], room: int) -> str:
    """Join the parts that fit into so many columns; earlier ones come first."""
    text = ""
    for part in filter(None, parts):
        longer = f"{text}, {part}" if text else part
        text = longer if len(longer) <= room else text
    return text


class ProgressLog(Callback):
    """Logs a line of progress at every validation, and at least every minute. In a log file a redrawn bar is noise.

    Args:
        outlook: knows the number of steps and the time that is left. It comes before this callback.
    """

    def __init__(self, outlook: Outlook) -> None:
        self.outlook = outlook
        self._said = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._said = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step_ends = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if step_ends and time.monotonic() - self._said >= SILENT_SECONDS:
            self._say(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        self._say(trainer, pl_module, is_validated=True)

    def _say(self, trainer: L.Trainer, module: L.LightningModule, is_validated: bool = False) -> None:
        assert isinstance(module, StepwiseModule)
        self._said = time.monotonic()
        if not trainer.is_global_zero:
            return
        outlook, step = self.outlook, trainer.global_step
        parts = [f"step {step:,} of {outlook.steps:,}", clock(module.seconds)]
        if outlook.step_seconds:
            parts.append(f"{module.data.data.batch_size / outlook.step_seconds:,.0f} examples per second")
        if not trainer.should_stop and (left := outlook.seconds(outlook.steps - step)):
            parts.append(f"{duration(left)} left")
        found = [f"{removed(module, ' of ')} CoT tokens gone", *shown_losses(module)]
        if name := module.method.stage_name(module.stage):
            found.insert(0, f"stage {module.stage} ({name})")
        if is_validated:
            found.append(shown_accuracy(trainer))
        decision = f"; {module.schedule.decision}" if is_validated and module.schedule.decision else ""
        log.info("%s: %s%s", ", ".join(parts), ", ".join(found), decision)


def removed(module: StepwiseModule, of: str) -> str:
    """`3 of 8`: the tokens removed from the longest CoT, and all its tokens."""
    return f"{module.removed_tokens:,}{of}{module.data.limits.max_cot:,}"


def shown_losses(module: StepwiseModule) -> list[str]:
    """Each loss of the last step with its name: `train loss 0.123`. The trainer's metrics would keep those of an earlier stage."""
    losses = {key: value for key, value in module.trained.items() if key != "train/token_accuracy"}
    return [
        f"{'train loss' if key == 'train/loss' else key.removeprefix('train/')} {float(value):.3f}"
        for key, value in losses.items()
    ]


def shown_accuracy(trainer: L.Trainer) -> str:
    """`accuracy 95.0%`: the answer accuracy of the last validation."""
    return f"accuracy {percent(float(trainer.callback_metrics['val/answer_accuracy']))}"
