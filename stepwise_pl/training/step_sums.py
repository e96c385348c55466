"""Sums and mean of an optimizer step over its micro-batches and ranks."""

import lightning as L
import torch
from torch import Tensor

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.methods import Losses, Method
from stepwise_pl.models.learner import Learner, Scored
from stepwise_pl.schedules import Schedule
from stepwise_pl.schedules.spread import Stage


def level_counts(right: Tensor, level: Tensor, levels: int) -> Tensor:
    """Count the targets of each stage, and the right ones among them.

    Args:
        right: whether the model is right at each target, [targets] bool.
        level: the stage of each target's example, [targets] int64.
        levels: the number of stages, from 0 to the last one.

    Returns:
        [2, levels] int64: targets, and right targets.
    """
    counts = torch.zeros(2, levels, dtype=torch.long, device=right.device)
    return counts.index_add_(1, level, torch.stack([torch.ones_like(right), right]).long())


class StepSums:
    """The sums over the micro-batches of the present optimizer step."""

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, int] | None = None  # loss, right targets, targets
        self._counts: Tensor | None = None  # `level_counts`, for a closed-loop schedule

    def add(self, scored: Scored, stage: Stage, by_level: bool) -> None:
        """Add a micro-batch. `by_level`: also count by stage, as a closed-loop schedule needs."""
        sums = scored.loss.detach(), scored.right.sum(), len(scored.label)
        before = self._sums
        self._sums = sums if before is None else (before[0] + sums[0], before[1] + sums[1], before[2] + sums[2])
        if by_level:
            level = torch.from_numpy(stage.levels)[scored.row].to(scored.right.device)
            counts = level_counts(scored.right, level, stage.last + 1)
            self._counts = counts if self._counts is None else self._counts + counts

    def end(self, trainer: L.Trainer) -> tuple[dict[str, Tensor], list[list[int]] | None]:
        """Return loss and token accuracy of the step over all ranks, and `level_counts` if counted; begin the next step."""
        assert self._sums is not None
        (loss, right, targets), counts = self._sums, self._counts
        if trainer.world_size > 1:
            each = torch.stack(
                [loss.double(), right.double(), torch.full((), float(targets), dtype=torch.double, device=loss.device)]
            )
            of_all = trainer.strategy.reduce(each, reduce_op="sum")
            assert isinstance(of_all, Tensor)
            loss, right, targets = of_all.unbind()  # type: ignore[assignment]
            if counts is not None:
                counts = trainer.strategy.reduce(counts, reduce_op="sum")  # type: ignore[assignment]
        self._sums = self._counts = None
        metrics = {"train/loss": loss / targets, "train/token_accuracy": right / targets}
        return metrics, None if counts is None else counts.tolist()


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
        targets = len(losses.scored.label) if shares == 1 else self._targets(batch, trainer, data)
        mean = losses.scored.loss / targets
        for term in losses.more.values():
            mean = mean + term / data.data.batch_size
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
