"""StepwiseModule: what Lightning trains."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl.common.errors import Collapse, UserError
from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.evaluation.metrics import DigitAccuracy, EvaluationMetrics
from stepwise_pl.evaluation.validation import Validation
from stepwise_pl.evaluation.verifier import Bounds
from stepwise_pl.methods import Losses, Method, Stepwise
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.lora import has_adapters, trained
from stepwise_pl.runs.records import Rollback, StageRecord
from stepwise_pl.schedules import Schedule
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.training import between_steps, sharding
from stepwise_pl.training.optimizers import build_optimizer, lr_factor
from stepwise_pl.training.ranks import everywhere
from stepwise_pl.training.step_sums import StepSums


class StepwiseModule(L.LightningModule):
    """A causal LM whose chain of thought is removed while it trains (arXiv 2405.14838).

    At every optimizer step the schedule says which stage it is, and the method says what is
    read, written and minimised there. When the stage has grown, the optimizer's moments are
    cleared.

    Args:
        model: any causal LM of transformers.
        tokenizer: its tokenizer; the end token separates prompt, CoT and answer.
        schedule: decides s(t).
        optimizer: its settings.
        seed: of offsets and stage mixing.
        max_steps: where the learning rate's fall ends, if `optimizer.decay_steps` is set.
        config: of the run, in plain containers, to be kept in its checkpoints.
        method: decides what a stage means.

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
        method: Method | None = None,
    ) -> None:
        super().__init__()
        # `from_pretrained` leaves evaluation mode on, as does an attempt that ended in a validation, and Lightning
        # trains in the mode it finds: without dropout.
        self.model, self.tokenizer, self.schedule = model.train(), tokenizer, schedule
        model.zero_grad(set_to_none=True)  # of a step that an attempt before has broken off
        self.method = method or Stepwise()
        self.extra = self.method.extra(model)
        self.learner = Learner(model, int(tokenizer.eos_token_id), self.method, self.extra)
        # Frozen weights are not in a checkpoint.
        self.strict_loading = not has_adapters(model)
        self.optimizer_config = optimizer or OptimizerConfig()
        self.seed, self.max_steps, self.config = seed, max_steps, dict(config or {})
        self.stage = 0  # s(t), at most the last stage
        self.reset_step = 0  # of the last optimizer reset
        self.rollbacks: list[Rollback] = []  # decisions of the guard so far
        self._seconds, self._started = 0.0, time.monotonic()  # of training up to the checkpoint this one started from
        self.evaluation = EvaluationMetrics()
        self.record: StageRecord | None = None  # of the last validation
        self.sums = StepSums()  # of the micro-batches since the last optimizer step
        self._counted = (-1, 0)  # the optimizer step of `step_targets`, and its targets
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
        limits = self.data.limits
        return limits.removed_tokens(self.method.removed(self.stage, limits))

    # The schedule

    def setup(self, stage: str) -> None:
        self.schedule.bind(self.data.steps_per_epoch, self.method.stages(self.data.limits))
        self.digits = DigitAccuracy(self.data.limits.longest_answer)
        if stage == "fit":
            self.stage = self.schedule.stage(0)

    def on_train_epoch_start(self) -> None:
        self.follow_schedule()

    def on_train_batch_start(self, batch: CoTBatch, batch_idx: int) -> None:
        # Not called at the epoch's start alone: s grows within epochs, and a run that is
        # resumed inside one gets no `on_train_epoch_start`.
        self.follow_schedule()

    def follow_schedule(self) -> None:
        """Move to the schedule's s(t), reset the optimizer if s grew, and set the learning rate.

        Keyed on optimizer steps, so that it may be called any number of times within one.
        Growth is measured on s capped at the last stage: once all CoT is gone, nothing is reset.
        """
        step = self.trainer.global_step
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        stage = self.schedule.stage(step)
        if stage > self.stage and self.schedule.reset_optimizer:
            # In place: a new optimizer would restart the learning rate and miss the next checkpoint.
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
            self.reset_step = step
        self.stage = stage
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * self.lr_factor(step)

    def lr_factor(self, step: int) -> float:
        """The learning rate at `step` as a fraction of the configured one."""
        halved = sum(rollback["action"] == "learning_rate" for rollback in self.rollbacks)
        rewarmup = self.schedule.rewarmup_steps if self.reset_step else 0
        return 0.5**halved * lr_factor(self.optimizer_config, step, self.max_steps, self.reset_step, rewarmup)

    # Training

    def configure_model(self) -> None:
        if self.sharded and self.extra is not None:
            raise UserError(
                f"trainer.strategy=fsdp2: method={self.method.kind} trains modules of its own, which are not shared out; "
                "trainer.strategy=ddp"
            )
        if self.sharded:
            self.learner.head = sharding.shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every weight."""
        return isinstance(self.trainer.strategy, sharding.SharedWeights)

    def transfer_batch_to_device(self, batch: CoTBatch, device: torch.device, dataloader_idx: int) -> CoTBatch:
        # Tokens are removed on the host, where nothing has to wait for the device to learn a width or an index.
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.optimizer_config, self.extra)

    def training_step(self, batch: CoTBatch, batch_idx: int) -> Tensor:
        stage = self.schedule.spread(batch.draw.numpy(), self.trainer.global_step, self.seed)
        losses = self.method.loss(self.learner, batch, stage)
        self.sums.add(losses.scored, stage, self.schedule.closed_loop)
        return self.step_mean(losses, batch)

    def step_mean(self, losses: Losses, batch: CoTBatch) -> Tensor:
        """This micro-batch's part of the mean over all targets, and examples, of the optimizer step."""
        # Lightning averages over micro-batches and ranks, which has to be a sum here.
        shares = self.trainer.accumulate_grad_batches * self.trainer.world_size
        targets = len(losses.scored.label) if shares == 1 else self.step_targets(batch)
        mean = losses.scored.loss / targets
        for term in losses.more.values():
            mean = mean + term / self.data.data.batch_size
        return mean if shares == 1 else mean * shares

    def step_targets(self, batch: CoTBatch) -> int:
        """The targets of the whole optimizer step that a micro-batch belongs to, all its ranks and micro-batches together.

        They are known before the others are seen, because the stream is a function of seed and draw.
        """
        number = int(batch.draw[0]) // self.data.data.batch_size
        if self._counted[0] != number:
            whole = self.data.whole_step(number)
            stage = self.schedule.spread(whole.draw.numpy(), self.trainer.global_step, self.seed)
            self._counted = number, int(self.method.view(self.learner, whole, stage).is_target.sum())
        return self._counted[1]

    def on_train_batch_end(self, outputs: Any, batch: CoTBatch, batch_idx: int) -> None:
        between_steps.stop_between_steps(self.trainer, batch_idx, self.stop_asked)

    def on_train_end(self) -> None:
        between_steps.stop_if_asked(self.trainer, self.stop_asked)

    def _note_stop(self) -> None:
        self.stop_asked = True

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
        """Let the schedule see the step; log it."""
        step = self.trainer.global_step
        metrics, levels = self.sums.end(self.trainer)
        if levels is not None:
            self.schedule.observe_levels(step, *levels)
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

    # Evaluation: at s(t), without smoothing or mixing

    def validation_step(self, batch: CoTBatch, batch_idx: int) -> None:
        self.validation.add(batch, Stage(self.stage, self.schedule.last))

    def test_step(self, batch: CoTBatch, batch_idx: int) -> None:
        self.validation.add(batch, Stage(self.stage, self.schedule.last))

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation()

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation()

    def _begin_evaluation(self) -> None:
        if self.sharded:
            sharding.gather(self.model)
        self.validation = Validation(self.learner, self.tokenizer, self.evaluation, self.data.data.eval_batch_size)

    def on_validation_epoch_end(self) -> None:
        step, metrics = self.trainer.global_step, self._evaluated("val")
        # Best checkpoint: the most removed tokens first, then the highest accuracy.
        metrics["val/selection_score"] = 2.0 * self.stage + metrics["val/answer_accuracy"]
        self._log(step, metrics)
        where = {"step": step, "attempt": self.attempt, "removed_tokens": self.removed_tokens}
        examples = self.data.encoded["validation"]
        self.record = self.validation.record(where, metrics, self.digits, examples, partial(everywhere, self.trainer))
        self.schedule.observe(step, metrics)

    def on_validation_end(self) -> None:
        # Callbacks have saved by now. A validation that is due after every step would put a stop off for ever.
        if self.trainer.state.fn == "fit":
            between_steps.stop_if_asked(self.trainer, self.stop_asked)

    def on_test_epoch_end(self) -> None:
        self._log(self.trainer.global_step if self.steps is None else self.steps, self._evaluated("test"))

    def _evaluated(self, split: str) -> dict[str, Any]:
        list(self.validation.decode(Bounds.of(self.data.limits, self.method.removed(self.stage, self.data.limits))))
        if self.sharded:
            sharding.release(self.model)
        metrics = {f"{split}/{name}": value.float() for name, value in self.evaluation.compute().items()}
        self.evaluation.reset()
        return metrics

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        step = self.trainer.global_step
        if not self.strict_loading:
            own = trained(self)
            checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in own}
        checkpoint["stepwise"] = {
            "removed": self.stage,
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
        self.stage, self.reset_step = state["removed"], state["reset_step"]
        self.rollbacks, self._seconds = list(state["rollbacks"]), state["seconds"]
        self._rng = state["rng"]
        self.schedule.restore(state["schedule"])

    def on_train_start(self) -> None:
        self._started = time.monotonic()
        between_steps.take_signals(self.trainer, self._note_stop)
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if len(self._rng["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._rng["cuda"])
            self._rng = None
