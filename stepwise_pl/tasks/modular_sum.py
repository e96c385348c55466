"""The sum of many digits, modulo a small number. The chain of thought is the running sum."""

from dataclasses import dataclass

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.tasks.digit_sum import DigitSumTask


@register("task")
@dataclass
class ModularSum(DigitSumTask):
    """The sum of `terms` digits, each from 0 to `modulus` - 1, modulo `modulus`.

    Example line for `modulus=5` and `terms=4`:
    `3 4 1 2||3 2 3 0 #### 0`

    Token i of the CoT is the sum of the first i digits, modulo `modulus`. The CoT has as many
    tokens, and as many reasoning steps, as there are digits. Its last token is the answer.
    Every proper subset of the digits is independent of the answer. A model must read all
    digits before it does better than chance, which is 1 / `modulus`.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = "modular_sum"
    # The sum is taken modulo this; 2 to 10.
    modulus: int = 5
    # Digits of a problem; 1 to 256.
    terms: int = 8
    # Lengths are drawn uniformly from min_terms to terms; null: all problems have `terms` digits.
    min_terms: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.modulus <= 10, "task.modulus", self.modulus, "must be between 2 and 10")
        require(1 <= self.terms <= 256, "task.terms", self.terms, "must be between 1 and 256")
        if self.min_terms is not None:
            require(1 <= self.min_terms <= self.terms, "task.min_terms", self.min_terms,
                    f"must be between 1 and task.terms={self.terms}")  # fmt: skip

    def symbols(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.modulus)))

    def shape(self) -> tuple[int, int, int]:
        return self.modulus, self.min_terms or self.terms, self.terms
