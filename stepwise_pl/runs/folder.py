"""The run folder: what lies where, and which folder a run gets.

config.yaml       the resolved configuration, with what follows from it under `derived`
environment.json  versions, git commit, command line and machine of every start
model/            architecture and tokenizer, in Hugging Face's format, without weights
metrics.csv       every logged metric
stages.jsonl      every validation: accuracy of each digit of the answer, and some answers (`stepwise_pl.runs.records`)
checkpoints/      best.ckpt and last.ckpt, good.ckpt for the guard, and removed-<k>.ckpt (or stage-<k>.ckpt) if asked for
summary.json      the result
accuracy.png/svg  accuracy versus removed tokens

Other files here: `at_work` (one process at a time, and a failed start leaves no trace), `saved_config` (reading
config.yaml), `resumed_config` (the keys that a resumed run may change), `marks` (the state that a folder is in).
"""

import re
from pathlib import Path
from typing import Any

from stepwise_pl.common import processes
from stepwise_pl.common.disk import read_json_or_empty
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import is_aside
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.config.request import Request
from stepwise_pl.config.run import Config
from stepwise_pl.runs.marks import has_no_checkpoint_yet, holds_run, is_taken, measured
from stepwise_pl.runs.numbering import first_free, newest
from stepwise_pl.runs.resumed_config import differences

# In the place of a checkpoint: every one that the run kept of its stages. In the place of removed tokens or steps: every number of them.
ALL = "all"

# The file of an exported folder that holds the task and the stage of its run.
EXPORT_FACTS = "stepwise_pl.json"
# Its keys (`models.exported.facts_of`), with the type of each.
_TYPES = {
    "run": str, "seed": int, "task": dict, "method": str, "checkpoint": str, "step": int, "removed_tokens": int, "max_cot_tokens": int,
    "stage": str,
}  # fmt: skip


def choose_run_dir(config: Config, asked: Request) -> Path:
    """The run's folder, which need not be there yet.

    The folder is `run_dir`, or else the first of `outputs/<name>/seed<seed>`, `seed<seed>-2`, ... that is free; with
    `resume`, the newest of these. A start that fails before it measures anything leaves the folder free. With `resume`
    a run without a checkpoint begins anew if its configuration is there, or if it is a job of a sweep, which may have
    been stopped before its turn. The further processes of a DDP run take the folder of the first.

    Raises:
        UserError: `run_dir` holds another run, or what is left of one; or there is nothing to resume.
    """
    if processes.is_further():
        return processes.shared_folder()
    base = Path(config.run_dir) if config.run_dir else base_folder(asked.name, config.seed)
    if is_export(base):  # its figure has the name of a run's own
        raise UserError(f"run_dir={base}: holds an exported model; choose another run_dir")
    if not config.resume:
        path = base if config.run_dir else first_free(base, is_taken)
        if is_taken(path):
            raise _taken(path)
        return path
    path = base
    if not config.run_dir:
        path = newest(base, is_taken)
        if not (path / "config.yaml").is_file():
            path = _of_former_name(path, config, asked) or path
        if (path / "config.yaml").is_file() and (named := read_yaml(path / "config.yaml").get("name")) != config.name:
            again = f"name={named}" if named else "without name="
            raise UserError(
                f"{path}: holds the run that was started {again}; run_dir={path} resume=true goes on with that one"
            )
    if not (asked.job or is_taken(path) or (path / "config.yaml").is_file()):
        raise _nothing_to_resume(path)
    return path


def base_folder(name: str, seed: int) -> Path:
    """The first folder of the runs of this name and seed."""
    return Path("outputs") / name / f"seed{seed}"


def _of_former_name(path: Path, config: Config, asked: Request) -> Path | None:
    """The folder of a run begun when names were made otherwise, if it holds the run that is to be resumed; else None.

    Args:
        path: the folder by the name of now, in which there is no run.

    Raises:
        UserError: the folder holds a run that would learn something else.
    """
    places = [newest(base_folder(name, config.seed), is_taken) for name in asked.former_names if name != asked.name]
    former = next(filter(holds_run, places), None)
    if former is None:
        return None
    if learned := [key for key in differences(former, config, asked.given) if not is_aside(key)]:
        raise UserError(
            f"run_dir={path}: nothing to resume, checkpoints/last.ckpt is not there; the run in {former} has another "
            f"{', '.join(learned)}: run_dir={former} goes on with that one"
        )
    return former


def _nothing_to_resume(path: Path) -> UserError:
    if (path / "sweep.json").is_file():
        return UserError(f"run_dir={path}: holds a sweep; give its command again, with --multirun and resume=true")
    return UserError(f"run_dir={path}: nothing to resume, checkpoints/last.ckpt is not there; leave resume=true out")


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


def _listed(names: list[str]) -> str:
    """At most three of the names, for messages."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def how_to_go_on(path: Path) -> str:
    """One line for the person who stopped a run: how it goes on."""
    if holds_run(path):
        return f"stopped; the same command with run_dir={path} resume=true goes on"
    if has_no_checkpoint_yet(path):
        return f"stopped before the first checkpoint; the same command with run_dir={path} resume=true begins anew"
    return "stopped before training began; the same command begins anew"


def kept_name(stage: int, stage_name: str, removed_tokens: int) -> str:
    """The name, without ending, of the checkpoint kept of a stage (`trainer.keep_every_removed`): `removed-<k>`, or
    `stage-<k>` if the stages of the method have names."""
    return f"stage-{stage}" if stage_name else f"removed-{removed_tokens}"


def number_kept(checkpoint: str) -> int | None:
    """The number in the name of a checkpoint that was kept of a stage; None if it is another checkpoint."""
    found = re.fullmatch(r"(?:removed|stage)-(\d+)(?:\.ckpt)?", checkpoint)
    return int(found[1]) if found else None


def kept_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were kept of stages, in the order of the stages."""
    kept = {file: number for file in folder.glob("*.ckpt") if (number := number_kept(file.stem)) is not None}
    return sorted(kept, key=lambda file: kept[file])


def require_run(run: str, command: str) -> None:
    """Raise `UserError` unless `run` is a run folder."""
    if not run:
        raise UserError(f"run is not set: python -m stepwise_pl.{command} run=<run folder>")
    if not (Path(run) / "config.yaml").is_file():
        raise UserError(f"run={run}: no config.yaml there; give the folder of a training run")


def run_name(folder: Path) -> str:
    """Return the name of the run in a folder; that of the folder if its configuration does not say."""
    derived = read_yaml(folder / "config.yaml").get("derived")
    return str((derived.get("name") if isinstance(derived, dict) else None) or folder.resolve().name)


def is_export(folder: Path) -> bool:
    """Whether a folder holds a model as `export` writes it, and no run."""
    return (folder / "config.json").is_file() and not (folder / "config.yaml").is_file()


def export_facts(folder: Path) -> dict[str, Any]:
    """Return what an exported folder says of its run (`EXPORT_FACTS`), without what is damaged there; nothing if the file is missing."""
    found = read_json_or_empty(folder / EXPORT_FACTS)
    return {key: value for key, value in found.items() if type(value) is _TYPES.get(key)}
