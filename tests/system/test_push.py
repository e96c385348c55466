"""`export push=`: the folder arrives on a stand-in of the Hub, private, and the token stays where it was."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, command
from tests.hub_server import TOKEN, Hub
from tests.system.test_entry_points import answers_of

NOBODY = "http://127.0.0.1:9"  # a port nobody listens on
NAME = "me/small-product"


@pytest.fixture
def server() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "hf"
    command("export", f"run={run_dir}", f"out={folder}")
    return folder


def online(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that finds the stand-in, and nothing that this machine knows of the Hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return {**kept, **own, "PYTHONPATH": str(REPO), **more}


def export(*words: str, env: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: huggingface_hub reads the environment when it is imported."""
    line = [sys.executable, "-m", "stepwise_pl.export", *words]
    return subprocess.run(line, capture_output=True, text=True, env=env, cwd=cwd, check=False, timeout=300)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pushed_run_is_the_folder_and_answers_as_the_run_does(server: Hub, run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    env = online(server.url, tmp_path / "home", HF_TOKEN=TOKEN)
    ran = export(f"run={run_dir}", f"out={out}", f"push={NAME}", "license=mit", env=env)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (repository,) = server.repositories.values()
    assert server.repositories.keys() == {NAME} and repository.private
    assert (
        repository.files == contents(out)
        and {"model.safetensors", "README.md", "accuracy.png"} <= repository.files.keys()
    )
    (message,) = repository.messages
    assert re.fullmatch(r"mult2x2-tiny-stepwise\S* seed 0: 2 of 2 CoT tokens removed, best.ckpt at step \d+", message)
    assert ran.stdout.splitlines()[-1] == f"pushed to       {server.url}/{NAME} (private)"
    # Every request to the Hub itself has the token, and the upload to its storage has not.
    # huggingface_hub asks on its own, without a token, which agents there are.
    asked = [(path, token) for _, path, token in server.requests if path not in ("/", "/api/agent-harnesses")]
    assert {token for path, token in asked if not path.startswith("/lfs/")} == {TOKEN}
    assert [token for path, token in asked if path.startswith("/lfs/")] == [None, None]
    places = {**contents(out), **{f"run/{name}": data for name, data in contents(run_dir).items()}}
    assert not [name for name, data in places.items() if TOKEN.encode() in data]
    assert not (tmp_path / "home" / "token").exists()
    assert TOKEN not in ran.stdout + ran.stderr and "HTTP Request" not in ran.stderr
    # Read from the files of the server alone.
    for name, data in repository.files.items():
        (tmp_path / "back").mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(data)
    answers_of(tmp_path / "back", run_dir)


@pytest.mark.long
def test_the_code_of_a_pushed_card_asks_the_model_on_the_hub(server: Hub, exported: Path, tmp_path: Path) -> None:
    env = online(server.url, tmp_path / "home", HF_TOKEN=TOKEN)
    here = [sys.executable, "-c", (exported / "README.md").read_text().split("```python")[1].split("```")[0]]
    local = subprocess.run(here, capture_output=True, text=True, cwd=exported, env=env, check=True)
    assert export(f"run={exported}", f"push={NAME}", env=env).returncode == 0
    card = server.repositories[NAME].files["README.md"].decode()
    code = card.split("```python")[1].split("```")[0]
    assert f'name = "{NAME}"' in code
    (tmp_path / "elsewhere").mkdir()
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "elsewhere", env=env
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    assert asked.stdout == local.stdout and len(asked.stdout.split()) == 2
    assert any(path.endswith("/model.safetensors") and "/resolve/" in path for _, path, _ in server.requests)


def test_a_second_push_is_a_second_commit(server: Hub, exported: Path, tmp_path: Path) -> None:
    env = online(server.url, tmp_path, HF_TOKEN=TOKEN)
    assert export(f"run={exported}", f"push={NAME}", env=env).returncode == 0
    repository = server.repositories[NAME]
    repository.files["notes.md"] = b"mine"
    repository.files["config.json"] = b"{}"
    assert export(f"run={exported}", f"push={NAME}", env=env).returncode == 0
    assert len(repository.messages) == 2
    assert repository.files == {**contents(exported), "notes.md": b"mine"}


def test_a_public_model_must_be_asked_for(server: Hub, exported: Path, tmp_path: Path) -> None:
    env = online(server.url, tmp_path, HF_TOKEN=TOKEN)
    ran = export(f"run={exported}", f"push={NAME}", "private=false", env=env)
    assert ran.returncode == 0 and not server.repositories[NAME].private
    assert ran.stdout.splitlines()[-1].endswith(f"{server.url}/{NAME} (public)")
    before = dict(server.repositories[NAME].files)
    server.repositories[NAME].files.pop("config.json")
    ran = export(f"run={exported}", f"push={NAME}", env=env)
    assert ran.returncode == 2 and "is there already, and public; private=false pushes into it" in ran.stderr
    assert server.repositories[NAME].files == {name: data for name, data in before.items() if name != "config.json"}
    server.repositories[NAME].private = True
    ran = export(f"run={exported}", f"push={NAME}", "private=false", env=env)
    assert ran.returncode == 0 and "(still private; its settings on the Hub make it public)" in ran.stdout


def one_line(ran: subprocess.CompletedProcess[str]) -> str:
    """The only line of a command that failed. It shows no token."""
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith("error: push=") and TOKEN not in line + ran.stdout
    return line


@pytest.mark.parametrize(
    "place,status,words",
    [
        ("/api/repos/create", 401, "the Hub does not know the token in HF_TOKEN"),
        ("/api/repos/create", 403, "the token in HF_TOKEN may not write there"),
        ("/api/repos/create", 500, "the Hub has failed (500"),
        ("/preupload/", 403, "the token in HF_TOKEN may not write there"),
        ("/commit/", 409, "somebody else is changing the repository; try again"),
        ("/commit/", 503, "the Hub has failed (503"),
        ("/lfs/", 403, "the token in HF_TOKEN may not write there"),
        ("/api/validate-yaml", 502, "the Hub has failed (502"),
    ],
)
def test_an_answer_of_the_hub_that_is_no_yes_is_one_line(
    server: Hub, exported: Path, tmp_path: Path, place: str, status: int, words: str
) -> None:
    server.fails = {place: status}
    if place == "/api/repos/create" and status < 500:
        server.fails["/api/models"] = status  # a repository that is there could be written to all the same
    before = contents(exported)
    line = one_line(export(f"run={exported}", f"push={NAME}", env=online(server.url, tmp_path, HF_TOKEN=TOKEN)))
    assert (
        words in line and f"The exported folder stays: {exported}; python -m stepwise_pl.export run={exported}" in line
    )
    assert before == contents(exported)


def test_a_hub_out_of_reach_is_one_line_and_the_folder_stays(
    server: Hub, run_dir: Path, exported: Path, tmp_path: Path
) -> None:
    words = (f"run={exported}", f"push={NAME}")
    line = one_line(export(*words, env=online(NOBODY, tmp_path, HF_TOKEN=TOKEN)))
    assert f"{NOBODY} cannot be reached; check the network, or HF_ENDPOINT" in line
    ran = command("export", f"run={run_dir}", f"out={tmp_path / 'hf'}", f"push={NAME}", check=False, HF_TOKEN=TOKEN)
    line = ran.stderr.strip().splitlines()[-1]
    assert ran.returncode == 2 and "cannot be reached; HF_HUB_OFFLINE is set" in line and "Traceback" not in ran.stderr
    assert f"The exported folder stays: {tmp_path / 'hf'}" in line and (tmp_path / "hf" / "model.safetensors").is_file()
    again = command("export", f"run={run_dir}", f"out={tmp_path / 'hf'}", f"push={NAME}", check=False, HF_TOKEN=TOKEN)
    assert f"python -m stepwise_pl.export run={tmp_path / 'hf'} push={NAME} uploads it as it is" in again.stderr


@pytest.mark.parametrize("token", ["", "  ", "hf_with blank", "hf_näh", "hf_two\nlines"])
def test_a_token_that_is_none_is_told_before_the_work(exported: Path, tmp_path: Path, token: str) -> None:
    # A login that huggingface_hub keeps is not used.
    (tmp_path / "token").write_text(TOKEN)
    ran = command("export", f"run={exported}", f"push={NAME}", check=False, HF_TOKEN=token, HF_HOME=str(tmp_path))
    line = one_line(ran)
    assert ("HF_TOKEN is not set" in line) if not token.strip() else ("HF_TOKEN holds characters" in line)
    assert not token.strip() or token not in line


@pytest.mark.parametrize(
    "name", ["me", "a/b/c", "me/with blank", "me/x--y", "me/.x", "me/x.git", "me/" + "x" * 97, "/x", "https://x/y"]
)
def test_a_name_that_the_hub_cannot_have_is_one_line(exported: Path, name: str) -> None:
    line = one_line(command("export", f"run={exported}", f"push='{name}'", check=False, HF_TOKEN=TOKEN))
    assert f"push={name}: is no name on the Hub" in line


def test_there_is_no_key_for_a_token(exported: Path) -> None:
    ran = command("export", f"run={exported}", f"push={NAME}", f"token={TOKEN}", check=False)
    assert ran.returncode == 2 and "token: no such key" in ran.stderr and TOKEN not in ran.stderr


def test_what_is_no_export_is_not_pushed(run_dir: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for words, said in (
        ((f"run={tmp_path}", f"push={NAME}"), "holds no stepwise_pl.json"),
        ((f"run={exported}",), "is an exported model already; push=<user>/<name> uploads it"),
        ((f"run={exported}", f"push={NAME}", "out=x"), "out=x: is for run folders"),
        ((f"run={exported}", f"push={NAME}", "checkpoint=last"), "checkpoint=last: is for run folders"),
        ((f"run={run_dir}", "private=false"), "private=False: is about push="),
        ((f"run={run_dir}", "license='MIT License'"), "license=MIT License: must be a name as the Hub has them"),
    ):
        ran = command("export", *words, check=False, HF_TOKEN=TOKEN)
        assert ran.returncode == 2 and said in ran.stderr, ran.stderr
