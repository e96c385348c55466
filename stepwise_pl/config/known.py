"""The groups, choices and keys of the command at hand."""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from stepwise_pl.common import plugins, registry
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
    found: dict[str, set[str]] = {group: set() for group in groups}
    for group, kind in plugins.kinds():
        found.get(group, set()).add(kind)  # a class without a file is chosen by its kind
    for group, names in found.items():
        names.update(path.stem for folder in folders() for path in (folder / group).glob("*.yaml"))
    return {group: sorted(names) for group, names in found.items() if names}


def folders() -> list[Path]:
    """The folders of choices: our own, and those of plugins."""
    return [CONF, *(folder for folder in plugins.folders if folder.resolve() != CONF.resolve())]


def choice_file(group: str, name: str) -> Path | None:
    """The YAML file of a choice; None if it has none."""
    files = [folder / group / f"{name}.yaml" for folder in folders()]
    return next((file for file in files if file.is_file()), None)


def known_keys() -> list[str]:
    """Every dotted key of this command, of all tasks, schedules and methods."""
    return list(dict.fromkeys(key for key, _ in settings_of(command.schema)))


def kind_of(group: str, name: str) -> str:
    """The kind behind a choice of a task, schedule or method; empty if its file names none."""
    file = choice_file(group, name)
    if file is None:  # a class of a plugin is chosen by its kind
        return name
    text = file.read_text(encoding="utf-8")
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
