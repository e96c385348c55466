"""Schedules: the stage s(t) that training is at, and the stages of single examples around it (`spread.py`)."""

from stepwise_pl.schedules.adaptive import Adaptive
from stepwise_pl.schedules.base import Schedule
from stepwise_pl.schedules.linear import Linear

__all__ = ["Adaptive", "Linear", "Schedule"]
