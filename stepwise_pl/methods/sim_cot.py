"""SIM-CoT (arXiv 2509.20317): a decoder must read the written step off the thoughts that stand for it."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stepwise_pl.common.errors import UserError, require
from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import LATENT, Losses
from stepwise_pl.methods.coconut import Coconut
from stepwise_pl.schedules.spread import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepwise_pl.data.batch import CoTBatch
    from stepwise_pl.models.learner import Learner


@register("method")
@dataclass
class SimCoT(Coconut):
    """Coconut with a second loss: a decoder, a language model of its own, writes step k from the thoughts of step k.

    The decoder reads the thoughts as inputs, and writes the step and an end token. Its cross entropy, summed over the tokens of a
    step, the mean over the steps of an example, is added to that of the answer. No answer needs the decoder. Steps that
    go together with the last thoughts, because there are more steps than `stages`, are written together.

    Different from the authors' code: thoughts without a step of their own, in an example with few steps, have no such loss. The
    decoder begins as a copy of the model, and embeds the words of a step itself. The steps beyond `stages` are written
    together once they are gone, not a stage before.

    Raises:
        UserError: a value is out of range.
    """

    paper: ClassVar[str] = "Wei and others, *SIM-CoT: Supervised Implicit Chain-of-Thought*, arXiv 2509.20317"
    trains_in_parts: ClassVar[bool] = True
    reads_cot: ClassVar[bool] = True  # the decoder, at the last stage

    kind: str = "sim_cot"
    # Weight of the decoder's cross entropy; at least 0.
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.thoughts >= 1, "method.thoughts", self.thoughts, "must be at least 1: a step is read off thoughts")
        require(self.weight >= 0, "method.weight", self.weight, "must be at least 0")

    def extra(self, model: "PreTrainedModel") -> "nn.Module":
        """Return the decoder, with the model's own first weights."""
        from torch import nn

        return nn.ModuleDict({"decoder": copy.deepcopy(model)})

    def prepare(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", longest: int) -> dict[str, Any]:
        from stepwise_pl.models.lora import has_adapters

        if has_adapters(model):
            raise UserError("method=sim_cot: the decoder is a copy of the whole model; set model.lora.rank=0")
        return {}

    def loss(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> Losses:
        scored = learner.score(self.view(learner, batch, stage))
        # Every process must have the same terms, also one without thoughts in its part of the batch.
        decoded = scored.loss.new_zeros(())
        if scored.thoughts is not None:
            decoded = self._decoded(learner, batch, stage, scored.thoughts)
        return Losses(scored, {"decoder": self.weight * decoded})

    def _decoded(self, learner: "Learner", batch: "CoTBatch", stage: Stage, thoughts: "Tensor") -> "Tensor":
        """Return the cross entropy of the steps, given their thoughts, [batch, most, width]; summed over examples."""
        import torch
        import torch.nn.functional as F

        from stepwise_pl.data.batch import CoTBatch, Part
        from stepwise_pl.methods.stepwise import Stepwise
        from stepwise_pl.models.learner import Learner

        each = [stage.now] * len(batch) if stage.each is None else stage.each.tolist()
        unit = batch.unit_start.cumsum(1) - 1  # [batch, seq]
        rows, groups, texts = [], [], []
        for row, (now, replaced) in enumerate(zip(each, self._replaced(np.array(each), stage.last), strict=True)):
            for group in range(replaced):
                is_step = (unit[row] >= group) if now >= stage.last and group == replaced - 1 else (unit[row] == group)
                text = batch.tokens[row, is_step & (batch.part[row] == Part.COT)].tolist()
                if text:
                    rows.append(row)
                    groups.append(group)
                    texts.append([*[LATENT] * self.thoughts, *text, learner.eos])
        if not texts:  # no example has a step
            return thoughts.new_zeros(())
        given, at = torch.tensor(rows), torch.tensor(groups)
        place = (at[:, None] * self.thoughts + torch.arange(self.thoughts)).to(thoughts.device)
        steps = CoTBatch.of_rows(texts, self.thoughts)
        assert learner.extra is not None
        decoder = Learner(learner.extra["decoder"], learner.eos, Stepwise())  # type: ignore[index]
        scored = decoder.score(steps, thoughts=thoughts[given.to(thoughts.device)[:, None], place])
        learner.tokens_read += decoder.tokens_read
        loss = F.cross_entropy(scored.logits.float(), scored.label, reduction="none")  # [targets]
        share = 1 / given.bincount(minlength=len(batch))[given[scored.row]]
        return (loss * share.to(loss.device)).sum()
