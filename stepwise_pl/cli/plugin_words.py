"""Load the plugins of a command line, before Hydra composes: the classes must be registered by then."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from stepwise_pl.cli.overrides import parsed, quoted, readable, setting
from stepwise_pl.cli.resumed_groups import resumed_folder, with_resume_settled
from stepwise_pl.common import plugins
from stepwise_pl.common.errors import UserError
from stepwise_pl.config import known
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.runs.saved_config import load_plugins

SEARCH_PATH = "hydra.searchpath"


class OwnFolders(SearchPathPlugin):
    """Tells Hydra of the folders of choices besides this package's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in plugins.folders:
            search_path.append("stepwise_pl.plugins", str(folder))


def with_plugins(words: Sequence[str]) -> list[str]:
    """Load the plugins of installed packages, of the command line, and of the run that it resumes.

    Return the words. `resume=auto` is settled then, and each plugin has the name that the run keeps, each folder its absolute path.

    Raises:
        UserError: a plugin cannot be loaded, or a folder is not there.
    """
    plugins.load_installed()
    if known.command.name == "train":
        words = with_resume_settled(words)
    folder = resumed_folder(words) if known.command.name == "train" else None
    if folder is not None:
        with contextlib.suppress(UserError, OSError):  # `resume` says what is wrong with the folder
            load_plugins(read_yaml(folder / "config.yaml"), folder)
    keys = {field.name for field in dataclasses.fields(known.command.schema)}
    left: list[str] = []
    searched: list[str] = []
    named: list[str] = []
    for word in words:
        given = setting(word)
        if given is not None and given.key == "plugins" and "plugins" in keys:
            named += map(plugins.load, _names(word))
        elif given is not None and given.key == SEARCH_PATH:
            searched = list(map(_place, _names(word)))
        else:
            left.append(word)
    Plugins.instance().register(OwnFolders)
    lists = {"plugins": named, SEARCH_PATH: searched}
    return [*left, *(_as_list(key, names) for key, names in lists.items() if names)]


def _names(word: str) -> list[str]:
    """The names that a word gives to its key: a list, or one name."""
    key = word.partition("=")[0]
    found = parsed(readable(word, sweeps=True))
    if found is None or found.is_sweep_override():
        raise UserError(f"{word}: is one for all jobs; a list is written {key}=[<first>,<second>]")
    value = found.value()
    names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str) and name]
    if names != value and [value] != names:
        raise UserError(f"{word}: must be a list of names, {key}=[<first>,<second>]")
    return names


def _place(name: str) -> str:
    """A place on Hydra's search path as Hydra takes it. A folder joins those of the plugins."""
    if "://" in name and not name.startswith("file://"):
        return name
    path = Path(os.path.abspath(Path(name.removeprefix("file://")).expanduser()))  # noqa: PTH100
    if not path.is_dir():
        raise UserError(f"{SEARCH_PATH}={name}: no such folder")
    if path not in plugins.folders:
        plugins.folders.append(path)
    return str(path)


def _as_list(key: str, names: Iterable[str]) -> str:
    return f"{key}=[{','.join(map(quoted, names))}]"
