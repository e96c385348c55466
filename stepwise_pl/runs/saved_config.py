"""The configuration that a run has in its folder, read: for going on, for use elsewhere, and for telling runs apart."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepwise_pl.common import plugins
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import flat, paths
from stepwise_pl.config.plain import config_from, read_yaml, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.config.upgrade import retired, upgraded
from stepwise_pl.runs.provenance import found_again, located_model, start_folders
from stepwise_pl.tasks import Task
from stepwise_pl.tasks.file_task import DataSearch, FileTask


def saved_config(run_dir: Path) -> Config:
    """The run's configuration. Keys that are younger than the run have their defaults, which keep what was before.

    Raises:
        UserError: it cannot be read, or holds what this version does not know.
    """
    path, missing = run_dir / "config.yaml", ""
    try:
        saved = upgraded(read_yaml(path), path)
        saved.pop("derived", None)
        missing = load_plugins(saved, run_dir)
        if not saved:
            raise UserError("is empty")
        return config_from(saved, Config)
    except UserError as error:
        if missing:
            raise UserError(
                f"{path}: {missing}, which the run needs; put it back, or name its new place with plugins=[<file>]"
            ) from None
        raise UserError(
            f"{path}: {str(error).removeprefix(f'{path}: ')}; give the folder of a training run, for this is no "
            "configuration that this version of stepwise_pl wrote"
        ) from None


def load_plugins(saved: Mapping[str, Any], run_dir: Path) -> str:
    """Load the plugins of a run; return why one cannot be loaded, or nothing. The run may not need its classes.

    Args:
        saved: the run's configuration in plain containers.
    """
    names = saved.get("plugins")
    why = ""
    for name in names if isinstance(names, list) else []:
        try:
            plugins.load(str(name), start_folders(run_dir))
        except UserError as error:
            why = why or str(error)
    return why


def derived_of(run_dir: Path) -> dict[str, Any]:
    """The values that followed from the configuration when the run was started.

    Raises:
        UserError: config.yaml cannot be read.
    """
    found = read_yaml(run_dir / "config.yaml").get("derived")
    return found if isinstance(found, dict) else {}


def comparable_config(run_dir: Path) -> dict[str, Any]:
    """The saved configuration with dotted keys, for telling runs apart; as it is written if this version does not know all of it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        known = flat(to_plain(saved_config(run_dir)))
    except UserError:
        written = read_yaml(run_dir / "config.yaml")
        return {key: value for key, value in flat(written).items() if not key.startswith("derived.")}
    return known | retired(read_yaml(run_dir / "config.yaml"))


def located(config: Config, run_dir: Path) -> Config:
    """A run's configuration for use: data and models that were named from where the run was started are found again.

    The configuration that is kept and compared is the one before: there, names stay as they were typed.
    """
    starts = start_folders(run_dir)
    if isinstance(config.task, FileTask):
        files = derived_of(run_dir).get("files") if (run_dir / "config.yaml").is_file() else None
        config.task.look_in(DataSearch(run_dir, starts, files or None))
    method = config.method.located(lambda name: found_again(name, run_dir))
    return replace(config, model=located_model(config.model, run_dir), method=method)


def differences_of_task(run_dir: Path, task: Task) -> list[str]:
    """Say in what a run's task differs from another: keys with both values, or the files that both read. Empty: both are the same.

    Raises:
        UserError: the run's configuration, or a file of the task, cannot be read.
    """
    theirs, own = (
        {f"task.{key}": value for key, value in flat(to_plain(each)).items()}
        for each in (saved_config(run_dir).task, task)
    )
    # The same files may be named in two ways.
    apart = {key for key in theirs.keys() | own.keys() if theirs.get(key) != own.get(key)} - set(paths())
    files = derived_of(run_dir).get("files")
    if not apart and files is not None and files != list(task.fingerprint() or ()):
        return ["its data files were others"]
    return [f"{key} is {theirs.get(key)} there, {own.get(key)} here" for key in sorted(apart)]


def require_same_files(run_dir: Path, task: Task) -> None:
    """Raise `UserError` if a file of the task has changed since the run: what is held out now may have been trained on."""
    before = derived_of(run_dir).get("files")
    if before is not None and before != list(task.fingerprint() or ()):
        raise UserError(
            f"run={run_dir}: a data file has changed since the run, so its splits may hold what was trained on; put it "
            "back, or evaluate on a file of its own with file=<file>"
        )
