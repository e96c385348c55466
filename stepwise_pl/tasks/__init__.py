"""Where examples come from."""

from stepwise_pl.tasks.base import SPLITS, Example, ExampleList, Examples, Splits, Task
from stepwise_pl.tasks.files import Files
from stepwise_pl.tasks.gsm8k import GSM8K
from stepwise_pl.tasks.multiplication import Multiplication

__all__ = ["GSM8K", "SPLITS", "Example", "ExampleList", "Examples", "Files", "Multiplication", "Splits", "Task"]
