"""A folder for Hugging Face Spaces: it serves the same page with nothing but itself."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from stepwise_pl.ask import AskConfig, speaker
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.demo import DemoConfig, demo
from stepwise_pl.models.export import write_model
from stepwise_pl.showing.panel import Panel
from tests import background
from tests.conftest import OFFLINE, REPO

PATIENCE = 240  # seconds, on a busy machine
# Libraries of the project that requirements.txt leaves out, and that nothing else asks for. The page must do without.
ABSENT = ("lightning", "torchmetrics", "matplotlib", "plotly")
START = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, *more):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, "")
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def space(run: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spaces") / "space"
    demo(DemoConfig(run=str(run), no_cot=str(others / "no_cot"), space=str(out)))
    return out


def test_it_holds_what_is_asked_and_nothing_of_this_machine(space: Path, run: Path) -> None:
    there = {str(path.relative_to(space)) for path in space.rglob("*") if path.is_file()}
    assert {"app.py", "README.md", "requirements.txt", "run/config.yaml", "stepwise_pl/conf/demo.yaml"} <= there
    kept = {f"run/checkpoints/removed-{number}.ckpt" for number in range(3)}
    assert {name for name in there if name.endswith(".ckpt")} == kept | {"no_cot/checkpoints/best.ckpt"}
    for name in kept:
        assert (space / name).stat().st_size <= (run / name.removeprefix("run/")).stat().st_size
    forbidden = {str(path).encode() for path in (run, REPO, Path.home(), run.parents[1]) if len(path.parts) > 1}
    for name in there:
        content = (space / name).read_bytes()
        assert not [path for path in forbidden if path + b"/" in content], name
    front = (space / "README.md").read_text().split("---\n")[1]
    (space.parent / "front.yaml").write_text(front)
    facts = read_yaml(space.parent / "front.yaml")
    assert (facts["sdk"], facts["app_file"]) == ("gradio", "app.py") and re.fullmatch(
        r"\d+\.\d+\.\d+", facts["sdk_version"]
    )
    assert all(re.fullmatch(r"[a-z0-9-]+==[\d.]+\n", line) for line in (space / "requirements.txt").open())


def test_the_copy_says_what_the_run_says(space: Path, run: Path, others: Path) -> None:
    before = Panel.of(run, {"no_cot": others / "no_cot"}, [], "cpu")
    after = Panel.of(space / "run", {"no_cot": space / "no_cot"}, [], "cpu")
    assert (before.examples, before.label) == (after.examples, after.label)
    for number in range(3):
        for question in before.examples[:2]:
            pairs = zip(
                before.answers(question, number, again=True), after.answers(question, number, again=True), strict=True
            )
            for one, other in pairs:
                assert one.watched and other.watched
                assert (one.heading, one.note) == (other.heading, other.note)
                kinds = [
                    [(moment.kind, moment.text) for moment in each.watched.moments]
                    for each in (one, other)
                    if each.watched
                ]
                assert kinds[0] == kinds[1]
            assert before.grid(question, number).words == after.grid(question, number).words


def test_a_folder_that_is_not_empty_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^space=.*: is not empty; choose another folder$"):
        demo(DemoConfig(run=str(run), space=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_exported_folder_becomes_a_space_too(run: Path, tmp_path: Path) -> None:
    out = write_model(run, "best", tmp_path / "exported")
    demo(DemoConfig(run=str(out), space=str(tmp_path / "space")))
    question = Panel.of(out, {}, [], "cpu").examples[0]
    copy = speaker(AskConfig(run=str(tmp_path / "space" / "run"))).ask(question)
    assert copy.answer == speaker(AskConfig(run=str(run))).ask(question).answer


@pytest.mark.long
def test_its_app_answers_in_a_process_that_has_nothing_but_the_folder(space: Path, run: Path) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    moved = space.rename(space.with_name("moved"))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = background.start(
        "-c", START, cwd=moved, env={**env, **OFFLINE}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = ""
        said = []
        begin = time.monotonic()
        while not url and time.monotonic() < begin + PATIENCE:
            said.append(process.stdout.readline())
            assert process.poll() is None, "".join(said)
            url = (re.findall(r"the page is at (\S+)", said[-1]) or [""])[0]
        client = gradio_client.Client(url, verbose=False)
        for number in range(3):
            own, explicit, without = client.predict("7 * 8", number, api_name="/ask")
            reply = speaker(AskConfig(run=str(run), checkpoint=f"removed-{number}")).ask("7 * 8")
            assert (own["reply"]["answer"], own["reply"]["cot"]) == (reply.answer, reply.cot)
            assert (explicit["key"], without["key"]) == ("explicit_cot", "no_cot") and own["moments"][-1]["passes"] >= 4
        assert json.dumps(own).count(str(moved)) == 0
        (refused,) = client.predict("7 + 8", -1, api_name="/ask")
        assert refused["error"].startswith("'7 + 8': is no problem of this task")
    finally:
        moved.rename(space)
        background.end_all()


def test_the_settings_of_a_space_are_yaml_whatever_the_folder_is_called(run: Path, tmp_path: Path) -> None:
    name = 'a "b": #c \\ ü'
    write_model(run, "best", tmp_path / name)
    demo(DemoConfig(run=str(tmp_path / name), space=str(tmp_path / "space")))
    (tmp_path / "front.yaml").write_text((tmp_path / "space" / "README.md").read_text().split("---\n")[1])
    assert read_yaml(tmp_path / "front.yaml")["title"] == f"Ask {name}"
