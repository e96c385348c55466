"""A browser, and pages in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CHROMIUM = Path(shutil.which("chromium") or "/usr/bin/chromium")
QUIET = [f"--disable-{one}" for one in ("gpu", "quic", "background-networking", "component-update", "sync")]


def playwright_or_skip() -> Any:
    """Playwright, on a machine that has it and Chromium."""
    if not CHROMIUM.is_file():
        pytest.skip("no Chromium here")
    return pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = playwright_or_skip()
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=str(CHROMIUM), headless=True, offline=True,
            args=["--no-sandbox", "--no-first-run", *QUIET],
        )  # fmt: skip
        context.set_default_timeout(120_000)  # a busy machine
        yield context
        context.close()


def opened(browser: Any, path: Path) -> SimpleNamespace:
    """The page in a new tab, and what its console said and what it asked the network for."""
    tab, said, asked = browser.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for plot in tab.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()  # or it is not drawn
        plot.locator(".main-svg").first.wait_for()
    return SimpleNamespace(tab=tab, said=said, asked=[url for url in asked if not url.startswith("data:")])
