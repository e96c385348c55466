"""Where examples come from."""

from stepwise_pl.tasks.base import SPLITS, Example, Examples, Task
from stepwise_pl.tasks.lines import LineFiles
from stepwise_pl.tasks.multiplication import Multiplication

__all__ = ["SPLITS", "Example", "Examples", "LineFiles", "Multiplication", "Task"]
