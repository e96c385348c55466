"""An exponential average of the weights: the model that is validated, selected and kept, while plain weights train on.

Lightning's `WeightAveraging` is not used. It is a callback, and callbacks do not see a checkpoint that holds weights only
(best.ckpt, those of stages): those would hold the plain weights. It also deep-copies the whole LightningModule.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Holds the average a(t) = decay · a(t-1) + (1 - decay) · w(t) of the trained weights w; a(1) = w(1).

    Averages are float32 whatever the weights are: bfloat16 would lose the small part that a step adds.

    Args:
        parameters: the weights that are trained, by name.
        decay: the part of the average that a step keeps, above 0 and below 1.

    Attributes:
        weights: the average of each parameter, by name; empty before the first step.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self.decay = dict(parameters), decay
        self.weights: dict[str, Tensor] = {}
        self._plain: dict[str, Tensor] = {}

    @property
    def is_in_place(self) -> bool:
        """Whether the model has the average at the moment."""
        return bool(self._plain)

    @torch.no_grad()
    def follow(self) -> None:
        """Take the weights after an optimizer step into the average."""
        now = {name: parameter.detach().float() for name, parameter in self._parameters.items()}
        if not self.weights:
            self.weights = {name: weight.clone() for name, weight in now.items()}
        else:
            torch._foreach_lerp_(list(self.weights.values()), list(now.values()), 1 - self.decay)

    def put_in_place(self) -> None:
        """Give the model the average. Nothing changes before the first step, or if the model has the average already."""
        if self.is_in_place:
            return
        for name, mean in self.weights.items():
            parameter = self._parameters[name]
            self._plain[name] = parameter.data
            parameter.data = mean.to(parameter.dtype)

    def take_back(self) -> None:
        """Give the model its plain weights again, if it has the average."""
        for name, plain in self._plain.items():
            self._parameters[name].data = plain
        self._plain = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside of this context the model has the average."""
        self.put_in_place()
        try:
            yield
        finally:
            self.take_back()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from saved averages. Names that are no parameters (a tied output head) are passed over."""
        self.weights = {
            name: weights[name].to(parameter.device, torch.float32).clone()
            for name, parameter in self._parameters.items()
        }
