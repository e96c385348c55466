"""A setting: a field of a configuration dataclass, with marks that say what its key means to a run.

The comment above the field holds its meaning, unit and range.
"""

from collections.abc import Callable
from dataclasses import MISSING, field
from typing import Any


def setting(
    default: Any = MISSING,
    *,
    factory: Callable[[], Any] | Any = MISSING,
    changeable: bool = False,
    aside: bool = False,
    path: bool = False,
) -> Any:
    """A field with marks; a field without any is written as dataclasses have it. `config.keys` collects the marks.

    A mark of a group, such as `logger`, holds for every key of the group.

    Args:
        default: its value if the user gives none; else `factory` makes that value.
        changeable: a resumed run may change it: how long and where the run trains, how fast tokens leave from then on,
            and what it shows and saves. Any other change would make it another run.
        aside: it changes neither what is learned nor how, so that it is no part of a run's name, and runs that differ
            in it are alike.
        path: it holds a path, or may: `~` is the home folder in it.
    """
    marks = {"changeable": changeable, "aside": aside, "path": path}
    return field(default=default, default_factory=factory, metadata=marks)
