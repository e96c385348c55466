"""Metrics over targets, over answers, and over each token of the answers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from stepwise_pl.models.learner import Scored


class DigitAccuracy(Metric):
    """Accuracy at each token of the answer, over the examples that have it, on any number of processes.

    Args:
        places: tokens of the longest answer, or more.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, places: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(2, places, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, counts: Tensor) -> None:
        """Add counts [2, at most places] int64: the examples that have each token, and those that have it right."""
        self.counts[:, : counts.shape[1]] += counts.to(self.counts.device)

    def compute(self) -> Tensor:
        """Return the accuracy of each token that any example has, [tokens] float64."""
        there, right = self.counts[:, self.counts[0] > 0].double().unbind()
        return right / there


class EvaluationMetrics(Metric):
    """Answer accuracy, token accuracy, loss and perplexity over a split, on any number of processes."""

    full_state_update = False
    answers: Tensor
    answers_any_length: Tensor
    examples: Tensor
    loss_sum: Tensor
    correct: Tensor
    targets: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("answers", "answers_any_length", "examples", "correct", "targets"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update_answers(self, right: Sequence[bool], right_any_length: Sequence[bool] | None = None) -> None:
        """Add the outcomes of generated answers.

        Args:
            right: whether each answer is the target, within the tokens asked for.
            right_any_length: whether each answer is the target, at any length; None: the same.
        """
        self.answers += sum(right)
        self.answers_any_length += sum(right if right_any_length is None else right_any_length)
        self.examples += len(right)

    def update(self, scored: Scored) -> None:
        """Add the targets of a batch."""
        self.loss_sum += scored.loss
        self.correct += scored.right.sum()
        self.targets += len(scored.label)

    def compute(self) -> dict[str, Tensor]:
        loss = self.loss_sum / self.targets
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "answer_accuracy": self.answers / self.examples,
            "answer_accuracy_any_length": self.answers_any_length / self.examples,
            "token_accuracy": self.correct / self.targets,
            "examples": self.examples.double(),
        }
