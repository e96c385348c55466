"""The learner: a causal LM and the method it is trained by, with the verbs that training, evaluation and probes share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepwise_pl.data.batch import CoTBatch
from stepwise_pl.methods import Method
from stepwise_pl.models.decoding import Reading, generate, read_prompts
from stepwise_pl.models.forward import Head, Targets, hidden_states, target_logits


class Scored(NamedTuple):
    """The targets of a view, and what the model predicts in their places, teacher-forced.

    Attributes:
        loss: negative log likelihood of all targets together, nats, 0-d.
        predicted: the arg-max for each target, [targets] int64.
        label: the targets, [targets] int64, row after row.
        row, column: where each target stands in the view, [targets] int64, on the host.
    """

    loss: Tensor
    predicted: Tensor
    label: Tensor
    row: Tensor
    column: Tensor

    @property
    def right(self) -> Tensor:
        """Which targets are the arg-max of their prediction, [targets] bool."""
        return self.predicted == self.label


@dataclass
class Learner:
    """A model, the method it is trained by, and what is trained besides it.

    Attributes:
        model: any causal LM of transformers.
        eos: id of the end token, which separates prompt, CoT and answer.
        method: what a stage means.
        extra: what the method trains besides the model; None: nothing.
        head: reads off the logits where the model's weights are shared out; None elsewhere.
    """

    model: PreTrainedModel
    eos: int
    method: Method
    extra: nn.Module | None = None
    head: Head | None = None

    def score(self, view: CoTBatch) -> Scored:
        """The targets of a view on the host, teacher-forced."""
        targets = Targets.of(view)
        width = targets.tokens.shape[1]
        moved = targets.to(self.model.device)
        logits = target_logits(self.model, moved, self.head)  # [targets, vocabulary]
        return Scored(
            loss=F.cross_entropy(logits.float(), moved.label, reduction="sum"),
            predicted=logits.detach().argmax(-1),
            label=moved.label,
            row=targets.index // width,
            column=targets.index % width + 1,
        )

    def hidden(self, view: CoTBatch, layers: Sequence[int]) -> Tensor:
        """The residual stream of some layers (`hidden_states`) over a view on the host; [layers, batch, seq - 1, width]."""
        return hidden_states(self.model, Targets.of(view).to(self.model.device), layers)

    def read(self, view: CoTBatch, accepted: Tensor | None = None) -> Reading:
        """The prompts of a view, and the accepted tokens after each, [batch] int64 (None: none)."""
        return read_prompts(view, accepted)

    @torch.inference_mode()
    def generate(self, view: CoTBatch, most: int, accepted: Tensor | None = None) -> list[list[int]]:
        """What the model writes after each prompt, greedily, up to its second end token, at most `most` tokens.

        Args:
            view: after removal, on any device (`decoding.generate`).
            accepted: tokens after each prompt that are known to be what it writes, [batch] int64; None: none.
        """
        view = view.to(self.model.device)
        accepted = None if accepted is None else accepted.to(self.model.device)
        return generate(self.model, view, self.eos, most, self.method.read(self, view, accepted))
