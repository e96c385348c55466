"""The parts that commands on run folders share: settings, levels, runs, checkpoints, and one run after the other."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from stepwise_pl.common.disk import disk_error
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.config.training import ACCELERATORS
from stepwise_pl.reporting.history import find_runs
from stepwise_pl.runs.folder import ALL, kept_checkpoints, require_run
from stepwise_pl.runs.inside import PARTS

log = logging.getLogger("stepwise_pl")

T = TypeVar("T")


@dataclass
class LookConfig:
    """The settings that all looks inside have."""

    # The run folder.
    run: str = setting("", path=True)
    # Several run folders, or folders above them, such as that of a sweep. Words without a key are such folders. Each run
    # gets its own tables.
    runs: list[str] = setting(factory=list, path=True)
    # `all`: every checkpoint of `trainer.keep_every_removed`, or the best one if the run kept none; or `best`, `last`,
    # `good`, `removed-<k>` (`stage-<k>` if stages have names), or a file.
    checkpoint: str = setting(ALL, path=True)
    # Of the kept checkpoints only every so many, from the first on, and the last; at least 1.
    every: int = 1
    # The device of the model: `cpu`, `gpu`, `mps`, or `auto`: a GPU if there is one.
    accelerator: str = "auto"
    # Log tables and figures as a W&B run of job type `inside`, in the project of the run's logger. offline=true needs no account.
    wandb: bool = False
    # Use W&B without network or account; needs wandb=true.
    offline: bool = False
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def check(self, command: str) -> None:
        """Check these settings for a command.

        Raises:
            UserError: one of them is wrong.
        """
        if not self.runs:
            require_run(self.run, command)
        elif self.run:
            raise UserError(f"run={self.run} and {' '.join(self.runs)}: give all folders in one way")
        require(self.every >= 1, "every", self.every, "must be at least 1")
        one_of("accelerator", self.accelerator, ACCELERATORS)
        if self.offline and not self.wandb:
            raise UserError("offline=true: is about W&B; add wandb=true")


class Levels(Protocol):
    """The settings of a checkpoint, and of a number of removed units (`evaluate`, `ask`)."""

    checkpoint: str
    removed_tokens: Any
    removed_steps: Any


def check_levels(config: Levels) -> None:
    """Raise `UserError` if a number of removed units is none, or stands beside `checkpoint=all`."""
    for key in ("removed_tokens", "removed_steps"):
        value = getattr(config, key)
        is_level = value in (None, ALL) or (type(value) is int and value >= 0)
        require(is_level, key, value, f"must be a whole number, at least 0, or {ALL}")
        if config.checkpoint == ALL:
            require(value is None, key, value, f"is not for checkpoint={ALL}; name one checkpoint")


def asks_for_several(config: Levels) -> bool:
    """Whether all kept checkpoints are asked for, or one at all levels."""
    return ALL in (config.checkpoint, config.removed_tokens, config.removed_steps)


class Folders(Protocol):
    """The settings of run folders: one, or several with folders above them."""

    run: str
    runs: list[str]


def require_places(names: Sequence[str]) -> None:
    """Raise `UserError` unless each name is a part of an example, or one of its tokens, such as `cot 3`."""
    for name in names:
        part, _, number = name.partition(" ")
        is_place = part in PARTS and (not number or number.removeprefix("-").isdecimal())
        require(is_place, "places", name, f"must be one of {', '.join(PARTS)}, or one with a number, such as 'cot 3'")


def warn_of_absent_places(folder: Path, names: Sequence[str], places: Iterable[str]) -> None:
    """Warn of places that were asked for, by name or by part, and that no row of a table is about.

    Args:
        names: what was asked for.
        places: those of all rows.
    """
    found = {name for place in set(places) for name in (place, place.partition(" ")[0])}
    if absent := [name for name in names if name not in found]:
        log.warning("%s: places=[%s]: no table has a row about it", folder, ",".join(absent))


def checkpoints_of(folder: Path, config: LookConfig) -> list[str]:
    """Return the names of the checkpoints that are asked for."""
    if config.checkpoint != ALL:
        return [config.checkpoint]
    kept = [path.stem for path in kept_checkpoints(folder / "checkpoints")]
    return list(dict.fromkeys([*kept[:: config.every], *kept[-1:]])) or ["best"]


def each_that_loads(folder: Path, names: Sequence[str], load: Callable[[str], T]) -> Iterator[T]:
    """Yield the run with each of its checkpoints. If there are several, one that cannot be read is a warning, because the work on
    the others would be lost.

    Args:
        names: of the checkpoints.
        load: loads the run with a checkpoint.

    Raises:
        UserError: no checkpoint can be read.
    """
    num_read = 0
    errors: list[UserError] = []  # said once it is clear that not all fail, probably for the same reason

    def warn() -> None:
        while errors:
            log.warning("%s; the tables go without it", errors.pop(0))

    for name in names:
        try:
            run = load(name)
        except UserError as error:
            if len(names) == 1:
                raise
            errors.append(error)
        else:
            num_read += 1
            warn()
            yield run
            del run  # The next checkpoint is read into the memory that this one leaves.
    if not num_read:
        raise UserError(f"checkpoint={ALL}: no checkpoint of {folder} can be read; the first: {errors[0]}")
    warn()


def run_folders(config: Folders) -> list[Path]:
    """Return the folders of the runs that are asked for. Raise `UserError` if there is none."""
    folders, notes = find_runs(config.runs or [config.run])
    if not folders:
        raise UserError(f"no run to look at: {'; '.join(notes)}. Give folders of runs, or folders above them")
    for note in notes:
        log.warning("%s", note)
    return folders


def look_at_each(folders: Sequence[Path], look: Callable[[Path], T], doing: str = "looked at") -> dict[Path, T]:
    """Look at one run after the other; return what is found, by folder.

    If there are several, an error of one is a warning: a `UserError`, or one of the disk.

    Args:
        doing: what is done with a run, for messages.

    Raises:
        UserError: no run can be looked at.
    """
    found: dict[Path, T] = {}
    for folder in folders:
        try:
            found[folder] = look(folder)
        except (UserError, OSError) as error:
            line = str(error) if isinstance(error, UserError) else disk_error(error)
            if len(folders) == 1 or line is None:
                raise
            log.warning("%s: %s; the other runs go on", folder, line)
    if not found:
        raise UserError(f"none of the {len(folders)} runs can be {doing}; the lines above say why")
    return found
