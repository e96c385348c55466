"""The keys that a resumed run may change: those whose field says `changeable` (`stepwise_pl.common.settings`), and no others.

The fields are in stepwise_pl/config and in the files of tasks, schedules and methods. A key that the command line does not set stays as it was, whatever its default is by now.
"""

import os
from collections.abc import Set
from pathlib import Path
from typing import Any

from stepwise_pl.common.disk import read_json
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import flat, is_aside, may_change, paths
from stepwise_pl.config.plain import config_from, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.runs.saved_config import saved_config


def resumed_config(run_dir: Path, config: Config, given: Set[str]) -> Config:
    """The configuration of the run in the folder, with what the command line may change.

    Args:
        config: as composed from this command line.
        given: the keys and groups that the command line sets. With nothing but `run_dir` and `resume` the run goes on
            as it was; a group or an experiment that is named must compose to the same keys.

    Raises:
        UserError: a key differs that may not; the message names each, with both values.
    """
    saved, new = to_plain(saved_config(run_dir)), flat(to_plain(config))
    differ = differences(run_dir, config, given)
    refused = [f"{key} was {old}, is {now}" for key, (old, now) in differ.items() if not may_change(key)]
    if refused:
        raise UserError(
            f"run_dir={run_dir}: the run there has another configuration: {'; '.join(refused)}. Leave that out, or give "
            "another run_dir"
        )
    changed = {key: now for key, (_, now) in differ.items()}
    changed |= {key: new[key] for key in ("run_dir", "resume")}
    for key, now in changed.items():
        *parents, name = key.split(".")
        place = saved
        for parent in parents:
            place = place[parent]
        place[name] = now
    return config_from(saved, Config)


def changes_of(run_dir: Path, config: Config, given: Set[str]) -> dict[str, tuple[Any, Any]]:
    """The keys that a resumed run changes: the value before and the new one. `run_dir` and `resume` do not count.

    Raises:
        UserError: the run's configuration cannot be read.
    """
    found = differences(run_dir, config, given)
    return {key: both for key, both in found.items() if key not in ("run_dir", "resume")}


def differences(run_dir: Path, config: Config, given: Set[str]) -> dict[str, tuple[Any, Any]]:
    """The keys that the command line sets to another value than the run in the folder has: both values of each, sorted.

    Raises:
        UserError: the run's configuration cannot be read.
    """
    old, new = _both(run_dir, config)
    # A run keeps the plugins that it needs.
    new["plugins"] = _joined(old["plugins"], new["plugins"])
    by_name = given if "name" in given else given - {"experiment"}
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if (by_name if key == "name" else given) & {"experiment", key.split(".")[0], key}
        and old.get(key) != new.get(key)
        and not (key in paths() and _expanded(old.get(key)) == new.get(key))
    }


def finished(run_dir: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a run that is over and was made with this configuration; None if something is left to do.

    Raises:
        UserError: the run's configuration or summary cannot be read.
    """
    if not (run_dir / "summary.json").is_file() or not (run_dir / "config.yaml").is_file():
        return None
    old, new = _both(run_dir, config)
    if any(old.get(key) != new.get(key) for key in old.keys() | new.keys() if not is_aside(key)):
        return None
    return read_json(run_dir / "summary.json")


def _both(run_dir: Path, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of the run in the folder, and the one given, with dotted keys."""
    return flat(to_plain(saved_config(run_dir))), flat(to_plain(config))


def _joined(old: list[str], new: list[str]) -> list[str]:
    """The plugins of a resumed run, and the new ones. A new plugin takes the place of a file of its name that is gone."""
    names = {Path(name).stem for name in new}
    kept = [
        name for name in old if not (name.endswith(".py") and not Path(name).is_file() and Path(name).stem in names)
    ]
    return list(dict.fromkeys([*kept, *new]))


def _expanded(path: Any) -> Any:
    """A path with `~` as the home folder, as versions that kept the `~` meant it."""
    if isinstance(path, list):
        return [_expanded(one) for one in path]
    return os.path.expanduser(path) if isinstance(path, str) else path  # noqa: PTH111
