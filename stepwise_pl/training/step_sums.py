"""The sums of an optimizer step over its micro-batches and ranks."""

import lightning as L
import torch
from torch import Tensor

from stepwise_pl.models.learner import Scored
from stepwise_pl.schedules.spread import Stage


def level_counts(right: Tensor, level: Tensor, levels: int) -> Tensor:
    """How many targets there are, and how many of them are right, at each stage.

    Args:
        right: of each target, [targets] bool.
        level: the stage of the example that each target belongs to, [targets] int64.
        levels: one more than the last stage.

    Returns:
        [2, levels] int64: targets, and those right.
    """
    counts = torch.zeros(2, levels, dtype=torch.long, device=right.device)
    return counts.index_add_(1, level, torch.stack([torch.ones_like(right), right]).long())


class StepSums:
    """The sums of the optimizer step at hand."""

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, int] | None = None  # loss, right ones, targets
        self._counts: Tensor | None = None  # `level_counts`, for a closed-loop schedule

    def add(self, scored: Scored, stage: Stage, by_level: bool) -> None:
        """Add a micro-batch; `by_level`: for a closed-loop schedule."""
        sums = scored.loss.detach(), scored.right.sum(), len(scored.label)
        before = self._sums
        self._sums = sums if before is None else (before[0] + sums[0], before[1] + sums[1], before[2] + sums[2])
        if by_level:
            level = torch.from_numpy(stage.levels)[scored.row].to(scored.right.device)
            counts = level_counts(scored.right, level, stage.last + 1)
            self._counts = counts if self._counts is None else self._counts + counts

    def end(self, trainer: L.Trainer) -> tuple[dict[str, Tensor], list[list[int]] | None]:
        """Loss and token accuracy of the step over all ranks, and `level_counts` if they were asked for; begin anew."""
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
