"""The documents: every command composes, every command that can run offline runs, every link leads somewhere."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stepwise_pl.cli.arguments import positional
from stepwise_pl.training.module import StepwiseModule
from tests.config.test_config import composed
from tests.conftest import OFFLINE, REPO, command, schema_of

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(REPO)) for page in PAGES]
EXPERIMENTS = sorted(path.relative_to(REPO) for path in (REPO / "experiments").glob("*/README.md"))


def text_of(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def blocks_of(name: str) -> list[str]:
    """The blocks of a page that run as they stand. Blocks without `sh` need what no test machine has."""
    return re.findall(r"```sh\n(.*?)```", text_of(name), re.S)


def commands_of(name: str) -> list[str]:
    blocks = [re.sub(r"cat > .*?\nEND\n", "", block, flags=re.S) for block in blocks_of(name)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def other_commands_of(name: str) -> list[str]:
    """Commands that are shown in blocks without `sh`: these compose, and need a GPU, a network or files to run."""
    blocks = re.findall(r"```\n(.*?)```", text_of(name), re.S)
    return [line.strip() for block in blocks for line in block.splitlines() if line.startswith("python -m stepwise_pl")]


# tests/system/test_extending.py runs the commands of this page, which need the plugin that the page shows.
EXTENDING = "docs/extending.md"
ALL = [(name, line) for name in NAMES if name != EXTENDING for line in (*commands_of(name), *other_commands_of(name))]


def test_the_readme_begins_with_two_commands() -> None:
    assert commands_of("README.md")[:2] == ["make run", "make test"]


def test_the_readme_is_two_screens_long() -> None:
    assert len(text_of("README.md").splitlines()) <= 130


def test_every_page_is_linked_from_the_readme() -> None:
    for name in NAMES[1:]:
        assert f"]({name})" in text_of("README.md"), name


@pytest.mark.parametrize(("name", "line"), [pair for pair in ALL if pair[1].startswith("python -m stepwise_pl.")])
def test_every_command_composes(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, *arguments = shlex.split(line.split("  #")[0])[2:]
    entry = entry.removeprefix("stepwise_pl.")
    assert (REPO / "stepwise_pl" / f"{entry}.py").is_file()
    if "--help" in arguments or "hydra/sweeper=optuna" in arguments:
        return
    for module in (
        "ask",
        "evaluate",
        "export",
        "compare",
        "demo",
        "harness",
        "cli.run_folders",
    ):  # this test has no run folder
        monkeypatch.setattr(f"stepwise_pl.{module}.require_run", lambda run, command: None)
    arguments = [word for word in positional(arguments, schema_of(entry)) if not word.startswith("hydra/launcher=")]
    arguments = [word for word in arguments if not word.startswith("hydra.launcher.")]
    if "-m" in arguments:
        arguments.remove("-m")
        axes = [word.split("=", 1)[1].split(",") for word in arguments]
        for i in range(max(map(len, axes))):
            composed(*[f"{word.split('=')[0]}={v[i % len(v)]}" for word, v in zip(arguments, axes, strict=True)])
    else:
        composed(*arguments, config_name=entry)


# Arguments that make a documented training command short: few problems, two steps.
SHORT = (
    "task.validation_size=20", "task.test_size=20", "trainer.duration=2steps", "optimizer.decay=0", "data.batch_size=4",
)  # fmt: skip
NEEDS = {
    "trainer=gpu": "a GPU and the Hub", "task=gsm8k": "the Hub", "experiment=smollm2": "two files",
    "model=gpt2 task=mult7x7": "a minute and more; test_entry_points runs two steps of it",
}  # fmt: skip


def automatic_folder(arguments: list[str]) -> str:
    """The folder of a run of the quickstart with these settings, or of any run if it is another recipe."""
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    name, seed = given.pop("experiment", "other"), given.pop("seed", "0")
    rest = "+".join(sorted(f"{key.rpartition('.')[2]}-{value}" for key, value in given.items()))
    return "/".join(filter(None, ["outputs", name, rest, f"seed{seed}"]))


@pytest.mark.long
@pytest.mark.parametrize(
    "name", sorted({name for name, line in ALL if line.startswith("python -m") and line in commands_of(name)})
)
def test_every_offline_command_runs_in_the_order_of_its_page(name: str, tmp_path: Path) -> None:
    made = [block for block in blocks_of(name) if "cat > " in block]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, **OFFLINE, "PYTHONPATH": str(REPO), "PATH": path}
    for block in made:
        files = "".join(re.findall(r"(?:mkdir [^\n]*\n)?cat > .*?\nEND\n", block, re.S))
        subprocess.run(["bash", "-e"], input=files, cwd=tmp_path, text=True, env=env, check=True)
    ran = []
    for line in commands_of(name):
        if not line.startswith("python") or any(need in line for need in NEEDS):
            continue
        if not line.startswith("python -m"):  # a script that the page has written
            subprocess.run(shlex.split(line), cwd=tmp_path, env=env, check=True)
            continue
        entry, *arguments = shlex.split(line)[2:]
        entry = entry.removeprefix("stepwise_pl.")
        short: tuple[str, ...] = {
            "train": SHORT,
            "evaluate": ("speed_problems=2",),
            "patch": ("pairs=2", "fit_problems=20"),
        }.get(entry, ())
        is_generated = not any(word.startswith(("task=file", "task.train=")) for word in arguments)
        if entry == "train" and is_generated:
            short = (*short, "task.train_size=300")
        if "--help" in arguments or ("resume=true" in arguments and "-m" not in arguments):
            short = ()
        elif (
            entry == "train"
            and "-m" not in arguments
            and not any(word.startswith(("run_dir=", "name=")) for word in arguments)
        ):
            # The folder that the page names is the one without these further settings.
            short = (*short, f"run_dir={automatic_folder(arguments)}")
        if "hydra/launcher=joblib" in line:  # joblib leaves workers behind
            subprocess.run([sys.executable, "-m", f"stepwise_pl.{entry}", *arguments, *short], cwd=tmp_path, env=env, check=True)  # fmt: skip
        else:
            command(entry, *arguments, *short, cwd=tmp_path, PYTHONPATH=str(REPO))
        ran.append(line)
    assert ran


def test_the_data_page_shows_the_first_line_of_its_file(tmp_path: Path) -> None:
    block = blocks_of("docs/data.md")[0]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    made = subprocess.run(["bash", "-e"], input=block, cwd=tmp_path, text=True, capture_output=True, env={"PATH": path})
    assert made.stdout.strip() == block.split("# ")[-1].strip(), made.stderr


def test_every_make_target_of_the_documents_exists() -> None:
    makefile = (REPO / "Makefile").read_text()
    for _, line in ALL:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.M), line


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*NAMES, *map(str, EXPERIMENTS), "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(name)):
        file, _, anchor = target.partition("#")
        path = (REPO / name).parent / file if file else REPO / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_training_step_of_the_documents_is_that_of_the_module() -> None:
    blocks = re.findall(r"```python\n(.*?)```", text_of("docs/code.md"), re.S)
    block = next(block for block in blocks if "self.schedule.spread" in block)
    shown = [line for line in block.splitlines() if not line.startswith("#")]
    source = inspect.getsource(StepwiseModule.training_step)
    assert [line.strip() for line in source.splitlines()[1:]] == shown
