"""Compose the command line of a resumed run over the groups of the run itself.

`run_dir=<folder> resume=true schedule.keep=0.9` names a key of the schedule that the run has. Without this module Hydra
would compose the default schedule, which may not have that key.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepwise_pl.cli.overrides import parsed
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import literal, read_yaml
from stepwise_pl.config.upgrade import upgraded
from stepwise_pl.runs.folder import base_folder
from stepwise_pl.runs.marks import is_taken
from stepwise_pl.runs.numbering import newest
from stepwise_pl.runs.sweep_folder import holds_sweep

GROUPS = ("task", "schedule", "method")  # groups whose keys depend on their kind

# The settings that were added to this command line. The user has not given them.
added: list[str] = []


def with_saved_groups(words: Sequence[str]) -> list[str]:
    """Return the settings of a command line, with those of the run that it resumes before them.

    Only groups are added of which the command line sets a key, and which it does not choose itself.
    """
    settings = {found.key_or_group: found for word in words if (found := parsed(word)) is not None}
    folder = resumed_folder(words)
    if folder is None or "experiment" in settings:
        return list(words)
    path = folder / "config.yaml"
    try:
        saved = upgraded(read_yaml(path), path)
    except (UserError, OSError):
        return list(words)  # `resume` says what is wrong with the folder
    added.clear()
    for group in GROUPS:
        part = saved.get(group)
        is_set = group not in settings and any(key.startswith(f"{group}.") for key in settings)
        if is_set and isinstance(part, dict) and "kind" in part:
            added.append(f"{group}=_{part['kind']}")
            added.extend(f"{group}.{key}={written(value)}" for key, value in part.items() if key != "kind")
    return [*added, *words]


def with_resume_settled(words: Sequence[str]) -> list[str]:
    """Return the settings of a command line with `resume=true` or `resume=false` in the place of `resume=auto`.

    A run or a sweep goes on if its folder holds one, also one that was stopped before its first checkpoint. Else it begins. So the
    same command is right for the first start of a job and for every restart.

    Raises:
        UserError: no folder is named. A folder found by its name might hold an older run that has ended.
    """
    values = _values(words)
    if values.get("resume") != "auto":
        return list(words)
    run_dir = values.get("run_dir")
    if not isinstance(run_dir, str):
        raise UserError("resume=auto: needs run_dir=<folder>, so that every start means the same run")
    path = Path(run_dir).expanduser()
    is_there = holds_sweep(path) or is_taken(path) or (path / "config.yaml").is_file()
    return [f"resume={str(is_there).lower()}" if _is_resume(word) else word for word in words]


def _is_resume(word: str) -> bool:
    setting = parsed(word)
    return setting is not None and setting.key_or_group == "resume"


def _values(words: Sequence[str]) -> dict[str, Any]:
    """The value of each key that a command line sets; sweeps are left out."""
    found = [setting for word in words if (setting := parsed(word)) is not None and not setting.is_sweep_override()]
    return {setting.key_or_group: setting.value() for setting in found}


def resumed_folder(words: Sequence[str]) -> Path | None:
    """The run folder that a command line with `resume=true` names by `run_dir=` or `name=`; None if it names none."""
    values = _values(words)
    run_dir, name = values.get("run_dir"), values.get("name")
    if values.get("resume") is not True:
        return None
    if isinstance(run_dir, str):
        return Path(run_dir).expanduser()
    seed = values.get("seed", 0)
    is_named = isinstance(name, str) and isinstance(seed, int)
    return newest(base_folder(name, seed), is_taken) if is_named else None  # type: ignore[arg-type]


def written(value: Any) -> str:
    """The value as Hydra's grammar reads it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return literal(json.dumps(value, ensure_ascii=False))
