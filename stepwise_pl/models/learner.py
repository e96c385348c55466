"""The learner: a causal LM and its method of training, with the verbs that training, evaluation and probes share."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.methods import Method
from stepwise_pl.methods.base import LATENT
from stepwise_pl.models.blocks import replaced_states
from stepwise_pl.models.compiled import CompiledBlocks
from stepwise_pl.models.decoding import generate, read_prompts
from stepwise_pl.models.edits import Edit, edited_states
from stepwise_pl.models.forward import Head, Targets, model_inputs, see, target_logits
from stepwise_pl.models.reading import Inputs, read_view
from stepwise_pl.models.rows import OnPass


class Scored(NamedTuple):
    """The targets of a view, and the model's predictions in their places, teacher-forced.

    Attributes:
        loss: negative log likelihood of all targets together, nats, 0-d.
        predicted: the arg-max for each target, [targets] int64.
        label: the targets, [targets] int64, row after row.
        row, column: place of each target in the view, [targets] int64, on the host.
        logits: the model's logits for each target, [targets, vocabulary].
        states: the residual stream after the layers asked for (`forward.see`), [layers, batch, seq - 1, width]; None: not asked for.
        thoughts: the inputs at the places of `LATENT` in each row, [batch, most, width]; None if there are none.
    """

    loss: Tensor
    predicted: Tensor
    label: Tensor
    row: Tensor
    column: Tensor
    logits: Tensor
    states: Tensor | None = None
    thoughts: Tensor | None = None

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
        tokens: the inputs that the method learns (`Method.num_tokens`); None: there are none.
        compiled_blocks: compute the logits of training, in passes without hooks and thoughts; None: the blocks run as they are.
        decodes_compiled: whether answers are decoded by a compiled pass, if the model's type can be compiled (`static_rows`).
        fitting: the most examples at a time that the device's memory has held, by what was done with them, once it has run out.
        tokens_read: tokens that training has read in the forward passes of the present optimizer step.
    """

    model: PreTrainedModel
    eos: int
    method: Method
    extra: nn.Module | None = None
    tokens: nn.Embedding | None = None
    head: Head | None = None
    compiled_blocks: CompiledBlocks | None = None
    decodes_compiled: bool = False
    fitting: dict[str, int] = field(default_factory=dict)
    tokens_read: int = 0

    @property
    def inputs(self) -> Inputs:
        """Turns ids into the model's inputs."""
        return Inputs(self.model, self.tokens, self._thought)

    def score(
        self, view: CoTBatch, states: Tensor | None = None, layers: Sequence[int] = (), thoughts: Tensor | None = None, *,
        edits: Sequence[Edit] = (),
    ) -> Scored:  # fmt: skip
        """Score the targets of a view, teacher-forced. The view is on the host.

        Args:
            states: what the blocks read at the last token of each prompt, [blocks, batch, width]; None: `Method.prompt_states` says it.
            layers: the states to return.
            thoughts: the inputs at the places of `LATENT`, in the order of each row, [batch, most, width]. They are read in
                one pass. None: the model finds them, each in a pass.
            edits: what the blocks read in the place of some states, those of the method included; thoughts follow from it.
        """
        self.method.require_type("view", view, CoTBatch, "batch.remove(stage.units)")
        has_thoughts = thoughts is None and bool((view.tokens == LATENT).any())
        if states is None and not has_thoughts:
            states = self._prompt_states(view)
        # A compiled pass would leave out the hooks that replace or keep states.
        has_hooks = states is not None or bool(edits) or bool(layers)
        is_compiled = torch.is_grad_enabled() and not has_thoughts and not has_hooks
        blocks = self.compiled_blocks if is_compiled else None
        if blocks is not None:
            view = blocks.widened(view)
        targets = Targets.of(view)
        moved, seen = targets.to(self.model.device), None
        if has_thoughts:
            seen, thoughts = read_view(self.model, view, self.inputs, layers, edits)
            logits = seen.logits_at(self.model, moved.index)
        else:
            if bool((view.tokens < 0).any()):
                moved = replace(moved, tokens=self.inputs.of(moved.tokens, thoughts))
            # Hooks run in the order in which they were set: an edit finds the method's states in place.
            with self._thinking(view, states), edited_states(self.model, edits):
                if layers:
                    seen = see(self.model, model_inputs(self.model, moved.tokens, moved.position), layers)
                    logits = seen.logits_at(self.model, moved.index)
                else:
                    head = self.head if blocks is None else blocks.logits
                    logits = target_logits(self.model, moved, head)  # [targets, vocabulary]
        width = targets.tokens.shape[1]
        self.count(view)
        return Scored(
            loss=F.cross_entropy(logits.float(), moved.label, reduction="sum"),
            logits=logits,
            predicted=logits.detach().argmax(-1),
            label=moved.label,
            row=targets.index // width,
            column=targets.index % width + 1,
            states=None if seen is None else seen.states,
            thoughts=thoughts,
        )

    def hidden(self, view: CoTBatch, layers: Sequence[int]) -> Tensor:
        """Return the residual stream after some layers (`forward.see`) over a view on the host; [layers, batch, seq - 1, width].

        At the last token of a prompt it holds the method's states, if the method has some (`Method.prompt_states`).
        """
        replaced = self._prompt_states(view)
        states = self.score(view, replaced, layers).states
        assert states is not None
        if replaced is not None:
            # transformers keeps what a block returns, before the next one reads the method's state in its place.
            row, column = torch.arange(len(view)), view.length_of(Part.PROMPT) - 1
            for number, layer in enumerate(layers):
                if layer < len(replaced):
                    states[number, row, column] = replaced[layer].to(states)
        return states

    def count(self, view: CoTBatch) -> None:
        """Count the tokens of a pass over a view in `tokens_read`, without padding and the last token of each row. Evaluation does not count."""
        if torch.is_grad_enabled():
            self.tokens_read += int(view.attention_mask.sum()) - len(view)

    def _thinking(self, view: CoTBatch, states: Tensor | None) -> AbstractContextManager[None]:
        """Inside of this context the blocks read the states at the last token of each prompt; None: their own."""
        if states is None:
            return nullcontext()
        return replaced_states(self.model, states, view.length_of(Part.PROMPT).to(states.device) - 1)

    def _thought(self, hidden: Tensor) -> Tensor:
        thought = self.method.thought(self, hidden)
        self.method.require_type("thought", thought, Tensor, "the next input of shape [batch, width]")
        if thought.shape != hidden.shape:
            raise self.method.mistake("thought", f"returned {list(thought.shape)}, must return {list(hidden.shape)}")
        return thought.to(hidden.dtype)

    def _prompt_states(self, view: CoTBatch) -> Tensor | None:
        states = self.method.prompt_states(self, view)
        if states is not None:
            self.method.require_type("prompt_states", states, Tensor, "states of shape [blocks, batch, width], or None")
        return states

    @torch.inference_mode()
    def generate(
        self, view: CoTBatch, most: int, accepted: Tensor | None = None, *, on_pass: OnPass | None = None
    ) -> list[list[int]]:
        """Continue each prompt greedily up to its second end token, by at most `most` tokens.

        Args:
            view: the batch after removal, on any device (`decoding.generate`).
            accepted: count of tokens after each prompt that the model is known to write, [batch] int64; None: none.
            on_pass: called at the end of each forward pass: one for each thought, then one for each token.
        """
        view = view.to(self.model.device)
        accepted = None if accepted is None else accepted.to(self.model.device)
        reading = read_prompts(view, accepted, self._prompt_states(view))
        return generate(self.model, view, self.eos, most, reading, self.inputs, on_pass, compiled=self.decodes_compiled)
