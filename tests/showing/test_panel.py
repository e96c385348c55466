"""The page of `demo` without a browser: stages, columns, one clock, and lines for what cannot be asked."""

import http.client
import importlib.util
import json
import math
import re
import shutil
import socket
import threading
import time
from itertools import product
from pathlib import Path

import pytest

from stepwise_pl.ask import AskConfig, speaker
from stepwise_pl.common.errors import UserError
from stepwise_pl.demo import DemoConfig, baselines_of, demo
from stepwise_pl.models.export import write_model
from stepwise_pl.reporting import demo_sheets as sheets
from stepwise_pl.runs.folder import export_facts
from stepwise_pl.showing import frames as demo_frames
from stepwise_pl.showing import models as demo_models
from stepwise_pl.showing import page as demo_page
from stepwise_pl.showing.panel import Panel, facts_of
from tests.conftest import command


def panel(run: Path, **baselines: Path) -> Panel:
    return Panel.of(run, baselines, [], "cpu")


def answers(columns: list[sheets.Column]) -> dict[str, str | None]:
    return {one.key: one.watched.reply.answer for one in columns if one.watched}


def test_the_slider_goes_over_the_kept_stages_and_each_answers_as_ask_does(run: Path) -> None:
    shown = panel(run)
    assert (demo_frames.scale(shown), shown.label) == ([0, 1, 2], "CoT tokens removed")
    for number in range(3):
        (own, explicit) = shown.answers("7 * 8", number, again=False)
        reply = speaker(AskConfig(run=str(run), checkpoint=f"removed-{number}")).ask("7 * 8")
        assert own.watched is not None and explicit.watched is not None
        assert (own.watched.reply.answer, own.watched.reply.cot) == (reply.answer, reply.cot)
        assert own.heading == f"This run, {number} of 2 CoT tokens removed" and own.note.startswith(
            f"removed-{number}.ckpt"
        )
        assert explicit.heading == "Explicit CoT: stage 0 of this run" and explicit.watched.reply.removed_tokens == 0


def test_a_model_that_is_told_its_stage_is_one_model_at_every_level(others: Path) -> None:
    shown = panel(others / "told")
    assert demo_frames.scale(shown) == [0, 1, 2] and shown.label == "CoT tokens removed, as told"
    found = [shown.answers("7 * 8", number, again=False)[0].watched for number in range(3)]
    wanted = [speaker(AskConfig(run=str(others / "told"), removed_tokens=number)).ask("7 * 8") for number in range(3)]
    assert [one.reply.cot for one in found if one] == [one.cot for one in wanted]
    assert [one.reply.removed_tokens for one in found if one] == [0, 1, 2]
    assert len(shown.models._runs) == 1


def test_baselines_stand_beside_the_run_and_are_not_asked_again_for_another_stage(run: Path, others: Path) -> None:
    shown = panel(run, explicit_cot=others / "explicit_cot", no_cot=others / "no_cot")
    first = shown.answers("7 * 8", 2, again=True)
    assert [(one.key, one.heading) for one in first[1:]] == [("explicit_cot", "Explicit CoT"), ("no_cot", "No CoT")]
    assert first[1].watched and first[1].watched.reply.cot_tokens > 0
    assert first[2].watched and first[2].watched.reply.cot_tokens == 0
    moved = shown.answers("7 * 8", 1, again=False)
    assert moved[1].watched is first[1].watched and moved[0].watched is not first[0].watched
    assert shown.answers("7 * 8", 2, again=True)[1].watched is not first[1].watched


def test_a_run_that_is_no_baseline_of_the_task_is_refused_in_one_line(run: Path, others: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no_cot=.*: was not trained with schedule=no_cot; give a run that was$"):
        panel(run, no_cot=others / "explicit_cot")
    other = Path(shutil.copytree(others / "no_cot", tmp_path / "other"))
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("split: ordered", "split: unordered"))
    with pytest.raises(UserError, match=r"is a run of another task \(task.split is .* there, .* here\)"):
        panel(run, no_cot=other)
    with pytest.raises(UserError, match=r"^explicit_cot=nowhere: no config.yaml there"):
        baselines_of(DemoConfig(run=str(run), explicit_cot="nowhere"))
    with pytest.raises(UserError, match="run is not set: python -m stepwise_pl.demo"):
        DemoConfig()
    for key, value in (("port", 0), ("host", ""), ("accelerator", "tpu")):
        with pytest.raises(UserError, match=key):
            DemoConfig(run=str(run), **{key: value})  # type: ignore[arg-type]
    assert baselines_of(DemoConfig(run=str(run), no_cot=str(other))) == {"no_cot": other}


def test_without_gradio_one_line_says_which_extra_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "gradio" else find(name, *more))
    with pytest.raises(UserError, match=r'pip install "stepwise_pl\[demo\]"$'):
        demo(DemoConfig(run=str(run)))


def test_frames_show_one_token_more_each_and_end_with_all(
    run: Path, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = panel(run, no_cot=others / "no_cot")
    slept: list[float] = []
    clock = [0.0]
    monkeypatch.setattr(demo_frames.time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(demo_frames.time, "sleep", sleep)
    monkeypatch.setattr(demo_models, "TRIES_FOR", 0.0)
    asking, *boards, last = demo_frames.frames(shown, "7 * 8", 0, demo_frames.SLOW)
    columns = shown.answers("7 * 8", 0, again=False)
    moments = [moment for one in columns if one.watched for moment in one.watched.moments]
    assert "asking" in asking and len(boards) == len({moment.milliseconds for moment in moments})
    hidden = [len(re.findall(r'<li class="\w+ later"', board)) for board in boards]
    assert hidden == sorted(hidden, reverse=True) and hidden[0] >= len(moments) - 2 and hidden[-1] == 0
    assert "later" not in last and "Done." in last
    # The clock that is shown is that of the measurement, times the factor that is said.
    factor = demo_frames.slowdown(columns)
    assert f"{factor:.3g} times slower than measured" in boards[0] or factor == 1
    assert sum(slept) == pytest.approx(factor * max(one.time for one in columns) / 1000, rel=1e-6)
    assert sum(slept) <= demo_frames.LONGEST + 1e-6
    slept.clear()
    list(demo_frames.frames(shown, "7 * 8", 0, demo_frames.TRUE))
    longest = max(one.time for one in shown.answers("7 * 8", 0, again=False))
    assert sum(slept) == pytest.approx(longest / 1000, rel=1e-6)


@pytest.mark.parametrize("question", ["seven times eight", "7 + 8", "<b>7</b>"])
def test_what_cannot_be_asked_gives_the_line_of_ask(run: Path, question: str) -> None:
    shown = panel(run)
    with pytest.raises(UserError) as error:
        speaker(AskConfig(run=str(run))).ask(question)
    line = sheets.error(str(error.value))
    assert "<b>" not in line
    assert list(demo_frames.frames(shown, question, 2, demo_frames.SLOW))[-1] == line
    assert demo_frames.whole(shown, question, 2) == demo_frames.lens_of(shown, question, 2) == line
    assert demo_frames.replies(shown, question, -1) == [{"key": "run", "error": str(error.value)}]
    assert "type a problem" in list(demo_frames.frames(shown, "  ", 2, demo_frames.SLOW))[-1]


def test_the_lens_says_at_its_last_layer_what_the_model_writes(run: Path) -> None:
    shown = panel(run)
    compared = 0
    for number, question in product(range(3), ("7 * 8", "3 * 4", "2 * 1", "5 * 5", "9 * 1", "1 * 3", "4 * 2", "6 * 7")):
        grid = shown.grid(question, number)
        assert (grid.removed_tokens, grid.layers) == (number, [0, 1])
        reply = shown.answers(question, number, again=False)[0].watched
        assert reply is not None
        begin = grid.places.index("prompt -1")
        if reply.reply.right and reply.reply.cot == " ".join(grid.cot.split()[number:]):
            assert grid.words[-1][begin:] == grid.next[begin:]
            compared += 1
        drawn = sheets.lens(grid, "heading")
        hits = sum(word == right for row in grid.words for word, right in zip(row, grid.next, strict=True))
        assert drawn.count("text hit") == hits and drawn.count("<tr>") == 5
    assert compared
    with pytest.raises(UserError, match="the task does not know them for this problem"):
        shown.grid("12 * 345", 2)


def test_models_that_were_not_asked_lately_make_room(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_models, "MOST_BYTES", 1)
    shown = panel(run)
    before = [answers(shown.answers("7 * 8", number, again=True))["run"] for number in (0, 1, 2)]
    assert len(shown.models._runs) == 1
    assert [answers(shown.answers("7 * 8", number, again=True))["run"] for number in (0, 1, 2)] == before
    assert len({voice[:2] for voice in shown.models._speakers}) == 1


def test_an_exported_folder_has_no_slider_and_no_lens(run: Path, others: Path, tmp_path: Path) -> None:
    out = write_model(run, "best", tmp_path / "exported")
    shown = panel(out, no_cot=others / "no_cot")
    assert len(shown.voices) == 1 and not shown.has_lens and list(shown.beside) == ["no_cot"]
    (own, _) = shown.answers("7 * 8", 0, again=True)
    reply = speaker(AskConfig(run=str(run))).ask("7 * 8")
    assert own.watched and own.watched.reply.answer == reply.answer and own.heading.startswith("This model, 2 of 2")
    assert shown.examples and all(re.fullmatch(r"\d \* \d", one) for one in shown.examples)
    assert facts_of(out, shown.voices)[1] == ("method", "stepwise", "an exported model")
    facts = json.loads((out / "stepwise_pl.json").read_text())
    assert export_facts(out) == facts  # no fact is taken for damaged
    (out / "stepwise_pl.json").write_text(json.dumps({**facts, "method": "auxiliary"}))
    assert facts_of(out, shown.voices)[1][1] == "auxiliary"


@pytest.mark.long
def test_the_command_refuses_in_one_line(run: Path) -> None:
    for words in ((), ("run=nowhere",), (f"run={run}", "port=x"), (f"run={run}", "no_cot=nowhere")):
        refused = command("demo", *words, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1) and refused.stderr.startswith("error: ")


@pytest.mark.parametrize("removed", ["x", None, [], 1.5])
def test_a_damaged_result_is_not_shown(run: Path, tmp_path: Path, removed: object) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(
        json.dumps({"removed_tokens": removed, "test_accuracy": removed, "test_examples": removed})
    )
    shown = panel(tmp_path / "run")
    assert [voice.number for voice in shown.voices] == [0, 1, 2]
    assert "right answers" not in [name for name, _, _ in facts_of(tmp_path / "run", shown.voices)]


def test_a_long_question_is_cut_in_the_line_that_refuses_it(run: Path) -> None:
    (first, *_) = panel(run).voices
    with pytest.raises(UserError) as refused:
        panel(run).models.grid(first, f"{'7' * 4000} * 8")
    assert len(str(refused.value)) < 300


def test_an_address_that_is_none_of_this_machine_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    create = socket.create_server
    monkeypatch.setattr(
        socket, "create_server", lambda address, **more: (tried.append(address[1]), create(address, **more))[1]
    )
    with pytest.raises(UserError, match="host=256.1.1.1 port=7860: the page cannot be served there"):
        demo_page.listening("256.1.1.1", None)
    assert tried == [7860]
    # A port in use is no reason to stop.
    with demo_page.listening("127.0.0.1", None) as one, demo_page.listening("127.0.0.1", None) as other:
        assert one.getsockname()[1] < other.getsockname()[1]


def test_every_problem_to_click_is_one_of_the_task(run: Path) -> None:
    with pytest.raises(UserError, match="'<script>': is no problem of this task"):
        Panel.of(run, {}, ["7 * 8", "<script>"], "cpu")


@pytest.mark.parametrize(
    ("question", "number"), [(None, 0), (5, 0), (["7 * 8"], 0), ("7 * 8", "x"), ("7 * 8", None), ("7 * 8", math.nan), ("7 * 8", True)]
)  # fmt: skip
def test_a_program_that_sends_something_else_gets_a_line(run: Path, question: object, number: object) -> None:
    (found,) = demo_frames.replies(panel(run), question, number)
    assert found.keys() == {"key", "error"} and found["error"].startswith(("the question must", "the number must"))


def test_the_server_ends_without_a_traceback_while_a_page_is_open(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    server = demo_page.server_of(demo_page.build(panel(run)))
    with demo_page.listening("127.0.0.1", None) as door:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", door.getsockname()[1], timeout=60)
        while not server.started:
            time.sleep(0.05)
        connection.request("GET", "/gradio_api/heartbeat/mine")  # an open page holds it
        assert connection.getresponse().status == 200
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
    assert "Traceback" not in capfd.readouterr().err
