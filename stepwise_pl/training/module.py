"""StepwiseModule, the LightningModule of every run."""

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
from stepwise_pl.data.limits import Limits
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.evaluation.answers import Decoded
from stepwise_pl.evaluation.metrics import DigitAccuracy, EvaluationMetrics
from stepwise_pl.evaluation.validation import Validation
from stepwise_pl.evaluation.verifier import Bounds
from stepwise_pl.methods import Method, Stepwise
from stepwise_pl.models.checkpoint import kept_weights
from stepwise_pl.models.learner import Learner
from stepwise_pl.models.lora import has_adapters, trained
from stepwise_pl.models.own import own_modules
from stepwise_pl.runs.records import Rollback, StageRecord
from stepwise_pl.schedules import Schedule
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.training import sharding
from stepwise_pl.training.averaging import WeightAverage
from stepwise_pl.training.between_steps import Stop
from stepwise_pl.training.eval_size import set_eval_batch_size
from stepwise_pl.training.optimizers import build_optimizer, lr_factor
from stepwise_pl.training.ranks import everywhere
from stepwise_pl.training.step_sums import StepMean, StepSums


class StepwiseModule(L.LightningModule):
    """A causal LM whose chain of thought is removed while it trains (arXiv 2405.14838).

    At every optimizer step the schedule gives the stage s(t), and the method turns the stage into
    inputs, targets and loss. When the stage grows, the optimizer's moments are cleared.

    Args:
        model: any causal LM of transformers.
        tokenizer: the model's tokenizer; its end token separates prompt, CoT and answer.
        schedule: decides s(t).
        optimizer: the settings of the optimizer.
        seed: the seed of offsets and stage mixing.
        max_steps: optimizer steps of the whole run, at whose end the learning rate's fall ends (`optimizer.decay`).
        config: the run's configuration in plain containers, kept in its checkpoints.
        method: decides the meaning of a stage.
        limits: the lengths of CoTs, by which a method learns inputs of its own; None: the method learns none.

    Raises:
        Collapse: while training, a logged loss is not finite.
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
        limits: Limits | None = None,
    ) -> None:
        super().__init__()
        # `from_pretrained`, or an attempt that ended in a validation, leaves the model in evaluation mode. Lightning
        # keeps the mode that it finds, and would train without dropout.
        self.model, self.tokenizer, self.schedule = model.train(), tokenizer, schedule
        model.zero_grad(set_to_none=True)  # an earlier attempt may have broken off inside a step
        self.method = method or Stepwise()
        self.optimizer_config = optimizer or OptimizerConfig()
        self.seed, self.max_steps, self.config = seed, max_steps, dict(config or {})
        self.extra, self.tokens = own_modules(self.method, model, limits, seed)
        self.learner = Learner(model, int(tokenizer.eos_token_id), self.method, self.extra, self.tokens)
        # Checkpoints lack frozen weights.
        self.strict_loading = not has_adapters(model)
        self.stage = 0  # s(t), at most the last stage
        self.reset_step = 0  # optimizer step of the last reset
        self.rollbacks: list[Rollback] = []  # the guard's decisions so far
        self._seconds, self._started = 0.0, time.monotonic()  # seconds up to the checkpoint that training resumed from
        # Tokens of all forward passes of training so far: the budget that methods share. None: a part was not counted.
        self.tokens_read: int | None = 0
        self.trained: Mapping[str, Tensor] = {}  # loss and further terms of the last step
        self.evaluation = EvaluationMetrics()
        self.record: StageRecord | None = None  # the record of the last validation
        self.tested: dict[int, Decoded] = {}  # the answers of the last test, by the index of the problem
        self.sums = StepSums(self.learner)
        self.step_mean = StepMean(self.learner, self.method, schedule, seed)
        self.stop = Stop()
        decay = self.optimizer_config.average
        self.average = WeightAverage(trained(self), decay) if decay else None
        self._rng: dict[str, Any] | None = None  # the checkpoint's generators, until training starts
        # Optimizer steps of the run, if a trainer of its own tests it; None: the trainer counts them.
        self.steps: int | None = None

    @property
    def data(self) -> CoTDataModule:
        """The data module of the present trainer."""
        data: CoTDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def attempt(self) -> int:
        """The number of times that the guard has gone back."""
        return len(self.rollbacks)

    @property
    def seconds(self) -> float:
        """Seconds of training and validation since the run began, without time that was lost to kills."""
        return self._seconds + time.monotonic() - self._started

    @property
    def removed_tokens(self) -> int:
        """CoT tokens removed from the longest CoT of the training set."""
        limits = self.data.limits
        return limits.removed_tokens(self.method.removed(self.stage, limits))

    # The schedule

    def setup(self, stage: str) -> None:
        self.schedule.bind(self.data.steps_per_epoch, self.method.last_stage(self.data.limits))
        self.digits = DigitAccuracy(self.data.limits.longest_answer)
        set_eval_batch_size(self.trainer, self.model, self.method, trains=stage == "fit")
        if stage == "fit":
            self.stage = self.schedule.stage(0)

    def on_train_epoch_start(self) -> None:
        self.follow_schedule()

    def on_train_batch_start(self, batch: CoTBatch, batch_idx: int) -> None:
        # s also grows within epochs, and a run that resumes inside an epoch gets no `on_train_epoch_start`.
        self.follow_schedule()
        if self.learner.compiled_blocks is not None:
            self.learner.compiled_blocks.begin_step(self.optimizers(use_pl_optimizer=False))  # type: ignore[arg-type]

    def follow_schedule(self) -> None:
        """Move to the schedule's s(t), reset the optimizer if s grew, and set the learning rate.

        All follows from the number of optimizer steps, so further calls within a step change nothing.
        s is capped at the last stage: once all CoT is gone, there is no reset.
        """
        step = self.trainer.global_step
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        stage = self.schedule.stage(step)
        if stage > self.stage and self.schedule.reset_optimizer:
            # The moments are cleared in place. Lightning would not save a new optimizer.
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
        if self.sharded and not (self.extra is None and self.tokens is None):
            raise UserError(
                f"trainer.strategy=fsdp2: method={self.method.kind} trains modules of its own, and FSDP2 does not share these out; "
                "choose trainer.strategy=ddp"
            )
        if self.sharded:
            self.learner.head = sharding.shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]

    @property
    def sharded(self) -> bool:
        """Whether each process holds only its part of every weight."""
        return isinstance(self.trainer.strategy, sharding.SharedWeights)

    def transfer_batch_to_device(self, batch: CoTBatch, device: torch.device, dataloader_idx: int) -> CoTBatch:
        # Tokens are removed on the host, which need not wait for a GPU to learn a width or an index.
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.optimizer_config, self.extra, self.tokens)

    def training_step(self, batch: CoTBatch, batch_idx: int) -> Tensor:
        stage = self.schedule.spread(batch.draw.numpy(), self.trainer.global_step, self.seed)
        losses = self.method.loss(self.learner, batch, stage)
        self.sums.add(losses)
        return self.step_mean.part(losses, batch, self.trainer, self.data)

    def on_train_batch_end(self, outputs: Any, batch: CoTBatch, batch_idx: int) -> None:
        self.stop.obey_after_step(self.trainer, batch_idx)

    def on_train_end(self) -> None:
        self.stop.obey(self.trainer)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own clipping refuses fused optimizers under mixed precision, even in bf16, which scales no gradient.
        if gradient_clip_val:
            # These are all weights that are trained. To look for them in all modules takes longer.
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            torch.nn.utils.clip_grad_norm_(weights, gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # In `on_train_batch_end` it would be too late: the step's checkpoint is written before.
        if self.average is not None:
            self.average.follow()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Show the step to the schedule, and log it."""
        step = self.trainer.global_step
        metrics, tokens_read = self.sums.end(self.trainer, self.data.data.batch_size)
        self.tokens_read = None if self.tokens_read is None else self.tokens_read + tokens_read
        self.trained = metrics
        self.schedule.observe(step, metrics)
        # The hook runs inside step number `step` (from 0), so `step + 1` steps are done after it.
        write = (step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        state = {"train/lr": optimizer.param_groups[0]["lr"], "schedule/reset_step": self.reset_step}
        self.log_row(step + 1, {**metrics, **state}, write)

    def log_row(self, step: int, metrics: Mapping[str, Any], write: bool = True) -> None:
        """Log metrics after `step` optimizer steps. `write`: into the loggers too, with attempt, epoch and removed tokens."""
        # `self.log` would take a large part of the host's time for a step, and wait for the device while it copies numbers there.
        self.trainer.callback_metrics.update({key: torch.as_tensor(value) for key, value in metrics.items()})
        if not write:
            return
        # The loggers are called here, because Lightning would call them after it has saved the step's checkpoint: a run
        # killed between the two would lack a row. The epoch is that of the last step done. Lightning's own count differs
        # if a run is resumed at its very end.
        epoch = max(0, step - 1) // self.data.steps_per_epoch
        position = {"attempt": self.attempt, "epoch": epoch, "schedule/removed_tokens": self.removed_tokens}
        if self.method.stage_names:
            position["schedule/stage"] = self.stage
        if self.tokens_read is not None:
            position["tokens_read"] = self.tokens_read
        row = {key: float(value) for key, value in {**position, **metrics}.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step)
        for key, value in row.items():
            if key.startswith("train/") and not math.isfinite(value):
                name = "training loss" if key == "train/loss" else key
                raise Collapse(f"the {name} is {value} at step {step}", step, not_finite=True)

    # Evaluation: at s(t), without smoothing or mixing

    def validation_step(self, batch: CoTBatch, batch_idx: int) -> None:
        self.validation.add(batch, Stage(self.stage, self.schedule.last))

    def test_step(self, batch: CoTBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_start(self) -> None:
        if self.average is not None and self.trainer.state.fn == "fit":
            self.average.put_in_place()
        if self.sharded:
            sharding.gather(self.model)
        self.validation = Validation(
            self.learner, self.tokenizer, self.evaluation, self.data.eval_batch_size,
            keeps_answers=self.trainer.state.fn == "test",
        )  # fmt: skip

    def on_validation_epoch_end(self) -> None:
        step, metrics = self.trainer.global_step, self._evaluated("val")
        # Best checkpoint: the most removed tokens first, then the highest accuracy. A stage whose accuracy is not what the
        # schedule is to keep comes after all others.
        accuracy = metrics["val/answer_accuracy"]
        is_kept_stage = self.schedule.is_kept_stage(float(accuracy))
        metrics["val/selection_score"] = accuracy + (2.0 * self.stage if is_kept_stage else -2.0)
        self.log_row(step, metrics)
        position: dict[str, Any] = {"step": step, "attempt": self.attempt, "removed_tokens": self.removed_tokens}
        if name := self.method.stage_name(self.stage):
            position["stage"] = name
        examples = self.data.encoded["validation"]
        self.record = self.validation.record(
            position, metrics, self.digits, examples, partial(everywhere, self.trainer)
        )
        self.schedule.observe(step, metrics)

    def on_validation_end(self) -> None:
        # The checkpoint is saved by now. Without a stop here, a validation after every step would put the stop off for ever.
        if self.trainer.state.fn == "fit":
            self.stop.obey(self.trainer)

    def on_test_epoch_end(self) -> None:
        self.log_row(self.trainer.global_step if self.steps is None else self.steps, self._evaluated("test"))
        self.tested = dict(everywhere(self.trainer, list((self.validation.answers or {}).items())))

    def _evaluated(self, split: str) -> dict[str, Any]:
        list(self.validation.decode(Bounds.of(self.data.limits, self.method.removed(self.stage, self.data.limits))))
        if self.sharded:
            sharding.release(self.model)
        if self.average is not None:
            self.average.take_back()
        metrics = {f"{split}/{name}": value.float() for name, value in self.evaluation.compute().items()}
        self.evaluation.reset()
        return metrics

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        step = self.trainer.global_step
        if not self.strict_loading:
            own = trained(self)
            checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in own}
        average = {}
        # A checkpoint whose weights are the average needs no second copy.
        if self.average is not None and not self.average.is_in_place:
            average = {"average": self.average.weights}
        checkpoint["stepwise"] = {
            **average,
            "removed": self.stage,
            "limits": asdict(self.data.limits),
            "reset_step": self.reset_step,
            "schedule": self.schedule.save(step),
            "rollbacks": list(self.rollbacks),
            "seconds": self.seconds,
            "tokens_read": self.tokens_read,
            "config": self.config,
            # Dropout draws from these generators. All other random numbers are functions of the seed.
            "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["stepwise"]
        if not {"removed", "rollbacks"} <= state.keys():
            raise UserError("the checkpoint was written by another version of stepwise_pl, which this one cannot read")
        # Loading without `strict` would not find this. Sharded weights are loaded by now, and cannot be checked here.
        if not self.sharded and not trained(self).keys() <= checkpoint["state_dict"].keys():
            raise UserError("the checkpoint lacks some of the weights that are trained; model.lora has changed since")
        self.stage, self.reset_step = state["removed"], state["reset_step"]
        self.rollbacks, self._seconds = list(state["rollbacks"]), state["seconds"]
        self.tokens_read = state.get("tokens_read")  # older versions did not count
        self._rng = state["rng"]
        self.schedule.restore(state["schedule"])
        if self.trainer.state.fn != "fit":
            checkpoint["state_dict"] = kept_weights(checkpoint)
        elif self.average is not None and "average" in state:
            self.average.load(state["average"])

    def on_train_start(self) -> None:
        self._started = time.monotonic()
        self.stop.take_signals(self.trainer)
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if len(self._rng["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._rng["cuda"])
            self._rng = None
