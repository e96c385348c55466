"""Arithmetic stories in plain English. The chain of thought is their equations."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.tasks import word_problems_ood
from stepwise_pl.tasks.base import Example, Examples, Splits
from stepwise_pl.tasks.equations import step_results
from stepwise_pl.tasks.formats import SENTENCE_FORMS, Form
from stepwise_pl.tasks.questions import joined_digits
from stepwise_pl.tasks.sampling import Keys, Problems, SampledTask
from stepwise_pl.tasks.stories import Story, vocabulary

CHUNK = 1 << 12  # stories made at a time; a larger chunk would take long


@register("task")
@dataclass
class WordProblems(SampledTask):
    """Stories of `min_steps` to `max_steps` calculations about people, their money, and shops.

    Example line for `min_steps=2, max_steps=2`:
    `Omar has 9 6 dollars . He pays 4 dollars for each of 7 puzzles . How many dollars belong to Omar now ?||<< 7 * 4 = 2 8 >> << 9 6 - 2 8 = 6 8 >> #### 6 8`

    Numbers are written most significant digit first, as in any English text, with spaces
    between the digits. A reasoning step is one equation. Its operands are numbers of the
    prompt, results of earlier equations, or numbers that a word names: 2 (half, twice,
    doubles), 3 (third, triples) and 4 (quarter). Every number of the prompt is used, all
    numbers are between 2 and 999, and divisions are exact. No result occurs in the prompt
    or in an earlier equation, so that no answer can be read off the prompt.

    The tables of `story_phrases.py` hold the events: gains and losses, goods at a price,
    wages, equal shares, fractions, growth, comparisons. Each event has several wordings. The
    same words (`gets`, `buys`, `more`, `times as many`) stand in steps that add or multiply
    and in steps that subtract or divide.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = "word_problems"
    # Equations of a problem at least; every number of them is equally likely.
    min_steps: int = 2
    # Equations of a problem at most; 1 to 8.
    max_steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.max_steps <= 8, "task.max_steps", self.max_steps, "must be between 1 and 8")
        require(1 <= self.min_steps <= self.max_steps, "task.min_steps", self.min_steps,
                f"must be between 1 and task.max_steps={self.max_steps}")  # fmt: skip

    def symbols(self) -> tuple[str, ...]:
        return vocabulary()

    def prompt_of(self, text: str) -> str:
        """Return the prompt of a story as people write it: digits and marks become words of their own."""
        return super().prompt_of(" ".join(re.findall(r"[0-9]|[A-Za-z'-]+|[^\sA-Za-z0-9]", text)))

    def readable(self, text: str) -> str:
        return re.sub(r" (?=[.,?])", "", joined_digits(text))

    def results(self, examples: Sequence[Example]) -> dict[str, list[npt.NDArray[np.float64]]]:
        """Return the right side of each equation as `result`."""
        return {"result": [step_results(example) for example in examples]}

    def draw(self, rng: np.random.Generator) -> Problems:
        """Return a seed for each problem; its story follows from it; [CHUNK]."""
        return rng.integers(0, 2**63, CHUNK, dtype=np.uint64)

    def keys(self, problems: Problems) -> Keys:
        hashes = [hashlib.blake2b(example.prompt.encode(), digest_size=8).digest() for example in self.render(problems)]
        return np.frombuffer(b"".join(hashes), np.uint64)

    def render(self, problems: Problems) -> list[Example]:
        return [Story(seed).tell(self.min_steps, self.max_steps) for seed in problems.tolist()]

    def ood(self, splits: Splits, size: int) -> dict[str, Examples]:
        """Return the parts that `word_problems_ood.suite` describes."""
        return word_problems_ood.suite(self.min_steps, self.max_steps, self.seed, size)

    def forms(self) -> dict[str, Form]:
        """Return the forms of every task and of sentences; commas for full stops; and the text as people write it."""
        return {
            **super().forms(),
            **SENTENCE_FORMS,
            "commas": lambda prompt: prompt.replace(" . ", " , "),
            "usual_text": self.readable,
        }
