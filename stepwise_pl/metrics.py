"""What is measured: token sums and answers."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from stepwise_pl.batch import IGNORE, CoTBatch
from stepwise_pl.statistics import wilson as wilson  # an accuracy is not without its interval


class TokenSums(NamedTuple):
    """Sums over the target tokens of a batch, all 0-d tensors."""

    loss: Tensor  # negative log likelihood, nats
    correct: Tensor  # targets that are the arg-max of their prediction
    targets: Tensor


def token_sums(logits: Tensor, batch: CoTBatch) -> TokenSums:
    """Teacher-forced loss and accuracy of `logits` [batch, seq, vocabulary] over the batch's targets."""
    labels = batch.labels[:, 1:]
    target = labels != IGNORE
    predicted, labels = logits[:, :-1][target].float(), labels[target]
    return TokenSums(
        loss=F.cross_entropy(predicted, labels, reduction="sum"),
        correct=(predicted.argmax(-1) == labels).sum(),
        targets=target.sum(),
    )


def normalize_answer(text: str) -> str:
    """An answer as it is compared: no commas, single spaces."""
    return " ".join(text.replace(",", "").split())


class EvaluationMetrics(Metric):
    """Answer accuracy, token accuracy, loss and perplexity over a split, right on any number of processes."""

    full_state_update = False
    answers: Tensor
    examples: Tensor
    loss_sum: Tensor
    correct: Tensor
    targets: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("answers", "examples", "correct", "targets"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: TokenSums, right: Tensor) -> None:
        """`right` [batch] bool: whose generated answer is the target."""
        self.answers += right.sum().to(self.answers.device)
        self.examples += right.numel()
        self.loss_sum += sums.loss
        self.correct += sums.correct
        self.targets += sums.targets

    def compute(self) -> dict[str, Tensor]:
        loss = self.loss_sum / self.targets
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "answer_accuracy": self.answers / self.examples,
            "token_accuracy": self.correct / self.targets,
            "examples": self.examples.double(),
        }
