"""Foreign things in place of a run or an output: other programs' files, nothing, links into nothing; one line names it."""

from pathlib import Path

import pytest

from stepwise_pl.common.disk import disk_error, make_folder
from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.saved_config import saved_config
from tests.conftest import REPO, SMALL, command

FOREIGN = {
    "hi: 1\n": "hi: no such key",
    "": "is empty",
    "derived: {}\n": "is empty",
    "- a\n": "is not a YAML mapping",
    "some text\n": "is not a YAML mapping",
    "a: [\n": "cannot be read as YAML",
    "\0": "cannot be read as YAML",
    "!!python/object:os.system x\n": "cannot be read as YAML",
    "optimizer: 3\n": "optimizer: Invalid type assigned: int",
    "task: hello\n": "task: Invalid type assigned: str",
    "task: {kind: [1]}\n": "task.kind=[1]: must be a text, not a list or a mapping",
    "seed: {a: 1}\n": "seed: is a mapping, where one value is meant",
    "seed: x\n": "seed=x: must be a whole number",
    "seed: ${x}\n": "seed: ",
    "model: {config: 3}\n": "model.config: must be a mapping, such as {name: 1}",
    "optimizer: {lr: .nan}\n": "optimizer.lr=nan: must be above 0",
    "a: &a [*a]\n": "a part of it refers to itself",
    "model: {config: {a: &b {c: *b}}}\n": "a part of it refers to itself",
}


@pytest.mark.parametrize("text", FOREIGN)
def test_a_foreign_config_is_named_with_what_to_do(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        saved_config(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.yaml'}: {FOREIGN[text]}")
    assert message.count(str(tmp_path)) == 1 and "give the folder of a training run" in message


@pytest.mark.long
@pytest.mark.parametrize(
    "name,words", [("evaluate", ["run=run"]), ("export", ["run=run"]), ("train", ["run_dir=run", "resume=true"])]
)
def test_commands_name_the_foreign_file(name: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("hi: 1\n")
    out = command(name, *words, cwd=tmp_path, check=False, PYTHONPATH=str(REPO))
    assert out.returncode == 2 and out.stderr.startswith("error: run/config.yaml: hi: no such key")
    assert len(out.stderr.splitlines()) == 1


def test_links_into_nothing_and_files_in_place_of_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    for path, said in (("link", "link is a link to nowhere, which is not there"), ("link/x", "link is a link to nowhere, which is not there"),
                       ("file", "file is a file, no folder"), ("file/x", "file is a file, no folder")):  # fmt: skip
        with pytest.raises(
            UserError, match=f"run_dir={tmp_path / path}: cannot be written .*{said}.; choose another run_dir"
        ):
            make_folder(tmp_path / path, "run_dir")
        with pytest.raises(OSError) as error:
            (tmp_path / path).mkdir(parents=True, exist_ok=True)
        assert said in str(disk_error(error.value))


def test_commands_name_a_link_into_nothing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for words in (["train", *SMALL, "run_dir=link"], ["write_data", "task=mult2x2", "task.digits=1", "out=link"]):
        out = command(*words, cwd=tmp_path, check=False, PYTHONPATH=str(REPO))
        assert out.returncode == 2 and len(out.stderr.splitlines()) == 1, out.stderr
        assert "link is a link to nowhere, which is not there" in out.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"link"}
