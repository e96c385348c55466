"""Runs for the page of `demo`, and a browser that sees it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL, command, made_once
from tests.reporting.conftest import CHROMIUM

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
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.is_file():
        pytest.skip("no Chromium here")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=str(CHROMIUM), headless=True, args=["--no-sandbox", *(f"--disable-{one}" for one in quiet)]
        )
        yield found
        found.close()
