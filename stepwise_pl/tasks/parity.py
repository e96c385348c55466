"""Parity of a string of bits. The chain of thought is the running parity."""

from dataclasses import dataclass

from stepwise_pl.common.errors import require
from stepwise_pl.common.registry import register
from stepwise_pl.tasks.digit_sum import DigitSumTask


@register("task")
@dataclass
class Parity(DigitSumTask):
    """Whether a string of `bits` bits holds an odd number of ones: 1 if it does, 0 if not.

    Example line for `bits=4`:
    `1 0 1 1||1 1 0 1 #### 1`

    Token i of the CoT is the parity of the first i bits. The CoT has as many tokens, and as
    many reasoning steps, as there are bits. Its last token is the answer. If lengths are
    drawn uniformly (`min_bits` below `bits`), short strings can be fewer: there are 2**n
    strings of n bits, and each occurs once at most.

    Raises:
        UserError: a value is out of range.
    """

    kind: str = "parity"
    # Bits of a string; 1 to 256.
    bits: int = 16
    # Lengths are drawn uniformly from min_bits to bits; null: all strings have `bits` bits.
    min_bits: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.bits <= 256, "task.bits", self.bits, "must be between 1 and 256")
        if self.min_bits is not None:
            require(1 <= self.min_bits <= self.bits, "task.min_bits", self.min_bits,
                    f"must be between 1 and task.bits={self.bits}")  # fmt: skip

    def symbols(self) -> tuple[str, ...]:
        return ("0", "1")

    def shape(self) -> tuple[int, int, int]:
        return 2, self.min_bits or self.bits, self.bits
