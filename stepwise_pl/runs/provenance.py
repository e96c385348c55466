"""The circumstances of a run: versions, git commit, command line, machine."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stepwise_pl.common import hub
from stepwise_pl.common.disk import read_json_or_empty, write_json
from stepwise_pl.config.model import SMALL, ModelConfig

PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "torchmetrics",
    "numpy",
    "hydra-core",
    "datasets",
    "wandb",
    "peft",
)


def environment(words: Sequence[str] | None = None) -> dict[str, Any]:
    """The machine and the software of this process.

    Args:
        words: of the command line, as the user typed them; None: those of the process.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *(sys.argv[1:] if words is None else words)],
        "directory": str(Path.cwd()),
        "process": os.getpid(),
        "git": git_state(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
    }


def record(path: Path, words: Sequence[str] | None = None, **more: Any) -> None:
    """Add this process to the list of sessions in the JSON file `path`; a resumed run has several.

    Args:
        words: see `environment`.
        more: further entries of the session. `changed` holds the keys that it changed, each with its value before and after.
    """
    found = [*sessions(path), {**environment(words), **more}]
    write_json(path, {"sessions": found})


def sessions(path: Path) -> list[dict[str, Any]]:
    """The starts of a run that `record` wrote into the JSON file `path`; none if it cannot be read."""
    found = read_json_or_empty(path).get("sessions")
    return [session for session in found if isinstance(session, dict)] if isinstance(found, list) else []


def changed_text(changes: Mapping[str, Sequence[Any]]) -> str:
    """Keys that a resumed run changed, in words: `schedule.keep=0.9 (was 0.95)`."""

    def shown(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, default=str)

    return ", ".join(f"{key}={shown(new)} (was {shown(old)})" for key, (old, new) in changes.items())


def has_lost_metrics(path: Path) -> bool:
    """Whether a session in the JSON file `path` has gone on without the metrics of the sessions before it."""
    return any(session.get("metrics_lost") for session in sessions(path))


def other_version(checkpoint: Path, before: str) -> str:
    """For messages: the version that wrote a checkpoint, if this version cannot read it.

    Args:
        before: the first commit that writes what is missing, for a run folder that does not name its own.
    """
    try:
        commit = sessions(checkpoint.parent.parent / "environment.json")[-1]["git"]["commit"]
        return f"another version of stepwise_pl, commit {commit[:7]}, which can read it"
    except (KeyError, TypeError, IndexError):
        return f"another version of stepwise_pl, of before commit {before}, which can read it"


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds `folder`, and whether files in it differ from it; None if it is no checkout."""

    def git(*arguments: str) -> str:
        out = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
        return out.stdout.strip()

    try:
        if git(
            "ls-files", "--error-unmatch", Path(__file__).name
        ):  # a package folder inside some other repository is not it
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        pass
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def found_again(name: str, run_dir: Path) -> str:
    """A path as a run names it; one that is not here becomes the path to where it lay when the run was started."""
    return _path_of(name, [*start_folders(run_dir), *run_dir.resolve().parents[:-1]])


def _path_of(name: str, roots: Iterable[Path]) -> str:
    path = Path(name).expanduser()
    found = None if path.exists() else next((root / path for root in roots if (root / path).exists()), None)
    return name if found is None else str(found)


def located_model(model: ModelConfig, run_dir: Path) -> ModelConfig:
    """The model's settings; a folder or file that is not here becomes the path to where it lay when the run was started."""

    def source_of(name: str) -> str:
        # A folder above the run that has the name of a model on the Hub is not this model.
        return found_again(name, run_dir) if hub.is_path(name) else _path_of(name, start_folders(run_dir))

    return replace(
        model,
        name=source_of(model.name),
        tokenizer=model.tokenizer if model.tokenizer == SMALL else source_of(model.tokenizer),
        init_from=None if model.init_from is None else found_again(model.init_from, run_dir),
    )


def start_folders(run_dir: Path) -> list[Path]:
    """The folders in which the run was started and resumed, the newest first; none if the run folder does not say."""
    named = [session.get("directory") for session in reversed(sessions(run_dir / "environment.json"))]
    return list(dict.fromkeys(Path(name) for name in named if isinstance(name, str)))
