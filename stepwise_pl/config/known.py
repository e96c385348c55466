"""What may be set on the command line of the command at hand: its groups, their choices, its keys; and what a mistyped name may have meant."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepwise_pl.common import registry
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
    if command.name == "train":
        groups.insert(0, "experiment")
    found = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in groups}
    return {group: names for group, names in found.items() if names}


def known_keys() -> list[str]:
    """Every dotted key of this command, of all tasks and schedules."""
    kinds = registry.load_all()

    def keys(schema: type, prefix: str) -> Iterable[str]:
        for field in dataclasses.fields(schema):
            yield f"{prefix}{field.name}"
            parts = [kind for (group, _), kind in kinds.items() if group == field.name and not prefix]
            made: list[Any] = [*parts] or [field.default_factory]
            for part in made:
                if isinstance(part, type) and dataclasses.is_dataclass(part):
                    yield from keys(part, f"{prefix}{field.name}.")

    return list(dict.fromkeys(keys(command.schema, "")))


def suggestion(key: str, siblings: Sequence[str] = ()) -> str:
    """` Did you mean ...?` for a key that is not known; empty if nothing is like it.

    Args:
        siblings: the names that are known where the key stands.
    """
    group, _, name = key.rpartition(".")
    known = [*choices(), *known_keys()]
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, siblings, n=1)
    found = [".".join([*[group] * bool(group), close[0]])] if close and not elsewhere else elsewhere
    alike = [other for other in known if ("." in other) == ("." in key)]
    found = found or difflib.get_close_matches(key, alike, n=1, cutoff=0.8)
    if not found:
        names = {other.rpartition(".")[2]: other for other in reversed(known)}
        found = [names[one] for one in difflib.get_close_matches(name, names, n=1, cutoff=0.75)]
    return f" Did you mean {' or '.join(found[:3])}?" if found else ""


def no_choice(group: str, name: str, options: list[str]) -> str:
    allowed = sorted(option for option in options if not option.startswith("_"))
    close = difflib.get_close_matches(name, allowed, n=1)
    line = f"{group}={name}: no such {group}; choose from {', '.join(allowed)}"
    line += f". Did you mean {group}={close[0]}?" if close else ""
    if group.startswith("hydra/"):
        line += f" ({name} may come with: pip install 'stepwise_pl[sweep]', or [slurm] or [ray])"
    return line
