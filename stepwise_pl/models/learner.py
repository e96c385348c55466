"""The learner: a causal LM and its method of training, with the verbs that training, evaluation and probes share."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.methods import Method
from stepwise_pl.models.blocks import replaced_states
from stepwise_pl.models.decoding import generate, read_prompts
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
        tokens_read: tokens that training has read in the forward passes of the present optimizer step.
    """

    model: PreTrainedModel
    eos: int
    method: Method
    extra: nn.Module | None = None
    head: Head | None = None
    tokens_read: int = 0

    def score(self, view: CoTBatch, states: Tensor | None = None) -> Scored:
        """Score the targets of a view, teacher-forced. The view is on the host.

        Args:
            states: what the blocks read at the last token of each prompt, [blocks, batch, width]; None: `Method.think` says it.
        """
        self.method.require_type("view", view, CoTBatch, "batch.remove(stage.units)")
        targets = Targets.of(view)
        width = targets.tokens.shape[1]
        moved = targets.to(self.model.device)
        with self._thinking(view, states):
            logits = target_logits(self.model, moved, self.head)  # [targets, vocabulary]
        self.count(view)
        return Scored(
            loss=F.cross_entropy(logits.float(), moved.label, reduction="sum"),
            predicted=logits.detach().argmax(-1),
            label=moved.label,
            row=targets.index // width,
            column=targets.index % width + 1,
        )

    def hidden(self, view: CoTBatch, layers: Sequence[int]) -> Tensor:
        """Return the residual stream after some layers (`hidden_states`) over a view on the host; [layers, batch, seq - 1, width]."""
        with self._thinking(view):
            return hidden_states(self.model, Targets.of(view).to(self.model.device), layers)

    def count(self, view: CoTBatch) -> None:
        """Count the tokens of a pass over a view in `tokens_read`, without padding and the last column. Evaluation does not count."""
        if torch.is_grad_enabled():
            self.tokens_read += int((view.part[:, :-1] != Part.PAD).sum())

    def _thinking(self, view: CoTBatch, states: Tensor | None = None) -> AbstractContextManager[None]:
        """Inside of this context the blocks read the method's states at the last token of each prompt."""
        states = self._thoughts(view) if states is None else states
        if states is None:
            return nullcontext()
        return replaced_states(self.model, states, view.length_of(Part.PROMPT).to(states.device) - 1)

    def _thoughts(self, view: CoTBatch) -> Tensor | None:
        states = self.method.think(self, view)
        if states is not None:
            self.method.require_type("think", states, Tensor, "states of shape [blocks, batch, width], or None")
        return states

    @torch.inference_mode()
    def generate(self, view: CoTBatch, most: int, accepted: Tensor | None = None) -> list[list[int]]:
        """Continue each prompt greedily up to its second end token, by at most `most` tokens.

        Args:
            view: the batch after removal, on any device (`decoding.generate`).
            accepted: count of tokens after each prompt that the model is known to write, [batch] int64; None: none.
        """
        view = view.to(self.model.device)
        accepted = None if accepted is None else accepted.to(self.model.device)
        return generate(self.model, view, self.eos, most, read_prompts(view, accepted, self._thoughts(view)))
