"""The run folder: what lies where, who works in it, and whose configuration it has. Free of torch.

config.yaml       the resolved configuration, with what follows from it under `derived`
environment.json  versions, git commit, command line and machine of every start
model/            architecture and tokenizer, in Hugging Face's format, without weights
metrics.csv       every logged metric
stages.jsonl      every validation: accuracy of each digit of the answer, and some answers (`stepwise_pl.runs.records`)
checkpoints/      best.ckpt and last.ckpt, good.ckpt for the guard, and removed-<k>.ckpt if asked for
summary.json      the result
accuracy.png/svg  accuracy versus removed tokens
"""

import contextlib
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from stepwise_pl.common import processes
from stepwise_pl.common.disk import make_folder, write_text
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import ASIDE, CHANGEABLE, PATHS, flat
from stepwise_pl.config.plain import config_from, read_yaml, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.config.upgrade import upgraded
from stepwise_pl.runs.marks import forget, has_no_checkpoint_yet, holds_run, is_begun
from stepwise_pl.runs.provenance import located_model, start_folders
from stepwise_pl.tasks import Task
from stepwise_pl.tasks.files import DataSearch, FileTask

_LOCKS: dict[Path, IO[str]] = {}

_MEASURED = ("metrics.csv", "stages.jsonl", "summary.json", "accuracy.png", "accuracy.svg")
# Everything that a start writes before it trains. All else in the folder is the user's, and is never touched.
_OF_A_START = (
    *_MEASURED,
    "config.yaml",
    "environment.json",
    "wandb.json",
    "model",
    "checkpoints",
    "wandb",
    "tensorboard",
)


def choose_run_dir(run_dir: str | None, name: str, seed: int, resume: bool, in_sweep: bool = False) -> Path:
    """The run's folder, which need not be there yet.

    By default `outputs/<name>/seed<seed>`, with a number behind it if that one holds a run
    already, or what is left of one; with `resume` the newest of these. What a start leaves
    that failed before it measured anything is used again; with `resume` the run in it
    begins anew if its configuration is there, or if it is one of a sweep, which may have
    been stopped before its turn. The further processes of a DDP run take the folder of the
    first.

    Raises:
        UserError: a named folder holds another run, or what is left of one; or there is nothing to resume.
    """
    if processes.is_further():
        return processes.shared_folder()
    path = Path(run_dir) if run_dir else Path("outputs") / name / f"seed{seed}"
    if resume:
        path = path if run_dir else newest(path)
        if not (in_sweep or holds_run(path) or (path / "config.yaml").is_file() or measured(path)):
            if (path / "sweep.json").is_file():
                raise UserError(
                    f"run_dir={path}: holds a sweep; give its command again, with --multirun and resume=true"
                )
            raise UserError(
                f"run_dir={path}: nothing to resume, checkpoints/last.ckpt is not there; leave resume=true out"
            )
    elif holds_run(path) or measured(path):
        if run_dir:
            raise _taken(path)
        newest_path = newest(path)
        number = int(newest_path.name.removeprefix(path.name).removeprefix("-") or 1)
        path = path.with_name(f"{path.name}-{number + 1}")
    return path


def _taken(path: Path) -> UserError:
    """For a folder that is named for a new run."""
    if holds_run(path):
        what = "holds a run already; resume=true goes on with it, another run_dir starts anew"
    elif has_no_checkpoint_yet(path):
        what = "holds a run that has no checkpoint yet; resume=true begins it anew, another run_dir leaves it as it is"
    else:
        what = f"holds {_listed(measured(path))} of a run without its last checkpoint; another run_dir leaves that as it is"
    return UserError(f"run_dir={path}: {what}")


def require_checkpoint_or_nothing(path: Path, in_sweep: bool = False) -> None:
    """Raise `UserError` if a run that begins in the folder would write over what another has measured."""
    found = measured(path)
    if processes.is_further() or holds_run(path) or has_no_checkpoint_yet(path) or not found:
        return
    good = path / "checkpoints" / "good.ckpt"
    put_back = f"put it back (or copy {good.name} there, an earlier one)" if good.is_file() else "put it back"
    otherwise = f"move {path} away, and this job begins anew" if in_sweep else "start another run with another run_dir"
    raise UserError(
        f"run_dir={path}: cannot go on: checkpoints/last.ckpt is not there, but {_listed(found)} of the run; "
        f"{put_back}, or {otherwise}"
    )


def measured(path: Path) -> list[str]:
    """The files that a run has left in the folder and only training brings back, by name.

    A link to what is not there (a disk that is not mounted) counts as well.
    """
    folders = (*(path / "checkpoints").glob("*.ckpt"), *(path / "evaluations").glob("*"))
    names = [name for name in _MEASURED if os.path.lexists(path / name)]
    return [*names, *sorted(str(file.relative_to(path)) for file in folders)]


def _listed(names: list[str]) -> str:
    """At most three of the names, for messages."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


@contextlib.contextmanager
def at_work(path: Path) -> Iterator[None]:
    """Make the folder and keep other processes out of it.

    A start that fails before training has begun leaves it as it was. Nothing to do in a further process of the run.

    Raises:
        UserError: another process is at work in it, or it cannot be written.
    """
    if processes.is_further():
        yield
        return
    new = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    make_folder(path, "run_dir")
    unlocked = not (path / ".lock").exists()
    lock(path)
    try:
        forget(path)
        # Read under the lock: what another run writes until then is its own.
        there = _of_a_start(path)
        kept = [file for file in there if file.parent in (path, path / "model") and file.is_file()]
        content = {file: file.read_bytes() for file in kept}
        try:
            make_folder(path / "checkpoints", "run_dir", probe=False)  # an old run's folder keeps its time
            _sweep_out(path)
            processes.share_folder(path)
            yield
        except BaseException:
            if not is_begun(path):
                _put_back(path, there, content)
                if unlocked:
                    (path / ".lock").unlink(missing_ok=True)
                _remove_empty(new)
            raise
    finally:
        unlock(path)


def _sweep_out(path: Path) -> None:
    """Remove what a killed process was still writing. Nobody else is at work in the folder."""
    for file in (path / "checkpoints").glob("*.tmp"):
        file.unlink(missing_ok=True)
    for folder in path.glob("artifact-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _of_a_start(path: Path) -> set[Path]:
    """All files and folders that are there of those a start writes (`_OF_A_START`)."""
    names = [name for whole in _OF_A_START for name in (whole, f"{whole}.tmp")]
    tops = [path / name for name in names if os.path.lexists(path / name)]
    return {*tops, *(inside for top in tops if not top.is_symlink() for inside in top.rglob("*"))}


def _put_back(path: Path, there: set[Path], content: dict[Path, bytes]) -> None:
    """Remove what a start has written that is not among `there`, and give files their `content` again."""
    with contextlib.suppress(OSError):
        for made in sorted(_of_a_start(path) - there, reverse=True):  # contents before their folder
            if made.is_dir() and not made.is_symlink():
                shutil.rmtree(made, ignore_errors=True)
            else:
                made.unlink(missing_ok=True)
        for file, before in content.items():
            if not file.is_file() or file.read_bytes() != before:
                file.write_bytes(before)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders, innermost first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def begin_anew(path: Path) -> None:
    """Remove what a run that never had a checkpoint has measured: it comes again."""
    for name in (*_MEASURED, "wandb.json"):
        (path / name).unlink(missing_ok=True)


def how_to_go_on(path: Path) -> str:
    """One line for the person who stopped a run: how it goes on."""
    if holds_run(path):
        return f"stopped; the same command with run_dir={path} resume=true goes on"
    if has_no_checkpoint_yet(path):
        return f"stopped before the first checkpoint; the same command with run_dir={path} resume=true begins anew"
    return "stopped before training began; the same command begins anew"


def lock(path: Path) -> None:
    """Keep other processes out of a run folder for as long as this one lives, however it ends.

    Raises:
        UserError: another process is at work in it.
    """
    file = (path / ".lock").open("a+", encoding="utf-8")
    try:
        # A record lock, which is this process's own: workers that outlive it for a moment do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise UserError(
            f"run_dir={path}: another process is at work in it ({file.read().strip()}); wait for it, or choose another run_dir"
        ) from None
    except OSError:  # some network file systems have no locks
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _LOCKS[path.absolute()] = file  # closing it would unlock


def unlock(path: Path) -> None:
    """Let others in again: the run is over, and this process may have more to do (a sweep)."""
    if (file := _LOCKS.pop(path.absolute(), None)) is not None:
        file.close()


def newest(base: Path) -> Path:
    """Of `base`, `base`-2, `base`-3, ... the last that holds a run, or what is left of one."""
    path, number = base, 2
    while holds_run(following := base.with_name(f"{base.name}-{number}")) or measured(following):
        path = following
        number += 1
    return path


def former_run_dir(config: Config, name: str, former_name: str, given: Set[str]) -> str | None:
    """The folder of a run begun when names were made otherwise, if it holds the run that is to be resumed; else None.

    Args:
        config: as composed from this command line.
        name, former_name: of the run, as they are made now and were made then.
        given: the keys and groups that the command line sets.

    Raises:
        UserError: the folder holds a run that would learn something else, and none has the name of now.
    """
    now, path = (newest(Path("outputs") / one / f"seed{config.seed}") for one in (name, former_name))
    if name == former_name or (now / "config.yaml").is_file() or not holds_run(path):
        return None
    differ = _differences(path, config, given)
    if learned := [key for key in differ if not key.startswith(ASIDE)]:
        raise UserError(
            f"run_dir={now}: nothing to resume, checkpoints/last.ckpt is not there; the run in {path} has another "
            f"{', '.join(learned)}: run_dir={path} goes on with that one"
        )
    return str(path)


def _differences(run_dir: Path, config: Config, given: Set[str]) -> dict[str, tuple[Any, Any]]:
    """The keys that the command line sets to another value than the run in the folder has: both values of each, sorted."""
    old, new = (flat(to_plain(one)) for one in (saved_config(run_dir), config))
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if given & {"experiment", key.split(".")[0], key}
        and old.get(key) != new.get(key)
        and not (key in PATHS and _expanded(old.get(key)) == new.get(key))
    }


def _expanded(path: Any) -> Any:
    """A path with `~` as the home folder, as versions that kept the `~` meant it."""
    if isinstance(path, list):
        return [_expanded(one) for one in path]
    return os.path.expanduser(path) if isinstance(path, str) else path  # noqa: PTH111


def resumed_config(run_dir: Path, config: Config, given: Set[str]) -> Config:
    """The configuration of the run in the folder, with what the command line may change.

    Args:
        config: as composed from this command line.
        given: the keys and groups that the command line sets. With nothing but `run_dir`
            and `resume` the run goes on as it was; a group or an experiment that is named
            must compose to the same keys.

    Raises:
        UserError: naming what differs and may not.
    """
    saved, new = to_plain(saved_config(run_dir)), flat(to_plain(config))
    differ = _differences(run_dir, config, given)
    refused = [f"{key} was {old}, is {now}" for key, (old, now) in differ.items() if not key.startswith(CHANGEABLE)]
    if refused:
        raise UserError(
            f"run_dir={run_dir}: the run there has another configuration: {'; '.join(refused)}. Leave that out, or give "
            "another run_dir"
        )
    for key in [*differ, "run_dir", "resume"]:
        *parents, name = key.split(".")
        place = saved
        for parent in parents:
            place = place[parent]
        place[name] = new[key]
    return config_from(saved, Config)


def saved_config(run_dir: Path) -> Config:
    """The run's configuration, with the defaults of keys that came after it was begun: those must keep what was before.

    Raises:
        UserError: it cannot be read, or holds what this version does not know.
    """
    path = run_dir / "config.yaml"
    try:
        saved = upgraded(read_yaml(path), path)
        saved.pop("derived", None)
        if not saved:
            raise UserError("is empty")
        return config_from(saved, Config)
    except UserError as error:
        raise UserError(
            f"{path}: {str(error).removeprefix(f'{path}: ')}; give the folder of a training run, for this is no "
            "configuration that this version of stepwise_pl wrote"
        ) from None


def located(config: Config, run_dir: Path) -> Config:
    """A run's configuration for use: data and models that were named from where the run was started are found again.

    The configuration that is kept and compared is the one before: there, names stay as they were typed.
    """
    starts = start_folders(run_dir)
    if isinstance(config.task, FileTask):
        files = derived_of(run_dir).get("files") if (run_dir / "config.yaml").is_file() else None
        config.task.look_in(DataSearch(run_dir, starts, files or None))
    return replace(config, model=located_model(config.model, run_dir))


def comparable_config(run_dir: Path) -> dict[str, Any]:
    """The saved configuration with dotted keys, for telling runs apart; as it is written if this version does not know all of it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return flat(to_plain(saved_config(run_dir)))
    except UserError:
        written = read_yaml(run_dir / "config.yaml")
        return {key: value for key, value in flat(written).items() if not key.startswith("derived.")}


def derived_of(run_dir: Path) -> dict[str, Any]:
    """What followed from the configuration when the run was started."""
    found = read_yaml(run_dir / "config.yaml").get("derived")
    return found if isinstance(found, dict) else {}


def require_same_files(run_dir: Path, task: Task) -> None:
    """Raise `UserError` if a file of the task has changed since the run: what is held out now may have been trained on."""
    before = derived_of(run_dir).get("files")
    if before is not None and before != list(task.fingerprint() or ()):
        raise UserError(
            f"run={run_dir}: a data file has changed since the run, so its splits may hold what was trained on; put it "
            "back, or evaluate on a file of its own with file=<file>"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Raises `UserError` if the file is not a JSON mapping."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        data = None
    if not isinstance(data, dict):
        raise UserError(f"{path}: damaged, or not there")
    return data


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write readable JSON in one go."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_summary(path: Path) -> dict[str, Any]:
    """The summary beside a file of predictions; empty if it is not there or damaged."""
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def finished(run_dir: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a run that is over and was made with this configuration; None if there is something to be done."""
    if not (run_dir / "summary.json").is_file() or not (run_dir / "config.yaml").is_file():
        return None
    old, new = (flat(to_plain(one)) for one in (saved_config(run_dir), config))
    if any(old.get(key) != new.get(key) for key in old.keys() | new.keys() if not key.startswith(ASIDE)):
        return None
    return read_json(run_dir / "summary.json")


def require_run(run: str, command: str) -> None:
    """Raise `UserError` unless `run` is a run folder."""
    if not run:
        raise UserError(f"run is not set: python -m stepwise_pl.{command} run=<run folder>")
    if not (Path(run) / "config.yaml").is_file():
        raise UserError(f"run={run}: no config.yaml there; give the folder of a training run")
