"""Files that appear in one go, JSON files, and what to say when the disk fails."""

import contextlib
import errno
import glob
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.processes import is_alive


def write_text(path: Path, text: str) -> None:
    """Write a file in one go: whoever reads it finds the old text or the new one, also after a crash."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    put_in_place(temporary, path)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object for people to read, in one go."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({why(error, path)})") from None
    except (ValueError, RecursionError) as error:  # the latter for a thousand brackets, one in the other
        raise UserError(f"{path}: is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: is no JSON object")
    return data


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be missing or damaged; then an empty one."""
    try:
        return read_json(path)
    except UserError:
        return {}


def make_folder(path: Path, key: str, probe: bool = True) -> None:
    """Make a folder, and those above it, unless it is there.

    Args:
        key: names the folder in messages. `run` is the folder of a run, which cannot be chosen freely.
        probe: write a file into it, to see whether that can be done.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if probe:
            with tempfile.TemporaryFile(dir=path):  # without a name, so that two commands may do this at once
                pass
    except OSError as error:
        advice = f"choose another {key}"
        if key == "run":
            in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
            advice = "move that file away" if in_the_way else "copy the run to another folder"
        raise UserError(f"{key}={path}: cannot be written ({why(error, path)}); {advice}") from None


def require_own_or_new(path: Path, key: str, start: bytes) -> None:
    """Raise `UserError` if a command's output would replace a file that is no such output.

    Args:
        key: names the path in the message.
        start: how the command's own output begins, in small letters.
    """
    if path.is_dir():
        raise UserError(f"{key}={path}: is a folder; give the name of a file")
    if path.is_file() and (before := path.read_bytes()[: len(start)]) and before.lower() != start:
        raise UserError(f"{key}={path}: holds something else than what this command writes; choose another {key}")


def why(error: OSError, path: Path) -> str:
    """The reason why a path cannot be used: a link into nothing or a file in place of a folder by name, else the system's words."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            return f"{place} is a link to {place.readlink()}, which is not there"
        if isinstance(error, FileExistsError | NotADirectoryError) and place.is_file():
            return f"{place} is a file, no folder"
    return str(error.strerror)


def put_in_place(fresh: Path, path: Path) -> None:
    """Let a file that was just written take the place of another, once it is on the disk: a crash leaves one of them."""
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)


def require_new(key: str, folder: Path, hint: str = "") -> None:
    """Raise `UserError` unless a folder that a setting names is not there yet, or empty. `hint` follows in the message."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{key}={folder}: is not empty; choose another folder{hint}")


@contextlib.contextmanager
def in_one_go(folder: Path) -> Iterator[Path]:
    """A new folder beside another that takes its place once all is written in it, and is gone if that fails.

    The remains of a process that was killed while it wrote are removed. The folder itself may
    be there already, but must be empty.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    start = f".{folder.name}.writing-{socket.gethostname()}-"
    for left in folder.parent.glob(f"{glob.escape(start)}*"):
        process = left.name.removeprefix(start)
        if not (process.isdigit() and is_alive(int(process))):
            shutil.rmtree(left, ignore_errors=True)
    fresh = folder.with_name(f"{start}{os.getpid()}")
    fresh.mkdir()
    try:
        yield fresh
        if folder.exists():  # not replaced by another, because it may be somebody's working directory, or a mount
            for path in fresh.iterdir():
                shutil.move(path, folder / path.name)
        else:
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def link(path: Path, name: Path) -> None:
    """Make `name` another name of the file, in one go; for files that are replaced, never changed."""
    fresh = name.with_suffix(".tmp")
    fresh.unlink(missing_ok=True)
    try:
        fresh.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, fresh)
    put_in_place(fresh, name)


def disk_error(error: BaseException) -> str | None:
    """One line for the user if `error` comes from a file or a full disk, however deep in the chain; else None."""
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return f"{error.filename}: {why(error, Path(os.fsdecode(error.filename)))}; choose another folder"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return f"{cause.strerror}: free space, or choose another folder"
        cause = cause.__cause__ or cause.__context__
    return None
