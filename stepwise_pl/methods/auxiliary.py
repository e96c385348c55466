"""An auxiliary loss on the quantities behind the answer (arXiv 2510.00184): the hidden states must hold them."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import Losses
from stepwise_pl.methods.stepwise import Stepwise
from stepwise_pl.schedules.spread import Stage

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from stepwise_pl.data.batch import CoTBatch
    from stepwise_pl.models.learner import Learner


@register("method")
@dataclass
class Auxiliary(Stepwise):
    """Stepwise Internalization with a second loss: a linear map reads a quantity of the task off a hidden state.

    The map reads at the position that predicts an answer digit, where the digit is not yet an input. Its squared error,
    the mean over the digits of an answer, is added to the cross entropy. The paper trains without any CoT
    (`schedule=no_cot`). Together with a schedule that removes a CoT it is an idea of this project.

    Raises:
        UserError: a value is out of range.
    """

    paper: ClassVar[str] = "Bai and others, *Why Can't Transformers Learn Multiplication?*, arXiv 2510.00184"
    has_baselines: ClassVar[bool] = False

    kind: str = "auxiliary"
    # The quantity that is read (`Task.values`): `running_sum`, `carry` or `products` for multiplication.
    value: str = "running_sum"
    # Weight of the squared error beside the cross entropy; above 0.
    weight: float = 1.0
    # The state that is read: 1 is the output of the first block; null: that of the last block.
    layer: int | None = None
    # The attention head of that block whose output is read, from 0; null: the whole state after the block.
    head: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.weight < math.inf, "method.weight", self.weight, "must be above 0, and finite")

    def quantities(self) -> tuple[str, ...]:
        return (self.value,)

    def extra(self, model: "PreTrainedModel") -> "nn.Module":
        """Return the linear map without bias, [width of the state] to 1.

        Raises:
            UserError: the model has no such layer or head, or its blocks cannot be read.
        """
        from torch import nn

        from stepwise_pl.models.blocks import blocks

        config = model.config.get_text_config()
        layers, heads = len(blocks(model)), int(config.num_attention_heads)
        require(self.layer is None or 1 <= self.layer <= layers, "method.layer", self.layer,
                f"must be between 1 and the {layers} layers of the model")  # fmt: skip
        require(self.head is None or 0 <= self.head < heads, "method.head", self.head,
                f"must be between 0 and {heads - 1}, the heads of the model")  # fmt: skip
        width = config.hidden_size
        if self.head is not None:
            width = getattr(config, "head_dim", None) or width // heads
        return nn.Linear(width, 1, bias=False)

    def loss(self, learner: "Learner", batch: "CoTBatch", stage: Stage) -> Losses:
        import torch
        import torch.nn.functional as F

        from stepwise_pl.models.blocks import blocks, kept_head, kept_states

        assert learner.extra is not None
        (weight,) = learner.extra.parameters()
        view = self.view(learner, batch, stage)
        model, layer = learner.model, self.layer or len(blocks(learner.model))
        with kept_states(model, [layer]) if self.head is None else kept_head(model, layer - 1, self.head) as found:
            scored = learner.score(view)
        (states,) = found.values()  # [batch, seq - 1, width of the state]
        # Column t of the states predicts token t + 1.
        value = view.values[self.value][:, 1:]
        row, column = (~value.isnan()).nonzero(as_tuple=True)
        places = row.bincount(minlength=len(view))[row]
        value, share = (tensor.to(states.device) for tensor in (value[row, column], 1 / places))
        with torch.autocast(states.device.type, enabled=False):  # bf16 would round the sums themselves
            read = F.linear(states[row, column].float(), weight.float()).squeeze(1)  # [places]
        return Losses(scored, {"auxiliary": self.weight * (share * (read - value).square()).sum()})
