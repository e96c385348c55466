"""An environment with more packages, for tests of other tools."""

import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from tests.conftest import REPO

EXTRAS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def environment(folder: Path, *packages: str) -> Path:
    """Make an environment in a new folder that shares all else with this one; return its `bin`.

    What the packages need besides has to fit the locked versions.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "shared.pth").write_text(sysconfig.get_path("purelib"))
    locked = ["--constraint", str(REPO / "requirements.lock")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *locked, *packages], check=True)
    return folder / "bin"
