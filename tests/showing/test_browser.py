"""The page of `demo` in a real browser: asking, the slider, columns, the lens, at two widths, in light and in dark."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepwise_pl.ask import AskConfig, speaker
from stepwise_pl.common.errors import UserError
from stepwise_pl.showing import page as demo_page
from stepwise_pl.showing.panel import Panel

pytest.importorskip("gradio")
pytestmark = pytest.mark.long

LOOKS = [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")]


@pytest.fixture(scope="module")
def served(run: Path, others: Path) -> Iterator[str]:
    """The address of the page of a run with both baselines."""
    baselines = {key: others / key for key in ("explicit_cot", "no_cot")}
    panel = Panel.of(run, baselines, [], "cpu")
    with demo_page.listening("127.0.0.1", None) as door:
        server = demo_page.server_of(demo_page.build(panel))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def opened(browser: Any, url: str, width: int = 1400, mode: str = "light") -> SimpleNamespace:
    """The page in a new tab, what its console said, and the addresses that it asked."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=mode)
    context.set_default_timeout(120_000)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(url)
    tab.locator("#ask").wait_for()
    return SimpleNamespace(tab=tab, said=said, asked=asked, context=context)


def ask(page: SimpleNamespace, question: str) -> None:
    page.tab.locator("#question textarea").fill(question)
    page.tab.locator("#ask").click()


def wait_for_all(page: SimpleNamespace) -> None:
    page.tab.locator(".clock", has_text="Done.").wait_for()


def column(page: SimpleNamespace, key: str) -> Any:
    return page.tab.locator(f"[data-column={key}]")


@pytest.mark.parametrize(("width", "mode"), LOOKS)
def test_a_problem_is_asked_side_by_side_and_looked_into(
    browser: Any, served: str, run: Path, width: int, mode: str
) -> None:
    page = opened(browser, served, width, mode)
    ask(page, "what is 7 times 8?")
    page.tab.locator("#board .later").first.wait_for(state="attached")  # tokens come one after another
    wait_for_all(page)
    reply = speaker(AskConfig(run=str(run), checkpoint="removed-2")).ask("7 * 8")
    own = column(page, "run")
    assert own.locator(".said").inner_text() == (reply.answer or reply.unfinished)
    assert own.locator(".right").count() == (reply.verdict == "right") and own.locator(".wrong").count() == (
        reply.verdict != "right"
    )
    assert (
        own.locator("li").count()
        == len(own.locator("li", has_text="ms").all())
        == int(own.locator("li").last.inner_text().split()[-1])
    )
    assert page.tab.locator("#board .later").count() == 0
    boxes = [column(page, key).bounding_box() for key in ("run", "explicit_cot", "no_cot")]
    tops = {round(box["y"]) for box in boxes}
    assert len(tops) == (1 if width == 1400 else 3)
    page.tab.locator("#look").click()
    page.tab.locator("#lens table").wait_for()
    assert page.tab.locator("#lens tbody tr").count() == 2
    # Nothing sticks out at the side, no text is tiny, and colours are those of the report.
    assert page.tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    sizes = page.tab.evaluate(
        "[...document.querySelectorAll('.sheet *')].filter((one) => one.childNodes[0]?.nodeType === 3 && one.innerText)"
        ".map((one) => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 12
    paper = page.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[mode]
    assert not [url for url in page.asked if not url.startswith((served, "data:", "blob:"))]
    assert page.said == []
    page.context.close()


def test_the_slider_shows_another_stage_and_the_lens_follows(browser: Any, served: str, run: Path) -> None:
    page = opened(browser, served)
    ask(page, "3 * 4")
    wait_for_all(page)
    page.tab.locator("#look").click()
    page.tab.locator("#lens h3", has_text="2 CoT tokens removed").wait_for()
    page.tab.locator("#stage input[type=range]").focus()
    for number in (1, 0):
        page.tab.keyboard.press("ArrowLeft")
        column(page, "run").locator("h3", has_text=f"This run, {number} of 2 CoT tokens removed").wait_for()
        reply = speaker(AskConfig(run=str(run), checkpoint=f"removed-{number}")).ask("3 * 4")
        assert column(page, "run").locator("li.cot").all_inner_texts() and reply.cot_tokens
        assert column(page, "run").locator("li.cot b").all_inner_texts() == reply.cot.split()
        page.tab.locator("#lens h3", has_text=f"{number} CoT tokens removed").wait_for()
    assert page.said == []
    page.context.close()


def test_examples_are_clicked_and_a_line_says_what_cannot_be_asked(browser: Any, served: str, run: Path) -> None:
    page = opened(browser, served)
    example = page.tab.locator("button.example").nth(1)
    text = example.inner_text()
    example.click()
    wait_for_all(page)
    assert page.tab.locator("#question textarea").input_value() == text
    with pytest.raises(UserError) as error:
        speaker(AskConfig(run=str(run))).ask("seven + <b>eight</b> ${1} {{2}}")
    ask(page, "seven + <b>eight</b> ${1} {{2}}")
    page.tab.locator(".refused").wait_for()
    assert page.tab.locator(".refused").inner_text() == str(error.value)
    assert page.tab.locator("#board .columns").count() == 0
    page.tab.locator("#question textarea").fill("7 * 8")
    page.tab.locator("#pace label", has_text="true pace").click()
    page.tab.locator("#question textarea").press("Enter")
    wait_for_all(page)
    assert page.said == []
    page.context.close()
