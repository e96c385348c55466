"""Tasks that sum digits modulo a small number. The chain of thought is the running sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwise_pl.common.errors import UserError
from stepwise_pl.tasks import digit_sum_ood
from stepwise_pl.tasks.base import Example, Examples, Splits
from stepwise_pl.tasks.digit_strings import drawn_digits, running_sums
from stepwise_pl.tasks.questions import digits_in, printed
from stepwise_pl.tasks.sampling import Problems, SampledTask, in_places, read_digits


@dataclass
class DigitSumTask(SampledTask):
    """Digits whose sum is taken; the answer is its remainder, and the CoT the running remainders (`running_sums`)."""

    def shape(self) -> tuple[int, int, int]:
        """Return the modulus, and the fewest and the most digits of a problem."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator) -> Problems:
        return drawn_digits(rng, *self.shape())

    def render(self, problems: Problems) -> list[Example]:
        return running_sums(problems, self.shape()[0])

    def ood(self, splits: Splits, size: int) -> dict[str, Examples]:
        """Return the parts that `digit_sum_ood.suite` describes."""
        return digit_sum_ood.suite(splits["train"], self.shape(), self.seed, size)

    def solved(self, prompts: Sequence[str]) -> list[Example | None]:
        modulus, least, most = self.shape()
        problems = np.full((len(prompts), most), modulus, np.uint8)
        rows = []
        for row, prompt in enumerate(prompts):
            digits = read_digits(prompt)
            if least <= len(digits) <= most and max(digits) < modulus:
                problems[row, : len(digits)] = digits
                rows.append(row)
        return in_places(rows, self.render(problems[rows]), len(prompts))

    def prompt_of(self, text: str) -> str:
        """Return the prompt of `3 4 1 2`, `3412` or `3 + 4 + 1 + 2`."""
        modulus, least, _ = self.shape()
        digits, given = digits_in(text, " ".join(str(place % modulus) for place in range(1, least + 1)))
        if given not in (None, modulus):
            raise UserError(f"{printed(text)}: this task adds modulo {modulus}, not {given}")
        return " ".join(digits)

    def cot_length_known(self) -> bool:
        return True

    def quantities(self) -> tuple[str, ...]:
        return ("running_sum",)

    def values(self, name: str, examples: Sequence[Example]) -> list[npt.NDArray[np.float64]]:
        """Return the sum of all digits, of which the answer is the remainder; one number an example."""
        if name not in self.quantities():
            return super().values(name, examples)
        return [np.array(example.prompt.split(), np.float64).sum(keepdims=True) for example in examples]
