"""The values of a record, as text."""

import math
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any


def named(name: str, key: str) -> str:
    """`'steps' (task.cot_field)`: a field or column, and the config key that gives its name."""
    return f"{name!r} ({key})" if key else repr(name)


def field_text(row: Mapping[str, Any], name: str, key: str = "") -> str:
    """Return a field of a row as text; numbers are written out. Raise `ValueError` with the reason if it is no text.

    Args:
        key: the config key that gives the name, for messages; empty: none does.
    """
    if name not in row:
        raise ValueError(f"no field {named(name, key)}; it has: {', '.join(map(str, row))}")
    return _as_text(row[name], f"field {name!r}")


def field_steps(row: Mapping[str, Any], name: str, key: str = "") -> list[str] | str:
    """Return a CoT field: a list of steps, or one text; null is an empty CoT. Raise `ValueError` with the reason otherwise.

    Args:
        key: as `field_text` has it.
    """
    if name in row and row[name] is None:
        return ""
    if not isinstance(row.get(name), list):
        return field_text(row, name, key)
    steps = [_as_text(step, f"step {i} of field {name!r}").strip() for i, step in enumerate(row[name], start=1)]
    if "" in steps:
        raise ValueError(f"step {steps.index('') + 1} of field {name!r} is empty")
    return steps


def _as_text(value: Any, what: str) -> str:
    if isinstance(value, ValueError):
        raise ValueError(f"{what} {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} is not a number ({value})")
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"{what} is not a number ({value})")
        return format(value, "f")
    # `date` includes `datetime`: ISO 8601, with a space between day and time.
    if isinstance(value, bool) or not isinstance(value, str | int | float | date | time):
        raise ValueError(f"{what} is {'null' if value is None else type(value).__name__}, not text")
    return str(value)
