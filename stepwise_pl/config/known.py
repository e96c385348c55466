"""The groups, choices and keys of the command at hand."""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from stepwise_pl.common import registry
from stepwise_pl.config.keys import settings_of
from stepwise_pl.config.run import Config

_PACKAGE = Path(__file__).parent.parent

# In a wheel the YAML files lie inside the package; in a checkout, at the top of the repository.
CONF = next((path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir()), _PACKAGE / "conf")


class Command(NamedTuple):
    """A command of the package: its name, and the dataclass of its settings."""

    name: str
    schema: type


# The command that this process runs.
command = Command("train", Config)


def set_command(name: str, schema: type) -> None:
    """Say what command this process runs."""
    global command
    command = Command(name, schema)


def choices() -> dict[str, list[str]]:
    """The groups that this command has, and what may be chosen in each; experiments first."""
    groups = [field.name for field in dataclasses.fields(command.schema)]
    if "task" in groups:
        groups.insert(0, "experiment")
    found = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in groups}
    return {group: names for group, names in found.items() if names}


def known_keys() -> list[str]:
    """Every dotted key of this command, of all tasks, schedules and methods."""
    return list(dict.fromkeys(key for key, _ in settings_of(command.schema)))


def kind_of(group: str, name: str) -> str:
    """The kind behind a choice of a task, schedule or method; empty if its file names none."""
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^defaults: *\[_(\w+)\]", text, re.MULTILINE)
    return found[1] if found else ""


def choices_with(key: str) -> list[str]:
    """The tasks, schedules or methods that have a dotted key; none if its group has one kind only, or no such key."""
    group, _, field = key.partition(".")
    kinds = [
        kind
        for (of, kind), schema in registry.load_all().items()
        if of == group
        if field in {one.name for one in dataclasses.fields(schema)}
    ]
    return [name for name in choices().get(group, []) if kind_of(group, name) in kinds]
