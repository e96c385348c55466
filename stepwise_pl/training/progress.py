"""Record stages and show progress during training, as a bar or as lines of a log."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from stepwise_pl.runs.records import StagesFile
from stepwise_pl.training.checkpoints import log
from stepwise_pl.training.module import StepwiseModule


class StageRecords(Callback):
    """Writes a line of stages.jsonl at every validation while training."""

    def __init__(self, path: Path) -> None:
        self.file = StagesFile(path)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        if trainer.is_global_zero and trainer.state.fn == "fit" and pl_module.record is not None:
            self.file.append(pl_module.record)


class StageProgressBar(TQDMProgressBar):
    """Shows removed tokens, loss and accuracy on a terminal. `StageLog` is for log files.

    Args:
        job: the job's number in a sweep, `2/9`; empty outside a sweep.
    """

    def __init__(self, job: str = "") -> None:
        super().__init__(refresh_rate=5)
        self.job = {"job": job} if job else {}

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        assert isinstance(pl_module, StepwiseModule)
        decision = {"schedule": found} if (found := pl_module.schedule.decision) else {}
        return {**self.job, **progress(trainer, pl_module), **decision}


class StageLog(Callback):
    """Logs one line of progress at every validation. In a log file a redrawn bar is noise."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shown = ", ".join(f"{key} {value}" for key, value in progress(trainer, pl_module).items())
        assert isinstance(pl_module, StepwiseModule)
        decision = f"; {found}" if (found := pl_module.schedule.decision) else ""
        log.info("epoch %d, step %d: %s%s", trainer.current_epoch, trainer.global_step, shown, decision)


def progress(trainer: L.Trainer, module: L.LightningModule) -> dict[str, str]:
    """Removed tokens, loss and accuracy of the run, as text for people."""
    assert isinstance(module, StepwiseModule)
    shown = {"removed": f"{module.removed_tokens}/{module.data.limits.max_cot}"}
    for name, key in (("loss", "train/loss"), ("accuracy", "val/answer_accuracy")):
        if key in trainer.callback_metrics:
            shown[name] = f"{float(trainer.callback_metrics[key]):.3f}"
    return shown
