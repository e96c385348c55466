"""Questions that the processes of a run answer together."""

from itertools import chain
from typing import TypeVar

import lightning as L
import torch

T = TypeVar("T")


def any_of(trainer: L.Trainer, answer: bool) -> bool:
    """Whether any process answers yes. All processes must call it together."""
    return answer if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(answer, all=False)


def everywhere(trainer: L.Trainer, found: list[T]) -> list[T]:
    """The findings of all processes in one list. All processes must call it together."""
    if trainer.world_size == 1:
        return found
    of_all: list[list[T]] = [[]] * trainer.world_size
    torch.distributed.all_gather_object(of_all, found)
    return list(chain.from_iterable(of_all))
