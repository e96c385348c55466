"""What is measured: token sums and answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from stepwise_pl.statistics import wilson as wilson  # an accuracy is not without its interval
from stepwise_pl.tasks.base import without_thousands_separators


class TokenSums(NamedTuple):
    """Sums over the target tokens of a batch, all 0-d tensors."""

    loss: Tensor  # negative log likelihood, nats
    correct: Tensor  # targets that are the arg-max of their prediction
    targets: Tensor


def token_sums(logits: Tensor, labels: Tensor) -> TokenSums:
    """Loss and accuracy of the logits of targets [targets, vocabulary] against the targets [targets]."""
    return TokenSums(
        loss=F.cross_entropy(logits.float(), labels, reduction="sum"),
        correct=(logits.argmax(-1) == labels).sum(),
        targets=torch.tensor(len(labels), device=logits.device),
    )


def level_counts(logits: Tensor, labels: Tensor, level: Tensor, levels: int) -> Tensor:
    """How many targets there are, and how many of them are the arg-max, at each number of removed units.

    Args:
        logits, labels: of the targets, [targets, vocabulary] and [targets].
        level: units removed from the example of each target, [targets] int64.
        levels: one more than the highest.

    Returns:
        [2, levels] int64: targets, and those right.
    """
    right = (logits.detach().argmax(-1) == labels).long()
    counts = torch.zeros(2, levels, dtype=torch.long, device=labels.device)
    return counts.index_add_(1, level, torch.stack([torch.ones_like(right), right]))


# Digits and signs of East Asian width: the same numbers. Other characters of another form stay what they are,
# because many mean something else: 10² is not 102.
_NARROW = str.maketrans("０１２３４５６７８９，．－＋", "0123456789,.-+")


def normalize_answer(text: str) -> str:
    """An answer as it is compared: single spaces, no thousands separators, digits of ordinary width."""
    return without_thousands_separators(" ".join(text.translate(_NARROW).split()))


class DigitAccuracy(Metric):
    """Accuracy at each token of the answer, over the examples that have it, right on any number of processes.

    Args:
        places: tokens of the longest answer, or more.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, places: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(2, places, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, counts: Tensor) -> None:
        """Examples that have each token, and how many of them have it right, [2, at most places] int64."""
        self.counts[:, : counts.shape[1]] += counts.to(self.counts.device)

    def compute(self) -> Tensor:
        """Of each token that any example has, [tokens] float64."""
        there, right = self.counts[:, self.counts[0] > 0].double().unbind()
        return right / there


class EvaluationMetrics(Metric):
    """Answer accuracy, token accuracy, loss and perplexity over a split, right on any number of processes."""

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
        """Add the outcomes of generated answers, true where an answer is the target: within the tokens asked for, and at any length (None: the same)."""
        self.answers += sum(right)
        self.answers_any_length += sum(right if right_any_length is None else right_any_length)
        self.examples += len(right)

    def update(self, sums: TokenSums) -> None:
        """The teacher-forced sums of a batch."""
        self.loss_sum += sums.loss
        self.correct += sums.correct
        self.targets += sums.targets

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
