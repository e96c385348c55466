"""The command that trains a run again, without what is particular to a machine."""

import re
import shlex
from pathlib import Path

from stepwise_pl.common import hub
from stepwise_pl.common.disk import read_json_or_empty
from stepwise_pl.config.keys import is_among, paths
from stepwise_pl.runs.provenance import sessions
from stepwise_pl.tasks.reading import HUB

# Keys, and groups of them, that say where a run lies and how it is shown. They may name machines and accounts.
_LEFT_OUT = ("run_dir", "resume", "name", "hydra", "logger", "data.cache_dir")
# The names in a value, which may be a list. A name may hold blanks, and within quotes anything.
_NAMES = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^][,{}\s](?:[^][,{}]*[^][,{}\s])?""")


def command_again(run_dir: Path, seed: int) -> str | None:
    """Return the command that trains the run again; None if the folder does not say how it was started.

    A path becomes its last part, and what only says where the run lies and how it is shown is left out.
    """
    words = read_json_or_empty(run_dir / "job.json").get("overrides")  # of a job of a sweep
    if not isinstance(words, list):
        starts = [start.get("command") for start in sessions(run_dir / "environment.json")]
        words = starts[0][1:] if starts and isinstance(starts[0], list) else None
    if words is None:
        return None
    kept = [_without_folders(str(word)) for word in words if not _is_left_out(str(word))]
    if not any(word.startswith("seed=") for word in kept):
        kept.append(f"seed={seed}")
    return shlex.join(["python", "-m", "stepwise_pl.train", *kept])


def _is_left_out(word: str) -> bool:
    key = word.partition("=")[0].lstrip("+~")
    return (
        word.startswith("-")
        or key in _LEFT_OUT
        or key.startswith(tuple(f"{each}{mark}" for each in _LEFT_OUT for mark in "./"))
    )


def _without_folders(word: str) -> str:
    key, mark, value = word.partition("=")
    if not mark:
        return Path(word).name if hub.is_path(word) else word

    def last_part(found: re.Match[str]) -> str:
        name = found[0]
        if name[0] in "'\"":
            return f"{name[0]}{last_name(name[1:-1])}{name[-1]}"
        # In a mapping the key stands before the name.
        inside, colon, name = name.rpartition(": ")
        return f"{inside}{colon}{last_name(name)}"

    def last_name(name: str) -> str:
        if name.startswith(HUB):
            # `hub:` may stand before a folder of this machine, too.
            data_set, colon, split = name.removeprefix(HUB).partition(":")
            return f"{HUB}{Path(data_set).name if hub.is_path(data_set) else data_set}{colon}{split}"
        if "/" not in name:
            return name
        # A model may be named as on the Hub, `user/name`.
        may_be_on_hub = key in ("model.name", "model.tokenizer") and not hub.is_path(name)
        holds_path = hub.is_path(name) or is_among(key, paths())
        return name if may_be_on_hub or not holds_path else Path(name).name

    return f"{key}={_NAMES.sub(last_part, value)}"
