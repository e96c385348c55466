"""Tasks: the sources of examples."""

from stepwise_pl.tasks.addition import Addition
from stepwise_pl.tasks.base import EASY, SPLITS, Example, ExampleList, Examples, Splits, Task
from stepwise_pl.tasks.files import Files
from stepwise_pl.tasks.gsm8k import GSM8K
from stepwise_pl.tasks.modular_sum import ModularSum
from stepwise_pl.tasks.multiplication import Multiplication
from stepwise_pl.tasks.parity import Parity
from stepwise_pl.tasks.prosqa import ProsQA
from stepwise_pl.tasks.word_problems import WordProblems

__all__ = [
    "EASY", "GSM8K", "SPLITS", "Addition", "Example", "ExampleList", "Examples", "Files", "ModularSum", "Multiplication", "Parity",
    "ProsQA", "Splits", "Task", "WordProblems",
]  # fmt: skip
