"""`report watch=true`: the page of a run that is being trained, in a real browser; and pages on which nothing covers anything."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwise_pl.methods import Auxiliary
from stepwise_pl.reporting.history import read_runs
from stepwise_pl.reporting.page import Figures, render
from stepwise_pl.reporting.watching import have_ended, state_of
from stepwise_pl.runs.sweep_folder import FINISHED, WAITING, Job, Sweep, this_process, write_sweep
from tests import background
from tests.reporting.conftest import opened
from tests.reporting.handmade import BAND, append_validation, end, write_evaluation, write_run

PATIENCE = 240  # seconds, on a busy machine


def wait_until(is_so: Callable[[], object], what: str) -> None:
    begin = time.monotonic()
    while not is_so():
        assert time.monotonic() < begin + PATIENCE, what
        time.sleep(0.2)


def watched(*runs: Path, out: Path) -> "subprocess.Popen[str]":
    """Start the command, and wait for its first page."""
    process = background.start(
        "-m", "stepwise_pl.report", *map(str, runs), "watch=true", "every=1", f"out={out}",
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: out.exists() or process.poll() is not None, "no page")
    assert process.poll() is None
    return process


def is_live(page: Path) -> bool:
    return 'id="live"' in page.read_text(encoding="utf-8")


def test_a_page_would_differ_if_a_file_of_a_run_differs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ended=False)
    states = [state_of([run]), state_of([run])]
    append_validation(run, 80, 0.7, 2)
    states.append(state_of([run]))
    write_evaluation(run, 2, 0.7, 10)
    states.append(state_of([run]))
    (run / "checkpoints" / "removed-2.ckpt").write_text("weights")  # it makes the evaluation stale
    states.append(state_of([run]))
    assert states[0] == states[1] and len(set(states)) == 4


def test_runs_have_ended_when_nothing_more_will_come(tmp_path: Path) -> None:
    over, under_way = write_run(tmp_path / "a"), write_run(tmp_path / "b", ended=False)
    assert have_ended(read_runs([over]), [str(over)])
    assert not have_ended(read_runs([over, under_way]), [str(tmp_path)])
    (under_way / "job.json").write_text('{"outcome": "failed", "error": "no luck"}')
    assert have_ended(read_runs([over, under_way]), [str(tmp_path)])


def test_a_sweep_has_ended_when_no_job_waits_runs_or_is_yet_to_come(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    done = Job("a", [], {"seed": "0"}, FINISHED)
    for jobs, total, process, ended in (
        ([done], 1, "1 on another-machine", True),
        ([done, Job("b", [], {"seed": "1"}, WAITING)], 2, "1 on another-machine", False),
        ([done], None, this_process(), False),  # the sweeper decides as it goes
        ([done], None, "1 on another-machine", True),
    ):
        write_sweep(Sweep(tmp_path, "a", ["-m"], ["seed"], process, total, jobs, []))
        assert have_ended(read_runs([run]), [str(tmp_path)]) is ended


def test_the_page_follows_its_runs_until_they_have_ended(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", ended=False), tmp_path / "page.html"
    process = watched(run, out=out)
    assert is_live(out)
    append_validation(run, 80, 0.123, 2)
    wait_until(lambda: "12.3%" in out.read_text(), "the new validation is not there")
    assert is_live(out) and process.poll() is None
    end(run, 0.321, 2)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert not is_live(out) and "32.1%" in out.read_text()
    lines = said.splitlines()
    assert lines[0] == f"{out} loads itself again every 1 s, until the runs have ended; Ctrl-C stops"
    assert lines[1].startswith(f"report of 1 run written to {out} (") and len(lines) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_it_leaves_a_page_that_rests(number: signal.Signals, tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", ended=False), tmp_path / "page.html"
    process = watched(run, out=out)
    assert process.stdout is not None and "loads itself again" in process.stdout.readline()
    process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, is_live(out)) == (0, False)
    assert said.splitlines()[0] == "stopped: the page does not load itself again any more"


# In a browser.


def write_page(path: Path, *runs: Path, every: float | None = None) -> Path:
    histories = read_runs(runs)
    path.write_text(render(histories, Figures.of(histories), [], "now", "report", every=every), encoding="utf-8")
    return path


@pytest.mark.long
def test_a_reader_finds_everything_as_it_was_left(browser: Any, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", ended=False), write_run(tmp_path / "b", method=Auxiliary())]
    page = write_page(tmp_path / "page.html", *runs, every=1000)
    found = opened(browser, page)
    tab = found.tab
    tab.locator("#live").uncheck()
    tab.locator("[data-shows='1']").uncheck()
    tab.locator("#configuration details").evaluate("(part) => { part.open = false; }")
    tab.locator("#accuracy").scroll_into_view_if_needed()
    tab.locator("#accuracy .main-svg").first.wait_for()
    tab.evaluate("Plotly.relayout('accuracy', {'xaxis.range[0]': 0.5, 'xaxis.range[1]': 1.5})")
    tab.evaluate("scrollTo(0, 700)")
    place = tab.evaluate("scrollY")
    append_validation(runs[0], 80, 0.123, 2)
    write_page(page, *runs, every=1000)
    tab.locator("#live").evaluate("(box) => { box.checked = true; box.dispatchEvent(new Event('change')); }")
    tab.wait_for_function("document.body.textContent.includes('12.3%')")
    tab.wait_for_function(f"Math.abs(scrollY - {place}) < 2")
    assert place > 400
    assert not tab.locator("[data-shows='1']").is_checked() and tab.locator("[data-shows='0']").is_checked()
    assert tab.locator("[data-run='1']:visible").count() == 0
    assert not tab.locator("#configuration details").evaluate("(part) => part.open")
    tab.locator("#accuracy").scroll_into_view_if_needed()
    tab.wait_for_function("document.getElementById('accuracy')._fullLayout?.xaxis?.range[0] === 0.5")
    assert found.said == [] and {url.partition(":")[0] for url in found.asked} == {"file"}
    tab.close()


@pytest.mark.long
def test_the_page_loads_itself_again_until_one_is_written_that_rests(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", ended=False)
    page = write_page(tmp_path / "page.html", run, every=1)
    tab = browser.new_page()
    tab.goto(page.as_uri())
    for _ in range(2):
        with tab.expect_event("framenavigated"):
            pass
    # A tab that loads itself while it is closed may never be closed: this page has to rest first.
    write_page(page, run)
    tab.wait_for_function("document.readyState === 'complete' && !document.getElementById('live')")
    tab.close()


@pytest.mark.long
def test_the_page_rests_where_the_reader_wants_it(browser: Any, tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", write_run(tmp_path / "a", ended=False), every=1)
    tab, loads = browser.new_page(), []
    tab.on("framenavigated", lambda frame: loads.append(frame.url))
    tab.add_init_script(
        "addEventListener('DOMContentLoaded', () => { document.getElementById('live').checked = false; })"
    )
    tab.goto(page.as_uri())
    tab.wait_for_timeout(5_000)
    assert len(loads) == 1
    tab.close()


@pytest.mark.long
@pytest.mark.parametrize("width", [1400, 400])
def test_no_button_covers_a_point_and_no_name_makes_a_row_high(browser: Any, width: int, tmp_path: Path) -> None:
    name = "a-very-long-name-of-an-experiment_" * 5 + "with-everything-changed-in-it"
    assert len(name) == 199
    runs = [
        write_run(tmp_path / name, (1.0, 1.0, 1.0), expected=BAND),
        write_run(tmp_path / "short", (1.0, 0.9, 1.0), method=Auxiliary()),
    ]
    for removed in (0, 2):
        write_evaluation(runs[0], removed, 1.0, 10.0 + 10 * removed)
    page = write_page(tmp_path / "page.html", *runs)
    found = opened(browser, page)
    tab = found.tab
    tab.set_viewport_size({"width": width, "height": 900})
    tab.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    lines = tab.evaluate(
        """() => [...document.querySelectorAll("#runs tbody tr")].map(
          (row) => row.clientHeight / parseFloat(getComputedStyle(row).lineHeight))"""
    )
    assert len(lines) == 2 and max(lines) <= 7
    for plot in tab.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
        plot.hover(position={"x": width // 8, "y": 100})
        lowest_button, highest_point = plot.evaluate(
            """(plot) => {
              const edge = (query, side) => [...plot.querySelectorAll(query)].map((one) => one.getBoundingClientRect()[side]);
              return [Math.max(...edge(".modebar-btn", "bottom")), Math.min(...edge(".points path, .heatmaplayer image", "top"))];
            }"""
        )
        assert lowest_button <= highest_point + 1, plot.get_attribute("id")
    # Accuracy over removed tokens and over examples stand side by side where there is room.
    tops = [tab.locator(f"#{slug}").bounding_box() for slug in ("accuracy", "accuracy-examples")]
    assert (abs(tops[0]["y"] - tops[1]["y"]) < 2) is (width > 1000)
    tab.close()
