"""The class behind each `kind` of a config group.

A task, schedule or method is a dataclass whose fields are its configuration: the class is
the schema that Hydra checks, the object that runs, and the documentation. A module in
`stepwise_pl.tasks`, `stepwise_pl.schedules` or `stepwise_pl.methods` registers its class, and a YAML file in
`conf/<group>/` that begins with `defaults: [_<kind>]` makes the class selectable. Nothing else
has to change. `common.plugins` loads classes from outside of this package.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from stepwise_pl.common.errors import UserError

T = TypeVar("T")

SCHEMAS: dict[tuple[str, str], type] = {}


def register(group: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make the dataclass known under `group` and its field `kind`.

    Raises:
        UserError: the class has no `kind` of its own, or another class has the same.
    """

    def add(cls: type[T]) -> type[T]:
        name = f"{cls.__module__}.{cls.__qualname__}"
        kind = cls.__dict__.get("kind")
        if not kind:
            raise UserError(f'{name}: is registered as a {group} without a kind; give it `kind: str = "<name>"`')
        other = SCHEMAS.setdefault((group, kind), cls)
        if f"{other.__module__}.{other.__qualname__}" != name:
            raise UserError(
                f"{name}: kind {kind} is that of {other.__module__}.{other.__qualname__} already; choose another"
            )
        SCHEMAS[group, kind] = cls  # A module that is loaded again brings its class once more.
        return cls

    return add


def load_all() -> dict[tuple[str, str], type]:
    """Import every module of the task, schedule and method packages; return all registered classes."""
    _import_own()
    return SCHEMAS


@functools.cache
def _import_own() -> None:
    # Once in a process: to list the modules takes a millisecond, and the table of a sweep asks for each key of each run.
    for group in ("tasks", "schedules", "methods"):
        package = importlib.import_module(f"stepwise_pl.{group}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
