"""Files that appear in one go, and what to say when the disk fails."""

import errno
import os
import shutil
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file in one go: whoever reads it finds the old text or the new one, also after a crash."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    put_in_place(temporary, path)


def put_in_place(fresh: Path, path: Path) -> None:
    """Let a file that was just written take the place of another, once it is on the disk: a crash leaves one of them."""
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)


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
    """What to tell the user if `error` comes from a file or a full disk, however deep in the chain; else None."""
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return f"{error.filename}: {error.strerror}; choose another folder"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return f"{cause.strerror}: free space, or choose another folder"
        cause = cause.__cause__ or cause.__context__
    return None
