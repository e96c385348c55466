"""The learner: a causal LM and its method of training, with the verbs that training, evaluation and probes share."""

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
    """The targets of a view, and the model's predictions in their places, teacher-forced.

    Attributes:
        loss: negative log likelihood of all targets together, nats, 0-d.
        predicted: the arg-max for each target, [targets] int64.
        label: the targets, [targets] int64, row after row.
        row, column: place of each target in the view, [targets] int64, on the host.
    """

    loss: Tensor
    predicted: Tensor
    label: Tensor
    row: Tensor
    column: Tensor

    @property
    def right(self) -> Tensor:
        """Whether each target is the arg-max of its prediction, [targets] bool."""
        return self.predicted == self.label


@dataclass
class Learner:
    """A model, its method of training, and the module that is trained besides it.

    Attributes:
        model: any causal LM of transformers.
        eos: id of the end token, which separates prompt, CoT and answer.
        method: decides what a stage means.
        extra: the module that the method trains besides the model; None: there is none.
        head: computes the logits if the model's weights are sharded; None otherwise.
    """

    model: PreTrainedModel
    eos: int
    method: Method
    extra: nn.Module | None = None
    head: Head | None = None

    def score(self, view: CoTBatch) -> Scored:
        """Score the targets of a view, teacher-forced. The view is on the host."""
        self.method.require_type("view", view, CoTBatch, "batch.remove(stage.units)")
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
        """Return the residual stream after some layers (`hidden_states`) over a view on the host; [layers, batch, seq - 1, width]."""
        return hidden_states(self.model, Targets.of(view).to(self.model.device), layers)

    def read(self, view: CoTBatch, accepted: Tensor | None = None) -> Reading:
        """Return the prompts of a view, each with its accepted tokens; `accepted` counts them, [batch] int64 (None: none)."""
        return read_prompts(view, accepted)

    @torch.inference_mode()
    def generate(self, view: CoTBatch, most: int, accepted: Tensor | None = None) -> list[list[int]]:
        """Continue each prompt greedily up to its second end token, by at most `most` tokens.

        Args:
            view: the batch after removal, on any device (`decoding.generate`).
            accepted: count of tokens after each prompt that the model is known to write, [batch] int64; None: none.
        """
        view = view.to(self.model.device)
        accepted = None if accepted is None else accepted.to(self.model.device)
        reading = self.method.read(self, view, accepted)
        self.method.require_type("read", reading, Reading, "learner.read(view, accepted)")
        return generate(self.model, view, self.eos, most, reading)
