"""The older commit that steps are compared with, as a folder of sources."""

import io
import subprocess
import tarfile
from pathlib import Path

COMMIT = "cd7dcba"


def unpacked(folder: Path, repository: Path) -> str:
    """Unpack the commit into the folder, unless it is there; return an empty text, or the reason why it cannot be had."""
    if (folder / "stepwise_pl" / "train.py").is_file():
        return ""
    try:
        archive = subprocess.run(
            ["git", "-C", str(repository), "archive", COMMIT, "stepwise_pl", "conf", "pyproject.toml"], capture_output=True, timeout=60
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"git cannot be asked for commit {COMMIT}: {error}"
    if archive.returncode:
        said = archive.stderr.decode(errors="replace").strip().splitlines()
        return (
            f"no commit {COMMIT} here ({said[-1] if said else 'git failed'}); give baseline=<folder with its sources>"
        )
    fresh = folder.with_name(folder.name + ".tmp")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(fresh, filter="data")
    fresh.rename(folder)
    return ""
