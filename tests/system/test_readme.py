"""Every command of the README composes, and the quick offline ones run."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stepwise_pl.cli.arguments import positional
from stepwise_pl.evaluate import EvaluateConfig
from stepwise_pl.export import ExportConfig
from stepwise_pl.training.module import StepwiseModule
from tests.config.test_config import composed
from tests.conftest import OFFLINE, REPO, command, schema_of

README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_there_are_commands() -> None:
    assert "make run" in COMMANDS and "make test" in COMMANDS
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("python -m")])
def test_python_commands_compose(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    entry, arguments = words[2].removeprefix("stepwise_pl."), words[3:]
    assert (REPO / "stepwise_pl" / f"{entry}.py").is_file()
    if "--help" in arguments:
        return  # run in test_config
    for name in ("evaluate", "export", "compare"):  # this test has no run folder
        monkeypatch.setattr(f"stepwise_pl.{name}.require_run", lambda run, command: None)
    arguments = positional(arguments, schema_of(entry))
    if "-m" in arguments:
        arguments.remove("-m")
        axes = [re.split(r",", a.split("=", 1)[1]) for a in arguments]
        for i in range(max(map(len, axes))):
            composed(*[f"{a.split('=')[0]}={v[i % len(v)]}" for a, v in zip(arguments, axes, strict=True)])
        return
    config = composed(*arguments, config_name=entry)
    assert not isinstance(config, EvaluateConfig | ExportConfig) or config.run in (
        "outputs/mine",
        "outputs/other",
        "outputs/sums",
        "outputs/watched",
    )


# Arguments that make a documented training command short: few problems, two steps.
SHORT = (
    "task.validation_size=20",
    "task.test_size=20",
    "trainer.duration=2steps",
    "data.batch_size=4",
)
NEEDS = {
    "trainer=gpu": "a GPU and the Hub", "task=gsm8k": "the Hub", "experiment=smollm2": "two files",
    "model=gpt2 task=mult7x7": "a minute and more; test_entry_points runs two steps of it",
}  # fmt: skip


@pytest.mark.long
def test_offline_commands_run_in_the_order_of_the_readme(tmp_path) -> None:
    ran = []
    data = next(block for block in BLOCKS if "make_data.py" in block)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    made = subprocess.run(["bash", "-e"], input=data, cwd=tmp_path, text=True, capture_output=True, env={"PATH": path})
    assert made.stdout.strip() == data.split("# ")[-1].strip(), made.stderr  # the README shows this very line
    for line in (c for c in COMMANDS if c.startswith("python -m") and not any(need in c for need in NEEDS)):
        entry, *arguments = shlex.split(line)[2:]
        generated = () if "task=file" in line else ("task.train_size=300",)
        short = {"stepwise_pl.train": (*SHORT, *generated), "stepwise_pl.evaluate": ("speed_problems=2",)}.get(
            entry, ()
        )
        short = () if "--help" in arguments else short
        if "hydra/launcher=joblib" in line:  # joblib leaves workers behind
            env = {**os.environ, **OFFLINE, "PYTHONPATH": str(REPO)}
            subprocess.run([sys.executable, "-m", entry, *arguments, *short], cwd=tmp_path, env=env, check=True)
        else:
            command(entry.removeprefix("stepwise_pl."), *arguments, *short, cwd=tmp_path, PYTHONPATH=str(REPO))
        ran.append(line)
    assert len(ran) >= 12
    assert (tmp_path / "outputs" / "my-model" / "model.safetensors").is_file()
    assert len(list((tmp_path / "outputs" / "mult4x4").iterdir())) == 3


def test_make_targets_exist() -> None:
    makefile = (REPO / "Makefile").read_text()
    for line in (c for c in COMMANDS if c.startswith("make")):
        assert re.search(rf"^{line.split()[1]}:", makefile, re.M)


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPO / target).exists(), target


def test_the_training_step_of_the_readme_is_that_of_the_module() -> None:
    block = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "self.schedule.spread" in block)
    shown = [line for line in block.splitlines() if not line.startswith("#")]
    source = inspect.getsource(StepwiseModule.training_step)
    assert [line.strip() for line in source.splitlines()[1:]] == shown
