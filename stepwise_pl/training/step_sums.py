"""Sums and mean of an optimizer step over its micro-batches and ranks."""

import lightning as L
import torch
from torch import Tensor

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.methods import Losses, Method
from stepwise_pl.models.learner import Learner, Scored
from stepwise_pl.schedules import Schedule


def require_losses(method: Method, losses: Losses) -> None:
    """Raise `UserError` unless the result of `Method.loss` can be summed, and trained on."""
    method.require_type("loss", losses, Losses, "Losses(learner.score(self.view(learner, batch, stage)))")
    terms = dict(losses.more)
    if losses.scored is not None:
        method.require_type("loss: scored", losses.scored, Scored, "learner.score(view)")
        terms["scored.loss"] = losses.scored.loss
    for name, term in terms.items():
        method.require_type(f"loss: {name}", term, Tensor, "a sum over examples")
        if term.dim():
            raise method.mistake("loss", f"returned {name} of shape {list(term.shape)}, must be one number: its sum")
    if not any(term.requires_grad for term in terms.values()):
        raise method.mistake("loss", "returned a loss that needs no gradient: is it detached, or under torch.no_grad?")


class StepSums:
    """The sums over the micro-batches of the present optimizer step."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        # Loss, right targets and targets; empty if nothing that is written is trained on.
        self._scored: dict[str, Tensor] = {}
        self._more: dict[str, Tensor] = {}  # further terms

    def add(self, losses: Losses) -> None:
        """Add a micro-batch.

        Raises:
            UserError: see `require_losses`.
        """
        require_losses(self.learner.method, losses)
        if (scored := losses.scored) is not None:
            count = torch.full_like(scored.loss, len(scored.label), dtype=torch.float32, requires_grad=False)
            sums = {"loss": scored.loss.detach(), "right": scored.right.sum(), "targets": count}
            self._scored = {name: value + self._scored.get(name, 0) for name, value in sums.items()}
        for name, term in losses.more.items():
            self._more[name] = term.detach() + self._more.get(name, 0)

    def end(self, trainer: L.Trainer, examples: int) -> tuple[dict[str, Tensor], int]:
        """Return loss, token accuracy and further terms of the step over all ranks, and the tokens read; begin the next step.

        Args:
            examples: the examples of the step on all ranks.
        """
        scored, more, tokens_read = self._scored, self._more, self.learner.tokens_read
        self._scored, self._more, self.learner.tokens_read = {}, {}, 0
        if trainer.world_size > 1:
            device = next(iter([*scored.values(), *more.values()])).device
            count = torch.full((), float(tokens_read), dtype=torch.double, device=device)
            each = torch.stack([count, *(term.double() for term in (*scored.values(), *more.values()))])
            of_all = trainer.strategy.reduce(each, reduce_op="sum")
            assert isinstance(of_all, Tensor)
            count, *terms = of_all.unbind()
            tokens_read = round(float(count))
            scored = dict(zip(scored, terms[: len(scored)], strict=True))
            more = dict(zip(more, terms[len(scored) :], strict=True))
        found = {}
        if scored:
            found = {
                "train/loss": scored["loss"] / scored["targets"],
                "train/token_accuracy": scored["right"] / scored["targets"],
            }
        return {**found, **{f"train/{name}": term / examples for name, term in more.items()}}, tokens_read


class StepMean:
    """The loss of an optimizer step: the mean over the targets, and examples, of all its micro-batches and ranks.

    Args:
        seed: the seed of offsets and stage mixing.
    """

    def __init__(self, learner: Learner, method: Method, schedule: Schedule, seed: int) -> None:
        self.learner, self.method, self.schedule, self.seed = learner, method, schedule, seed
        self._counted = (-1, 0)  # number of the optimizer step that was counted last, and its targets

    def part(self, losses: Losses, batch: CoTBatch, trainer: L.Trainer, data: CoTDataModule) -> Tensor:
        """The part of one micro-batch in the mean, as a scalar."""
        # Lightning averages over micro-batches and ranks. The parts must be summed instead.
        shares = trainer.accumulate_grad_batches * trainer.world_size
        terms = [term / data.data.batch_size for term in losses.more.values()]
        if losses.scored is not None:
            targets = len(losses.scored.label) if shares == 1 else self._targets(batch, trainer, data)
            terms.insert(0, losses.scored.loss / targets)
        mean = torch.stack([term.float() for term in terms]).sum() if len(terms) > 1 else terms[0]
        return mean if shares == 1 else mean * shares

    def _targets(self, batch: CoTBatch, trainer: L.Trainer, data: CoTDataModule) -> int:
        """The number of targets in all micro-batches and ranks of the optimizer step that `batch` belongs to.

        The stream is a function of seed and draw, so the other micro-batches are known in advance.
        """
        number = int(batch.draw[0]) // data.data.batch_size
        if self._counted[0] != number:
            whole = data.whole_step(number)
            stage = self.schedule.spread(whole.draw.numpy(), trainer.global_step, self.seed)
            self._counted = number, int(self.method.view(self.learner, whole, stage).is_target.sum())
        return self._counted[1]
