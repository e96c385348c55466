"""CODI (arXiv 2502.21074): one model is teacher and student; what it knows before the answer with a CoT is distilled."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import LATENT, Losses, Method
from stepwise_pl.methods.in_place import BEGIN, END
from stepwise_pl.schedules.spread import ALL, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stepwise_pl.data.batch import CoTBatch
    from stepwise_pl.data.limits import Limits
    from stepwise_pl.models.learner import Learner, Scored


@register("method")
@dataclass
class Codi(Method):
    """The student answers after a few thoughts; the teacher, the same model, writes the CoT. There is one stage.

    A thought is a projection of the hidden state, read as the next input. The loss is the cross entropy of the student's answer,
    plus that of the teacher's CoT and answer, plus `weight` times the distance of their states at the token before the answer:
    smooth L1, the mean over the width, divided by the standard deviation of the teacher's state, the mean over the layers with
    the embeddings. The teacher's state gets no gradient. The teacher does not see the last step, or it would copy.

    Different from the authors' code: the deviation is that of each example over the width, not that of the batch, and the
    cross entropy of the teacher is the mean of each example. So no result depends on the other examples of a batch.

    Raises:
        UserError: a value is out of range.
    """

    paper: ClassVar[str] = (
        "Shen and others, *CODI: Compressing Chain-of-Thought into Continuous Space via Self-Distillation*, arXiv 2502.21074"
    )
    stage_names: ClassVar[tuple[str, ...]] = ("distil",)
    reads_cot: ClassVar[bool] = True  # the teacher

    kind: str = "codi"
    # The teacher does without the last `step`, or the last `token`: that is a step where every step is one token.
    unit: str = "step"
    # Thoughts of the student; at least 1.
    thoughts: int = 6
    # γ: weight of the distance of states beside the cross entropies (the paper: 1 for GPT-2, 20 for Llama 1B); at least 0.
    weight: float = 1.0
    # A thought is multiplied by this after the projection (the paper: 1); above 0. See `Coconut.scale`.
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.thoughts >= 1, "method.thoughts", self.thoughts, "must be at least 1")
        require(self.weight >= 0, "method.weight", self.weight, "must be at least 0")
        require(0 < self.scale < math.inf, "method.scale", self.scale, "must be a number above 0")
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def last_stage(self, limits: "Limits") -> int:
        return 0

    def removed(self, stage: int, limits: "Limits") -> int:
        return limits.max_removed

    def num_tokens(self, limits: "Limits") -> int:
        return 2

    def added(self, stage: int, limits: "Limits") -> int:
        return self.thoughts + 2

    def extra(self, model: "PreTrainedModel") -> "nn.Module":
        """Return the projection of the thoughts."""
        from torch import nn

        width = model.config.get_text_config().hidden_size
        return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))

    def prepare(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", longest: int) -> dict[str, Any]:
        self._tokenizer = tokenizer
        return {}

    def thought(self, learner: "Learner", hidden: "Tensor") -> "Tensor":
        assert learner.extra is not None
        projected: Tensor = learner.extra(hidden.to(learner.extra[0].weight.dtype))  # type: ignore[index]
        return projected * self.scale

    def view(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> "CoTBatch":
        left = batch.remove(ALL, self.side, self.keep_position)
        return left.insert([(BEGIN, *[LATENT] * self.thoughts, END)] * len(batch))

    def loss(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> Losses:
        import torch
        import torch.nn.functional as F

        layers = range(learner.model.config.get_text_config().num_hidden_layers + 1)
        views = self.view(learner, batch, stage), batch.remove(1, "right")
        student, teacher = (learner.score(view, layers=layers) for view in views)
        each = F.cross_entropy(teacher.logits.float(), teacher.label, reduction="none")  # [targets]
        row = teacher.row.to(each.device)
        written = (each / row.bincount()[row]).sum()
        ours, theirs = (
            self._before_answer(view, scored) for view, scored in zip(views, (student, teacher), strict=True)
        )
        with torch.autocast(ours.device.type, enabled=False):
            ours, theirs = ours.float(), theirs.detach().float()  # [layers, batch, width]
            distance = F.smooth_l1_loss(ours, theirs, reduction="none").mean(2) / theirs.std(2)
        return Losses(student, {"teacher": written, "distance": self.weight * distance.mean(0).sum()})

    def _before_answer(self, view: "CoTBatch", scored: "Scored") -> "Tensor":
        """Return the states at the token that predicts the first of the answer, [layers, batch, width]."""
        import torch

        from stepwise_pl.data.batch import Part
        from stepwise_pl.data.encoding import answer_frame

        assert scored.states is not None and self._tokenizer is not None
        end = view.attention_mask.sum(1).tolist()
        begin = (view.attention_mask.sum(1) - view.length_of(Part.ANSWER)).tolist()
        answers = [view.tokens[row, begin[row] : end[row]].tolist() for row in range(len(view))]
        place = [
            first + answer_frame(answer, self._tokenizer)[0] - 1 for first, answer in zip(begin, answers, strict=True)
        ]
        return scored.states[:, torch.arange(len(view)), torch.tensor(place)]
