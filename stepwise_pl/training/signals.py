"""Signals that may tell a collapse before accuracy does: `trainer.log_signals_every_n_steps`.

The paper leaves open how instability can be seen early (arXiv 2405.14838, section 5). experiments/early_warning measures how early
and how surely each of these signals tells it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from stepwise_pl.common.errors import UserError
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.models.learner import Scored
from stepwise_pl.models.lora import trained
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.training.module import StepwiseModule

PROBLEMS = 64  # validation problems behind the losses and accuracies, the first ones each time


class Signals(Callback):
    """Logs the signals of every N-th optimizer step, as `signals/<name>`. Training itself is not changed.

    - `gradient_norm`: norm of the whole gradient, before it is clipped.
    - `update_size`: norm of the step's change of the weights, as a share of the norm of the weights.
    - `loss`: mean loss of the targets at stage s(t).
    - `first_token_loss`: mean loss of the first token that is left to write: of the CoT, and at the last stage of the answer.
    - `next_stage_loss`: mean loss of the targets at s(t) + 1, which the model meets through offsets; not at the last stage, nor
      where a method names its stages.
    - `accuracy`: share of problems with all answer tokens predicted, given the targets before them; with the weights that train.
    - `averaged_accuracy`: the same with the averaged weights (`optimizer.average`), if there are any.

    The first two are of the training step, the others of the first 64 validation problems after it, in evaluation mode. These take
    about as long as one training step of 64 examples.

    Args:
        every_n_steps: optimizer steps from one measurement to the next.

    Raises:
        UserError: at the start of training, if weights are shared out (`trainer.strategy=fsdp2`).
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._gradient_norm: Tensor | None = None
        # The trained weights before a step that is measured; empty outside of such a step.
        self._before: list[Tensor] = []
        self._problems: CoTBatch | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StepwiseModule)
        if pl_module.sharded:
            raise UserError(
                "trainer.log_signals_every_n_steps: needs whole weights; set it to 0, or trainer.strategy=ddp"
            )
        self._problems = fixed_problems(pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % self.every_n_steps:
            return
        weights = list(trained(pl_module).values())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self._gradient_norm = get_total_norm(gradients)
        self._before = [weight.detach().clone() for weight in weights]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Of several micro-batches only the last makes a step, and sets the weights before it.
        if not self._before:
            return
        assert isinstance(pl_module, StepwiseModule)
        weights = [weight.detach() for weight in trained(pl_module).values()]
        changes = [now - before for now, before in zip(weights, self._before, strict=True)]
        found = {
            "gradient_norm": self._gradient_norm,
            "update_size": get_total_norm(changes) / get_total_norm(self._before),
            **self._of_problems(pl_module),
        }
        self._before = []
        pl_module.log_row(trainer.global_step, {f"signals/{name}": value for name, value in found.items()})

    @torch.no_grad()
    def _of_problems(self, module: StepwiseModule) -> dict[str, Tensor]:
        """The losses and accuracies on the fixed problems."""
        problems, learner = self._problems, module.learner
        assert problems is not None
        now, last = module.stage, module.schedule.last
        with evaluation_mode(module):
            view = learner.method.view(learner, problems, Stage(now, last))
            scored = learner.score(view)
            loss = F.cross_entropy(scored.logits.float(), scored.label, reduction="none")
            # Targets come row by row, and in the order of their columns.
            is_first = torch.ones_like(scored.row, dtype=torch.bool)
            is_first[1:] = scored.row[1:] != scored.row[:-1]
            found = {
                "loss": loss.mean(), "first_token_loss": loss[is_first.to(loss.device)].mean(),
                "accuracy": answers_predicted(view, scored),
            }  # fmt: skip
            # The named stages of ICoT-KD differ in what trains, and not in the targets.
            if now < last and not learner.method.stage_names:
                following = learner.score(learner.method.view(learner, problems, Stage(now + 1, last)))
                found["next_stage_loss"] = following.loss / len(following.label)
            if module.average is not None:
                with module.average.in_place():
                    found["averaged_accuracy"] = answers_predicted(view, learner.score(view))
        return found


def fixed_problems(module: StepwiseModule) -> CoTBatch:
    """Return the first validation problems, at most 64, with their whole CoT."""
    validation = module.data.encoded["validation"]
    return validation.collate(np.arange(min(PROBLEMS, len(validation))))


@torch.no_grad()
def early_accuracy(module: StepwiseModule) -> float:
    """Return the signal `accuracy` of the module as it is: by the weights that train, at the present stage."""
    problems, learner = fixed_problems(module), module.learner
    with evaluation_mode(module):
        view = learner.method.view(learner, problems, Stage(module.stage, module.schedule.last))
        return float(answers_predicted(view, learner.score(view)))


def answers_predicted(view: CoTBatch, scored: Scored) -> Tensor:
    """Return the share of the view's examples with every answer token predicted, given the targets before it; a scalar."""
    is_answer = view.part[scored.row, scored.column] == Part.ANSWER
    wrong_rows = set(scored.row[is_answer & ~scored.right.to(scored.row.device)].tolist())
    return torch.tensor(1 - len(wrong_rows) / len(view))


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside of this context there is no dropout, so that no random number of training is used up."""
    module.eval()
    try:
        yield
    finally:
        module.train()
