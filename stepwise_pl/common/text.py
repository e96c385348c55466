"""Tables, percentages and durations as text."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of plain text, the first column to the left, the others to the right."""
    cells = [head, *rows]
    first, *others = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join([row[0].ljust(first), *(text.rjust(width) for text, width in zip(row[1:], others, strict=True))]).rstrip()
        for row in cells
    ]  # fmt: skip


def percents(interval: tuple[float, float]) -> str:
    """An interval of accuracies, for reading."""
    return f"[{interval[0]:.1%}, {interval[1]:.1%}]"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min` or `5 days`: rounded, for reading."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(minutes / 60 / 24):,} days"
