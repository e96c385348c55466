"""Runs for the page of `demo`, and a browser that sees it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL, command, made_once
from tests.reporting.conftest import CHROMIUM, QUIET, playwright_or_skip

# Runs of the same task beside it, and one model that is told its stage.
OTHERS = {
    "explicit_cot": ("schedule=explicit_cot",),
    "no_cot": ("schedule=no_cot",),
    "told": ("method.tell_stage=true", "schedule.mix=0.5"),
    "thoughts": ("method=coconut", "method.unit=token", "trainer.keep_every_removed=1"),
}


@pytest.fixture(scope="module")
def run(kept_run: Path) -> Path:
    """Products of digits, with three kept stages."""
    return kept_run


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run for each of `OTHERS`."""

    def make(folder: Path) -> None:
        for name, words in OTHERS.items():
            short = [word for word in SMALL if word.startswith("schedule.")] if name.endswith("cot") else []
            settings = [word for word in SMALL if word not in short]
            command("train", *settings, "trainer.duration=3epochs", *words, f"run_dir={folder / name}")

    return made_once("beside", make, tmp_path_factory)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, which asks nobody but the pages that a test opens."""
    with playwright_or_skip().sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=["--no-sandbox", *QUIET])
        yield found
        found.close()
