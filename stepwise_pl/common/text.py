"""Accuracies, durations and tables as text."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from stepwise_pl.common.statistics import wilson


def percent(accuracy: float) -> str:
    """`82.4%`: an accuracy between 0 and 1."""
    return f"{accuracy:.1%}"


def percents(interval: Sequence[float]) -> str:
    """`[79.1%, 85.3%]`: the two ends of an interval of accuracies."""
    low, high = interval
    return f"[{percent(low)}, {percent(high)}]"


def with_wilson(accuracy: float, examples: int) -> str:
    """` 82.4%  [79.1%, 85.3%]  n=500`: an accuracy with its 95% Wilson interval, the accuracy padded for columns."""
    return f"{percent(accuracy):>6}  {percents(wilson(accuracy, examples))}  n={examples}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], widest: int | None = None) -> list[str]:
    """Lines of plain text. The first column is aligned to the left, the others to the right.

    Args:
        widest: a longer cell goes over several lines; characters, None: no cell does.
    """
    cells = [[_wrapped(text, widest) for text in row] for row in (head, *rows)]
    first, *others = [max(len(line) for row in cells for line in row[column]) for column in range(len(head))]
    return [
        "  ".join([texts[0].ljust(first), *(text.rjust(width) for text, width in zip(texts[1:], others, strict=True))]).rstrip()
        for row in cells
        for texts in zip_longest(*row, fillvalue="")
    ]  # fmt: skip


def _wrapped(text: str, widest: int | None) -> list[str]:
    """The lines of a cell. A line ends behind a separator of its second half if there is one."""
    lines = []
    while widest is not None and len(text) > widest:
        cut = 1 + max((text.rfind(mark, widest // 2, widest) for mark in "/,_-.= "), default=-1)
        lines.append(text[: cut or widest])
        text = text[cut or widest :]
    return [*lines, text]


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min` or `5 days`, rounded."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(minutes / 60 / 24):,} days"


def counted(count: float, noun: str) -> str:
    """`1 step`, `4,000 steps` or `0.333 epochs`: a number, rounded to three decimals, with its noun."""
    number = f"{round(count, 3):,.15g}"
    return f"{number} {noun}{'' if number == '1' else 's'}"


def milliseconds(value: float) -> str:
    """A time in milliseconds, to a tenth of one; from 100 on, to a whole one."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """`1:02:03`: hours, minutes and seconds."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
