"""StepwiseModule: what Lightning trains."""

import math
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from types import FrameType
from typing import Any, TypedDict

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl import sharding
from stepwise_pl.batch import CoTBatch
from stepwise_pl.config import OptimizerConfig
from stepwise_pl.datamodule import CoTDataModule
from stepwise_pl.decoding import Targets, target_logits
from stepwise_pl.errors import Collapse, UserError
from stepwise_pl.evaluation import Bounds, Verifier, first_samples
from stepwise_pl.lora import has_adapters, trained
from stepwise_pl.metrics import DigitAccuracy, EvaluationMetrics, TokenSums, level_counts, token_sums
from stepwise_pl.optimizers import build_optimizer
from stepwise_pl.records import StageRecord
from stepwise_pl.removal import offsets, removal_count, remove
from stepwise_pl.schedules import Schedule

SAMPLES = 4  # right answers, and as many wrong ones, that are kept of a validation


class Rollback(TypedDict):
    """A decision of the guard (`stepwise_pl.guard`): what was seen, where training went back to, and what is slower since."""

    action: str  # halve, wait or learning_rate
    reason: str
    does: str
    at_step: int
    at_removed_tokens: int
    to_step: int
    to_removed_tokens: int


class StepwiseModule(L.LightningModule):
    """A causal LM whose chain of thought is removed while it trains (arXiv 2405.14838).

    At every optimizer step: ask the schedule how many CoT tokens are gone, remove them
    (and each example's random offset more) from the batch, and minimise the cross entropy
    of what is left. When more tokens are gone than before, the optimizer's moments are
    cleared.

    Args:
        model: any causal LM of transformers.
        tokenizer: its tokenizer; the end token separates prompt, CoT and answer.
        schedule: decides s(t).
        optimizer: its settings.
        seed: of the offsets.
        max_steps: where the learning rate's fall ends, if `optimizer.decay_steps` is set.
        config: of the run, in plain containers, to be kept in its checkpoints.

    Raises:
        Collapse: while training, a loss that is written down is not finite.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        schedule: Schedule,
        optimizer: OptimizerConfig | None = None,
        seed: int = 0,
        max_steps: int = -1,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # `from_pretrained` leaves evaluation mode on, as does an attempt that ended in a validation, and Lightning
        # trains in the mode it finds: without dropout.
        self.model, self.tokenizer, self.schedule = model.train(), tokenizer, schedule
        model.zero_grad(set_to_none=True)  # of a step that an attempt before has broken off
        # Frozen weights are not in a checkpoint.
        self.strict_loading = not has_adapters(model)
        self.optimizer_config = optimizer or OptimizerConfig()
        self.seed, self.max_steps, self.config = seed, max_steps, dict(config or {})
        self.removed = 0  # s(t), in units of the schedule, at most m_max
        self.reset_step = 0  # of the last optimizer reset
        self.rollbacks: list[Rollback] = []  # what the guard decided so far
        self._seconds, self._started = 0.0, time.monotonic()  # of training up to the checkpoint this one started from
        self.evaluation = EvaluationMetrics()
        self.stage: StageRecord | None = None  # the last validation
        # Of the micro-batches since the last optimizer step:
        self._step_sums: TokenSums | None = None
        self._step_counts: Tensor | None = None  # `level_counts`, for a closed-loop schedule
        self._rng: dict[str, Any] | None = None  # from a checkpoint, until training starts
        self.stop_asked = False  # of this process
        self.steps: int | None = None  # of the run that is tested; its trainer may be one that has done none of them

    @property
    def data(self) -> CoTDataModule:
        """The data module of the trainer at work."""
        data: CoTDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def attempt(self) -> int:
        """0, and one more for each time the guard has gone back."""
        return len(self.rollbacks)

    @property
    def seconds(self) -> float:
        """Spent on training and validation, over all processes that the run took; what was lost to kills is not in it."""
        return self._seconds + time.monotonic() - self._started

    @property
    def removed_tokens(self) -> int:
        """CoT tokens gone, from the longest CoT of the training set."""
        return self.data.limits.removed_tokens(self.removed)

    # The schedule

    def setup(self, stage: str) -> None:
        self.schedule.bind(self.data.steps_per_epoch, self.data.limits.max_removed)
        self.digits = DigitAccuracy(self.data.limits.longest_answer)
        if stage == "fit":
            self.removed = self.scheduled(0)

    def scheduled(self, step: int) -> int:
        """s(t), at most m_max."""
        return min(self.schedule.at(step), self.data.limits.max_removed)

    def on_train_epoch_start(self) -> None:
        self.follow_schedule()

    def on_train_batch_start(self, batch: CoTBatch, batch_idx: int) -> None:
        # Not called at the epoch's start alone: s grows within epochs, and a run that is
        # resumed inside one gets no `on_train_epoch_start`.
        self.follow_schedule()

    def follow_schedule(self) -> None:
        """Move to the schedule's s(t), reset the optimizer if s grew, and set the learning rate.

        Keyed on optimizer steps, so that it may be called any number of times within one.
        Growth is measured on s capped at m_max: once all CoT is gone, nothing is reset.
        """
        step = self.trainer.global_step
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        removed = self.scheduled(step)
        if removed > self.removed and self.schedule.reset_optimizer:
            # In place: a new optimizer would restart the learning rate and miss the next checkpoint.
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
            self.reset_step = step
        self.removed = removed
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * self.lr_factor(step)

    def lr_factor(self, step: int) -> float:
        """The learning rate at `step` as a fraction of the configured one."""
        warmup, decay = self.optimizer_config.warmup_steps, self.optimizer_config.decay_steps
        rewarmup = self.schedule.rewarmup_steps if self.reset_step else 0
        halved = sum(one["action"] == "learning_rate" for one in self.rollbacks)
        return 0.5**halved * min(
            1.0,
            (step + 1) / warmup if warmup else 1.0,
            (step - self.reset_step + 1) / rewarmup if rewarmup else 1.0,
            max(0, self.max_steps - step) / decay if decay else 1.0,
        )

    def offsets(self, batch: CoTBatch) -> Tensor:
        """o of each example of a training batch, [batch] int64."""
        smoothing = self.schedule.smoothing_at(self.schedule.time(self.trainer.global_step))
        return torch.from_numpy(offsets(batch.draw.numpy(), smoothing, self.seed))

    def remove(self, batch: CoTBatch, offset: Tensor | int = 0) -> CoTBatch:
        """The batch without the first (or last) s + o units of each CoT."""
        count = removal_count(self.removed, self.data.limits.max_removed, offset)
        return remove(batch, count, self.schedule.side, self.schedule.keep_position)

    # Training

    def configure_model(self) -> None:
        if self.sharded:
            sharding.shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every weight."""
        return isinstance(self.trainer.strategy, sharding.SharedWeights)

    def transfer_batch_to_device(self, batch: CoTBatch, device: torch.device, dataloader_idx: int) -> CoTBatch:
        # Tokens are removed on the host, where nothing has to wait for the device to learn a width or an index.
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.optimizer_config)

    def training_step(self, batch: CoTBatch, batch_idx: int) -> Tensor:
        offset = self.offsets(batch)
        batch = self.remove(batch, offset)
        targets = Targets.of(batch).to(self.device)
        logits = target_logits(self.model, targets)
        sums = token_sums(logits, targets.label)
        detached = TokenSums(*(value.detach() for value in sums))
        before = self._step_sums
        self._step_sums = detached if before is None else TokenSums(*map(torch.add, before, detached))
        if self.schedule.closed_loop:
            levels = self.data.limits.max_removed + 1
            level = (self.removed + offset).clamp(max=levels - 1)[batch.is_target.nonzero()[:, 0]]
            counts = level_counts(logits, targets.label, level.to(self.device), levels)
            self._step_counts = counts if self._step_counts is None else self._step_counts + counts
        if self._gradient_shares() == 1:
            return sums.loss / sums.targets
        # Targets of the other micro-batches and ranks are not known yet: a constant
        # divisor now, the right one in `on_before_optimizer_step`.
        return sums.loss / len(batch)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_asked = True

    def on_train_batch_end(self, outputs: Any, batch: CoTBatch, batch_idx: int) -> None:
        """Stop after a whole step, several processes after the same, once one is asked to; callbacks are through with it by now."""
        trainer = self.trainer
        step_ends = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if trainer.world_size == 1:
            # Lightning would stop after a micro-batch as well, with a step half done, which cannot be saved.
            if trainer.received_sigterm:
                self.stop_asked = True
            if self.stop_asked:  # otherwise a signal that comes right now would be taken back
                trainer._signal_connector.received_sigterm = step_ends
            return
        if not step_ends or trainer.val_check_batch == batch_idx + 1:
            return
        if trainer.strategy.reduce_boolean_decision(self.stop_asked, all=False):
            raise SIGTERMException

    def _gradient_shares(self) -> int:
        """Over how many micro-batches and ranks Lightning averages the gradient of one optimizer step."""
        return self.trainer.accumulate_grad_batches * self.trainer.world_size

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own refuses fused optimizers under mixed precision, in bf16 too, where no gradient is scaled.
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradient that of the mean over all target tokens of the step; log the step."""
        assert self._step_sums is not None
        sums = self._step_sums
        if self.trainer.world_size > 1:
            gathered = self.trainer.strategy.reduce(torch.stack([s.double() for s in sums]), reduce_op="sum")
            assert isinstance(gathered, Tensor)
            sums = TokenSums(*gathered.unbind())
            if self._step_counts is not None:
                self._step_counts = self.trainer.strategy.reduce(self._step_counts, reduce_op="sum")  # type: ignore[assignment]
        if self._gradient_shares() > 1:
            # Lightning's mean over micro-batches and ranks has divided the sum by all their examples.
            scale = self.data.data.batch_size / sums.targets
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        if self._step_counts is not None:
            self.schedule.observe_levels(self.trainer.global_step, *self._step_counts.tolist())
        self._step_sums = self._step_counts = None
        metrics = {"train/loss": sums.loss / sums.targets, "train/token_accuracy": sums.correct / sums.targets}
        step = self.trainer.global_step
        self.schedule.observe(step, metrics)
        # This hook runs inside the step: with it, one more is done.
        write = (step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        state = {"train/lr": optimizer.param_groups[0]["lr"], "schedule/reset_step": self.reset_step}
        self._log(step + 1, {**metrics, **state}, write)

    def _log(self, step: int, metrics: Mapping[str, Any], write: bool = True) -> None:
        """Log metrics as of `step` optimizer steps done, with the number of removed tokens they are plotted against."""
        self.log_dict(dict(metrics), logger=False)  # for callbacks
        if not write:
            return
        # Lightning writes a step's metrics after the checkpoint of that step: a run killed between lacks a row.
        # Of the last step done. Lightning's own count is another one where a run is resumed at its very end.
        epoch = max(0, step - 1) // self.data.steps_per_epoch
        where = {"attempt": self.attempt, "epoch": epoch, "schedule/removed_tokens": self.removed_tokens}
        row = {key: float(value) for key, value in {**where, **metrics}.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step)
        if not math.isfinite(loss := row.get("train/loss", 0.0)):
            raise Collapse(f"the training loss is {loss} at step {step}", step, not_finite=True)

    # Evaluation

    def validation_step(self, batch: CoTBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: CoTBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation()

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation()

    def _begin_evaluation(self) -> None:
        self.evaluation.reset()  # one before may have been broken off
        self.digits.reset()
        if self.sharded:
            sharding.gather(self.model)
        self._verifier = Verifier(self.model, self.tokenizer, self.data.data.eval_batch_size)

    def _evaluate(self, batch: CoTBatch) -> None:
        """Teacher-forced sums and greedy answers at s removed tokens, without offset."""
        batch = self.remove(batch)
        sums, proved = self._verifier.verify(batch)
        self.evaluation.update(sums)
        self.evaluation.update_answers([True] * len(proved))

    def on_validation_epoch_end(self) -> None:
        metrics = self._evaluated("val")
        # Best checkpoint: the most removed tokens first, then the highest accuracy.
        metrics["val/selection_score"] = 2.0 * self.removed + metrics["val/answer_accuracy"]
        self._log(self.trainer.global_step, metrics)
        self.stage = self._stage(metrics)
        self.schedule.observe(self.trainer.global_step, metrics)

    def on_test_epoch_end(self) -> None:
        self._log(self.trainer.global_step if self.steps is None else self.steps, self._evaluated("test"))

    def _evaluated(self, split: str) -> dict[str, Any]:
        bounds = Bounds.of(self.data.limits, self.removed)
        decoded = [one for _, one in self._verifier.decode(bounds.whole, bounds.asked)]
        self.evaluation.update_answers([one.right for one in decoded], [one.right_any_length for one in decoded])
        if self.sharded:
            sharding.release(self.model)
        metrics = {f"{split}/{name}": value.float() for name, value in self.evaluation.compute().items()}
        self.evaluation.reset()
        return metrics

    def _stage(self, metrics: Mapping[str, Any]) -> StageRecord:
        """What stages.jsonl says of a validation that is over; on every process the same."""
        self.digits.update(self._verifier.digit_counts)
        # Rounded as in metrics.csv.
        accuracy, any_length = (
            float(f"{float(metrics[f'val/{key}']):.7g}") for key in ("answer_accuracy", "answer_accuracy_any_length")
        )
        return {
            "step": self.trainer.global_step,
            "attempt": self.attempt,
            "removed_tokens": self.removed_tokens,
            "examples": round(float(metrics["val/examples"])),
            "accuracy": accuracy,
            "accuracy_any_length": any_length,
            "digits": self.digits.compute().reshape(-1).tolist(),  # of a single one torchmetrics makes a number
            "samples": first_samples(self._verifier, self.data.encoded["validation"], SAMPLES, self._everywhere),
        }

    def _everywhere(self, found: list[Any]) -> list[Any]:
        """What all processes have found, one after the other."""
        if self.trainer.world_size == 1:
            return found
        of_all: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(of_all, found)
        return list(chain.from_iterable(of_all))

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        step = self.trainer.global_step
        if not self.strict_loading:
            own = trained(self)
            checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in own}
        checkpoint["stepwise"] = {
            "removed": self.removed,
            "limits": asdict(self.data.limits),
            "reset_step": self.reset_step,
            "schedule": self.schedule.save(step),
            "rollbacks": list(self.rollbacks),
            "seconds": self.seconds,
            "config": self.config,
            # Dropout's generators; everything else random is a function of the seed.
            "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["stepwise"]
        if not {"removed", "rollbacks"} <= state.keys():
            raise UserError("the checkpoint was written by another version of stepwise_pl, which this one cannot read")
        # Loading without `strict` would not tell. Sharded weights are in place by now, and cannot be looked at here.
        if not self.sharded and not trained(self).keys() <= checkpoint["state_dict"].keys():
            raise UserError("the checkpoint lacks some of the weights that are trained; model.lora has changed since")
        self.removed, self.reset_step = state["removed"], state["reset_step"]
        self.rollbacks, self._seconds = list(state["rollbacks"]), state["seconds"]
        self._rng = state["rng"]
        self.schedule.restore(state["schedule"])

    def on_train_start(self) -> None:
        self._started = time.monotonic()
        if self.trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            # Lightning's own handler lets processes talk to each other wherever the signal finds them, among them inside
            # a gather of shared weights, which then waits for ever.
            signal.signal(signal.SIGTERM, self._ask_to_stop)
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if len(self._rng["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._rng["cuda"])
            self._rng = None
