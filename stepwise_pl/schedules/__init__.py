"""How many CoT tokens are gone at each optimizer step."""

from stepwise_pl.schedules.adaptive import Adaptive
from stepwise_pl.schedules.base import Schedule
from stepwise_pl.schedules.linear import Linear

__all__ = ["Adaptive", "Linear", "Schedule"]
