"""Write the checkpoints of a run: best, last, good, and those that are kept of its stages."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from torch.distributed.tensor import DTensor

from stepwise_pl.common.disk import link, put_in_place
from stepwise_pl.common.errors import Collapse
from stepwise_pl.data.stream import StreamLoader
from stepwise_pl.runs.folder import kept_checkpoints, kept_name
from stepwise_pl.runs.marks import checkpoint_written, training_begins
from stepwise_pl.training.guard import Guard
from stepwise_pl.training.lightning_gaps import validates_after
from stepwise_pl.training.module import StepwiseModule

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Writes `last.ckpt`, `best.ckpt` and `good.ckpt`. A crash while writing leaves the older file in place.

    `last.ckpt` is written every `every_n_steps` optimizer steps, after every validation, at
    the end, and when training fails or is stopped between two steps. A failure inside a step
    or a validation writes nothing: the resumed run repeats the work since the checkpoint.

    `best.ckpt` holds the weights of the best validation: the most removed tokens first, then
    the highest answer accuracy (`val/selection_score`). `good.ckpt` is a second name of the
    last `last.ckpt` that the guard found good.

    Weights that are not finite are never written.

    Args:
        folder: the folder of the checkpoints.
        every_n_steps: optimizer steps between two writes of `last.ckpt`.
        keep_every_removed: keep the weights, without the optimizer's state, of every N-th
            stage, from its last validation (`runs.folder.kept_name`); 0: none.
        keep_at_most: number of these to keep, the newest; None: all.
        guard: decides on `good.ckpt`; None: there is no `good.ckpt`.
        describe: writes the other files of the run folder, which loading a checkpoint needs;
            called when these files are missing.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        keep_every_removed: int = 0,
        describe: Callable[[], None] = lambda: None,
        keep_at_most: int | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.folder, self.last, self.best = folder, folder / "last.ckpt", folder / "best.ckpt"
        self.every_n_steps, self.keep_every_removed, self.describe = every_n_steps, keep_every_removed, describe
        self.keep_at_most, self.guard = keep_at_most, guard
        self.best_score = self.score = float("-inf")  # `score`: of the last validation
        self._saved_step = 0
        self._between_steps = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step
        assert isinstance(pl_module, StepwiseModule)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            training_begins(self.folder.parent)
            self._report_disk(pl_module)

    def _report_disk(self, module: StepwiseModule) -> None:
        """Log the most room that the checkpoints will take; warn if the disk has less."""
        weights = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        with_optimizer = 3 * weights  # AdamW keeps two moments of each weight
        kept = module.schedule.last // self.keep_every_removed + 1 if self.keep_every_removed else 0
        kept = min(kept, self.keep_at_most or kept)
        # While a checkpoint is written, the one before still takes its room.
        need = (1 + kept) * weights + (2 if self.guard is None else 3) * with_optimizer
        free = shutil.disk_usage(self.folder).free + bytes_in(self.folder)
        log.info("checkpoints take up to %s on the disk", size(need))
        if need > free:
            log.warning(
                "only %s are free in %s: keep fewer checkpoints (trainer.keep_every_removed, trainer.keep_at_most) or "
                "choose another run_dir", size(free), self.folder,
            )  # fmt: skip

    def on_train_batch_start(self, *args: Any) -> None:
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # the optimizer step has further micro-batches
        if validates_after(trainer, batch_idx):
            return  # the validation comes now, and saves; a run resumed from here would skip it
        self._between_steps = True
        if trainer.global_step % self.every_n_steps == 0:
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self.score = float(trainer.callback_metrics["val/selection_score"])
        # While accuracy is collapsing, the weights that were kept before stay as they are.
        collapsing = self.guard is not None and self.guard.acts and self.guard.low > 0
        better = self.score > self.best_score and not collapsing
        self.best_score = self.score if better else self.best_score
        if better:
            self._save(trainer, self.best, weights_only=True)
        assert isinstance(pl_module, StepwiseModule)
        if self.keep_every_removed and not collapsing and pl_module.stage % self.keep_every_removed == 0:
            stage = pl_module.stage
            name = kept_name(stage, pl_module.method.stage_name(stage), pl_module.removed_tokens)
            self._save(trainer, self.folder / f"{name}.ckpt", weights_only=True)
            if self.keep_at_most is not None and trainer.is_global_zero:
                self._drop_oldest(self.keep_at_most)
        good = self.guard is not None and self.guard.good
        self._save_last(trainer, self.folder / "good.ckpt" if good else None)
        self._between_steps = True

    def _drop_oldest(self, count: int) -> None:
        for path in kept_checkpoints(self.folder)[:-count]:
            path.unlink()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_last(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Save nothing if the disk or the weights have failed. Nor if a Ctrl-C came after the next batch was taken, but
        # before it was used: the resumed run would skip that batch.
        loader = trainer.train_dataloader
        taken = trainer.global_step * trainer.accumulate_grad_batches
        used_up = isinstance(loader, StreamLoader) and loader.handed_out == taken
        if self._between_steps and used_up and not isinstance(exception, OSError | Collapse):
            with contextlib.suppress(Collapse):
                self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer, also: Path | None = None) -> None:
        # Rank 0 looks for the file and tells the others, because all ranks must agree on whether to save.
        there = trainer.strategy.broadcast(self.last.exists())
        if also is not None or trainer.global_step != self._saved_step or not there:
            self._save(trainer, self.last, also=also)
            if trainer.is_global_zero:
                checkpoint_written(self.folder.parent)
            self._saved_step = trainer.global_step

    def _save(self, trainer: L.Trainer, path: Path, weights_only: bool = False, also: Path | None = None) -> None:
        try:
            self._write(trainer, path, weights_only, also)
        except FileNotFoundError:  # the run folder was removed at this very moment
            self._write(trainer, path, weights_only, also)

    def _write(self, trainer: L.Trainer, path: Path, weights_only: bool, also: Path | None) -> None:
        # Each process checks its own part of a sharded weight.
        weights = trainer.lightning_module.parameters()
        parts = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
        if not trainer.strategy.reduce_boolean_decision(all(bool(part.isfinite().all()) for part in parts)):
            step = trainer.global_step
            raise Collapse(f"the weights are not finite at step {step}", step, not_finite=True)
        if trainer.is_global_zero and not (self.folder.parent / "config.yaml").is_file():
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed the run folder
            self.describe()
        # Not straight to `path`: Lightning writes to the system's temporary folder and moves the file. Between two file
        # systems that move is a copy, which a crash would cut short.
        fresh = path.with_suffix(".tmp")
        assert isinstance(trainer.lightning_module, StepwiseModule)
        average = trainer.lightning_module.average
        # A checkpoint of weights alone holds the average, if there is one: that is the model that was validated.
        with average.in_place() if weights_only and average is not None else contextlib.nullcontext():
            trainer.save_checkpoint(fresh, weights_only=weights_only)
        if trainer.is_global_zero:
            # Link first. A run killed before `put_in_place` resumes from the older `last.ckpt`, and comes here again.
            if also is not None:
                link(fresh, also)
            put_in_place(fresh, path)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.score = state_dict["best_score"], state_dict["score"]


def bytes_in(folder: Path) -> int:
    """Bytes that the checkpoints in a folder take on the disk; a file with two names counts once."""
    files = [path.stat() for path in folder.glob("*.ckpt")]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())


def size(count: int) -> str:
    """A number of bytes for people, such as `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
