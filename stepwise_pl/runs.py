"""The run folder: what lies where, and loading a trained run from it.

config.yaml       the resolved configuration, with what follows from it under `derived`
environment.json  versions, git commit, command line and machine of every start
model/            architecture and tokenizer, in Hugging Face's format, without weights
metrics.csv       every logged metric
checkpoints/      best.ckpt and last.ckpt, good.ckpt for the guard, and removed-<k>.ckpt if asked for
summary.json      the result
accuracy.png/svg  accuracy versus removed tokens
"""

import fcntl
import json
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stepwise_pl import cli
from stepwise_pl.config import Config
from stepwise_pl.datamodule import Limits
from stepwise_pl.disk import write_text
from stepwise_pl.errors import UserError, first_line
from stepwise_pl.loggers import MetricsFile, RowKey
from stepwise_pl.models import PREFIX, load_weights, read_checkpoint
from stepwise_pl.tasks import Task

log = logging.getLogger(__name__)

# Keys that a resumed run may change: how long it runs and what it shows and saves, and Δ,
# which starts a new segment. All else would make another run of it.
CHANGEABLE = (
    "run_dir", "resume", "guard.", "logger.", "data.num_workers", "data.eval_batch_size", "data.cache_dir", "schedule.delta", "optimizer.decay_steps",
    "trainer.accelerator", "trainer.max_epochs", "trainer.max_steps", "trainer.validate_every_epochs",
    "trainer.validate_every_removed", "trainer.log_every_n_steps", "trainer.checkpoint_every_n_steps", "trainer.keep_",
)  # fmt: skip
_RANK_ZERO_FOLDER = "STEPWISE_PL_RUN_DIR"
_LOCKS: dict[Path, IO[str]] = {}


def open_run_dir(run_dir: str | None, name: str, seed: int, resume: bool) -> Path:
    """The run's folder, made if need be.

    By default `outputs/<name>/seed<seed>`, with a number behind it if that one holds a run
    already; with `resume` the newest of these. A folder without a checkpoint holds no run:
    it is what a start leaves that failed early, and is used again; with `resume` the run
    in it begins anew if its configuration is there. The further processes of a DDP run
    take the folder of the first.

    Raises:
        UserError: a named folder holds another run, there is nothing to resume, another
            process is at work in it, or it cannot be written.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(os.environ[_RANK_ZERO_FOLDER])
    path = Path(run_dir) if run_dir else Path("outputs") / name / f"seed{seed}"
    if resume:
        path = path if run_dir else newest(path)
        if not holds_run(path) and not (path / "config.yaml").is_file():
            raise UserError(
                f"run_dir={path}: nothing to resume, checkpoints/last.ckpt is not there; leave resume=true out"
            )
    elif holds_run(path):
        if run_dir:
            raise UserError(
                f"run_dir={path}: holds a run already; resume=true goes on with it, another run_dir starts anew"
            )
        newest_path = newest(path)
        number = int(newest_path.name.removeprefix(path.name).removeprefix("-") or 1)
        path = path.with_name(f"{path.name}-{number + 1}")
    try:
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        (path / ".writable").write_text("")
        (path / ".writable").unlink()
    except OSError as error:
        raise UserError(f"run_dir={path}: cannot be written ({error.strerror}); choose another run_dir") from None
    lock(path)
    if not holds_run(path):
        (path / "metrics.csv").unlink(missing_ok=True)
        (path / "wandb_id.txt").unlink(missing_ok=True)
    os.environ[_RANK_ZERO_FOLDER] = str(path.absolute())
    return path


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


def holds_run(path: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (path / "checkpoints" / "last.ckpt").is_file()


def newest(base: Path) -> Path:
    """Of `base`, `base`-2, `base`-3, ... the last that holds a run."""
    path, number = base, 2
    while holds_run(following := base.with_name(f"{base.name}-{number}")):
        path = following
        number += 1
    return path


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in plain.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def resumed_config(run_dir: Path, config: Config, given: set[str]) -> Config:
    """The configuration of the run in the folder, with what the command line may change.

    Args:
        config: as composed from this command line.
        given: the keys and groups that the command line sets. With nothing but `run_dir`
            and `resume` the run goes on as it was; a group or an experiment that is named
            must compose to the same keys.

    Raises:
        UserError: naming what differs and may not.
    """
    saved = cli.read_yaml(run_dir / "config.yaml")
    saved.pop("derived", None)
    old, new = flat(saved), flat(cli.to_plain(config))
    differ = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and given & {"experiment", key.split(".")[0], key}
    ]
    refused = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in differ if not key.startswith(CHANGEABLE)]
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
    return cli.config_from(saved, Config)


def derived_of(run_dir: Path) -> dict[str, Any]:
    """What followed from the configuration when the run was started."""
    return dict(cli.read_yaml(run_dir / "config.yaml").get("derived") or {})


class Start(NamedTuple):
    """Where a run goes on.

    Attributes:
        step: optimizer steps done.
        logged: rows of metrics of steps that come again.
    """

    step: int = 0
    logged: frozenset[RowKey] = frozenset()


def resume(run_dir: Path, plain: dict[str, Any]) -> Start:
    """Check that the run's last checkpoint can be gone on from, and drop the metrics of what comes after it.

    Args:
        plain: the configuration to go on with, and under `derived` what follows from it.

    Raises:
        UserError: the checkpoint is damaged, or is of a run with another configuration or other data.
    """
    last = run_dir / "checkpoints" / "last.ckpt"
    try:
        state = read_checkpoint(last)
    except UserError as error:
        best = last.with_name("best.ckpt").is_file()
        from_best = f", from its best weights with model.init_from={run_dir}" if best else ""
        raise UserError(f"{error}; start another run with another run_dir{from_best}") from None
    if "config" not in state.get("stepwise", {}):
        raise UserError(
            f"{last}: is not a checkpoint that this version of stepwise_pl can go on from; use another run_dir"
        )
    theirs, ours = (
        flat({key: value for key, value in one.items() if key != "derived"})
        for one in (state["stepwise"]["config"], plain)
    )
    differ = [
        f"{key} is {theirs.get(key)} there, {ours.get(key)} in config.yaml"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and not key.startswith(CHANGEABLE)
    ]
    if differ:
        raise UserError(
            f"{last}: is of another run: {'; '.join(differ)}. Put the run's own checkpoint back, or use another run_dir"
        )
    require_same_data(run_dir, plain["derived"]["data"])
    step, attempt = int(state["global_step"]), len(state["stepwise"]["rollbacks"])
    log.info("resuming at step %d", step)
    return Start(step, frozenset(MetricsFile(run_dir / "metrics.csv").resume_from(step, attempt)))


def require_same_data(run_dir: Path, digest: str) -> None:
    """Raise `UserError` if the run in the folder was trained on other data than that of this digest."""
    before = derived_of(run_dir).get("data", digest)
    if before != digest:
        raise UserError(
            f"run_dir={run_dir}: the data is not what the run was trained on (digest {before}, now {digest}): a file has "
            "changed; put it back, or start another run with another run_dir"
        )


def require_same_files(run_dir: Path, task: Task) -> None:
    """Raise `UserError` if a file of the task has changed since the run: what is held out now may have been trained on."""
    before = derived_of(run_dir).get("files")
    if before is not None and before != list(task.fingerprint() or ()):
        raise UserError(
            f"run={run_dir}: a data file has changed since the run, so its splits may hold what was trained on; put it "
            "back, or evaluate on a file of its own with file=<file>"
        )


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write readable JSON in one go."""
    write_text(path, json.dumps(data, indent=2) + "\n")


@dataclass
class TrainedRun:
    """A run loaded from its folder, weights in place."""

    path: Path
    config: Config
    checkpoint: Path
    step: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    removed: int  # units of the schedule

    @property
    def internalized(self) -> bool:
        """Whether the checkpoint was trained without any CoT token left."""
        return self.removed >= self.limits.max_removed


def load_run(folder: str, checkpoint: str) -> TrainedRun:
    """Load a run with the weights of `best`, `last` or a checkpoint file; `best` falls back to `last`.

    Raises:
        UserError: the folder or the checkpoint cannot be read.
    """
    path = Path(folder)
    plain = cli.read_yaml(path / "config.yaml")
    plain.pop("derived", None)
    config = cli.config_from(plain, Config)
    names = ("best", "last") if checkpoint == "best" else (checkpoint,)
    candidates = [*(path / "checkpoints" / f"{name}.ckpt" for name in names), Path(checkpoint)]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        there = sorted(file.stem for file in (path / "checkpoints").glob("*.ckpt"))
        raise UserError(
            f"checkpoint={checkpoint}: no such checkpoint; give best, last or a file (there: {', '.join(there)})"
        )
    state = read_checkpoint(file)
    if "stepwise" not in state:
        raise UserError(f"{file}: is not a checkpoint of stepwise_pl")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path / "model")
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path / "model"), dtype=torch.float32)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'model'}: cannot be read ({first_line(error)})") from None
    weights = {key.removeprefix(PREFIX): value for key, value in state["state_dict"].items() if key.startswith(PREFIX)}
    load_weights(model, weights, str(file))
    stepwise = state["stepwise"]
    try:
        limits, removed = Limits(**stepwise["limits"]), int(stepwise["removed"])
    except (KeyError, TypeError):
        raise UserError(f"{file}: was written by another version of stepwise_pl, which this one cannot read") from None
    return TrainedRun(path, config, file, int(state["global_step"]), model.eval(), tokenizer, limits, removed)
