"""The length of a run, as a user writes it: `trainer.duration`."""

import re
from dataclasses import dataclass
from fractions import Fraction

from stepwise_pl.common.errors import UserError

UNITS = ("steps", "epochs", "examples")

# Twelve digits before the point are more than any run needs, and floats still count them one by one.
_FORM = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?(step|epoch|example)s?")


_CLOCK = re.compile(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]?\d):([0-5]?\d)", re.ASCII)


def seconds_of(text: str) -> int:
    """Read a `trainer.max_time`: `02:50:00` or, with days, `1-00:00:00`; return seconds.

    Raises:
        UserError: the text has another form, or is no time at all.
    """
    match = _CLOCK.fullmatch(text.strip())
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    found = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not found:
        raise UserError(
            f"trainer.max_time={text}: must be hours:minutes:seconds, such as 02:50:00, or 1-00:00:00 with days; quote it in YAML"
        )
    return found


@dataclass(frozen=True)
class Duration:
    """A number of optimizer steps, epochs or examples.

    Attributes:
        amount: above 0; whole for steps and examples.
        unit: one of `UNITS`.
    """

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read `4000steps`, `0.5epochs` or `256000 examples`; a unit may stand in the singular.

        Raises:
            UserError: the text has another form, or the number is out of range.
        """
        wrong = f"trainer.duration={text}"
        match = _FORM.fullmatch(text.strip())
        if match is None:
            number = text.strip() if re.fullmatch(r"[0-9.]{1,12}", text.strip()) else "4000"
            ways = (f"{number}steps", f"{number}epochs", f"{number}examples")
            budget = "; trainer.max_tokens_read=<number> ends a run by tokens" if "token" in text else ""
            raise UserError(
                f"{wrong}: must be a number with its unit: write {', '.join(ways[:2])} or {ways[2]}{budget}"
            )
        amount, unit = Fraction(match[1]), f"{match[2]}s"
        if amount <= 0:
            raise UserError(f"{wrong}: must be above 0")
        if unit != "epochs" and amount.denominator > 1:
            raise UserError(f"{wrong}: must be a whole number; only epochs may be a part of one")
        return cls(amount, unit)

    def __str__(self) -> str:
        """The one way to write it that runs are compared by; `parse` reads it back."""
        whole, rest = divmod(self.amount.numerator * 10**12 // self.amount.denominator, 10**12)
        return f"{whole}{f'.{rest:012d}'.rstrip('0') if rest else ''}{self.unit}"

    def steps(self, steps_per_epoch: int, batch_size: int) -> int:
        """Return the number of optimizer steps: the nearest whole number (of two, the even one), at least 1.

        Args:
            steps_per_epoch: T.
            batch_size: examples per optimizer step.
        """
        steps = {
            "steps": self.amount,
            "epochs": self.amount * steps_per_epoch,
            "examples": self.amount / batch_size,
        }[self.unit]
        return max(1, round(steps))
