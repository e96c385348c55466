"""When: which stage s(t) training is at, and where each example stands around it (`spread.py`)."""

from stepwise_pl.schedules.adaptive import Adaptive
from stepwise_pl.schedules.base import Schedule
from stepwise_pl.schedules.linear import Linear

__all__ = ["Adaptive", "Linear", "Schedule"]
