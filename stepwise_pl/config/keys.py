"""Sets of keys: those that a resumed run may change, those that change nothing learned, those that hold paths.

Each field of a configuration carries these marks itself (`common.settings.setting`); this module collects them.
"""

import functools
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from stepwise_pl.common import registry
from stepwise_pl.config.run import Config


def settings_of(schema: type, prefix: str = "") -> Iterator[tuple[str, "Field[Any]"]]:
    """Every dotted key of a configuration, of all tasks, schedules and methods, and its field; groups before their keys.

    A key comes once for each task, schedule or method that has it.
    """
    kinds = registry.load_all()
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        yield key, field
        choices: list[Any] = [kind for (group, _), kind in kinds.items() if group == key]
        for part in choices or [field.default_factory]:
            if isinstance(part, type) and is_dataclass(part):
                yield from settings_of(part, f"{key}.")


def changeable() -> tuple[str, ...]:
    """Keys that a resumed run may change, for `str.startswith`."""
    return _marked("changeable", len(registry.load_all()))


def aside() -> tuple[str, ...]:
    """Keys that change neither what is learned nor how, for `str.startswith`."""
    return _marked("aside", len(registry.load_all()))


def paths() -> tuple[str, ...]:
    """Keys that hold paths, or may."""
    return _marked("path", len(registry.load_all()))


@functools.cache
def _marked(mark: str, count: int) -> tuple[str, ...]:
    """The marked keys of a training run: a whole key, or `<group>.` for a marked group.

    Args:
        count: the number of registered classes; it grows with each plugin.
    """
    found = [(key, field) for key, field in settings_of(Config) if field.metadata.get(mark)]
    return tuple(dict.fromkeys(f"{key}." if is_dataclass(field.default_factory) else key for key, field in found))


def may_change(key: str) -> bool:
    """Whether a resumed run may change the dotted key. `optimizer.decay` may change, and `optimizer.decay_all` may not."""
    return key in changeable() or key.startswith(tuple(one for one in changeable() if one.endswith(".")))


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in plain.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
