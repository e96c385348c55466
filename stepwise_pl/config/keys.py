"""Sets of keys: those that a resumed run may change, those that change nothing learned, those that hold paths.

Each field of a configuration carries these marks itself (`common.settings.setting`); this module collects them.
"""

import functools
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from stepwise_pl.common import plugins, registry
from stepwise_pl.config.run import Config


def settings_of(schema: type, prefix: str = "", own: bool = False) -> Iterator[tuple[str, "Field[Any]"]]:
    """Every dotted key of a configuration, of all tasks, schedules and methods, and its field; groups before their keys.

    A key comes once for each task, schedule or method that has it. `own`: those of plugins are left out.
    """
    outside = set(plugins.kinds()) if own else set()
    kinds = {place: kind for place, kind in registry.load_all().items() if place not in outside}
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        yield key, field
        choices: list[Any] = [kind for (group, _), kind in kinds.items() if group == key]
        for part in choices or [field.default_factory]:
            if isinstance(part, type) and is_dataclass(part):
                yield from settings_of(part, f"{key}.", own)


def changeable() -> tuple[str, ...]:
    """Keys that a resumed run may change, and groups of them (`guard.`)."""
    return _marked("changeable", len(registry.load_all()))


def aside() -> tuple[str, ...]:
    """Keys that change neither what is learned nor how, and groups of them."""
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


def is_among(key: str, marked: tuple[str, ...]) -> bool:
    """Whether a dotted key, or its group, is among the marked ones. `optimizer.decay` does not stand for `optimizer.decay_all`."""
    return key in marked or key.startswith(tuple(one for one in marked if one.endswith(".")))


def may_change(key: str) -> bool:
    """Whether a resumed run may change the dotted key."""
    return is_among(key, changeable())


def is_aside(key: str) -> bool:
    """Whether the dotted key changes neither what is learned nor how."""
    return is_among(key, aside())


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in plain.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
