"""`--help`: no header is cut, every key has its meaning, and every choice that is offered composes."""

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict

from stepwise_pl import __main__ as front
from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.cli.help import help_text, sections
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import settings_of
from stepwise_pl.config.known import CONF, choices, set_command
from stepwise_pl.config.plain import to_object
from stepwise_pl.config.run import Config
from tests.conftest import COMMANDS, REPO, schema_of

KINDS = [
    f"{group}={name}"
    for group in ("task", "schedule", "method")
    for name in sorted(path.stem for path in (CONF / group).glob("*.yaml"))
]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    set_command("train", Config)
    GlobalHydra.instance().clear()


def composed(command: str, *overrides: str) -> tuple[DictConfig, DictConfig]:
    """The help's part of a composed configuration, and the rest."""
    GlobalHydra.instance().clear()
    set_command(command, schema_of(command))
    register_schemas(command, schema_of(command))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, list(overrides), return_hydra_config=True)
    shown = cfg.hydra.help
    with open_dict(cfg):
        cfg.pop("hydra")
    return shown, cfg


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_no_header_is_cut(command: str) -> None:
    # An independent reading: the lines of the file between `header:` and `template:`.
    written = re.search(r"header:(.*?)\n    template:", (CONF / f"{command}.yaml").read_text(), re.DOTALL)
    assert written is not None
    text = words(written[1]).removeprefix("| ").strip("'\"")
    assert words(help_text(*composed(command), 100)).startswith(text) and len(text) > 20


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [0, 40, 80, 200])
def test_every_key_has_its_meaning_and_fits_the_terminal(command: str, columns: int) -> None:
    shown, cfg = composed(command)
    text = help_text(shown, cfg, columns)
    keys = [key for _, some in sections(cfg) for key in some]
    alone = {"task", "schedule", "method"} & {field for field, _ in settings_of(schema_of(command))}
    if not alone:  # Otherwise the kind decides on the keys; the next test goes through the kinds.
        groups = {key.rpartition(".")[0] for key, _ in settings_of(schema_of(command))}
        assert {key.name for key in keys} == {key for key, _ in settings_of(schema_of(command))} - groups
    for key in keys:
        assert len(key.meaning) > 10, key.name
        assert f"\n  {key.name}={key.value}" in text
        # A narrow terminal breaks long words.
        assert "".join(key.meaning.split()) in "".join(text.split())
    body = text.partition("Every key")[2]
    most = {0: 120, 200: 120}.get(columns, columns)
    assert all(len(line) <= most for line in body.splitlines() if not line.startswith("  ") or " " in line.strip())


@pytest.mark.parametrize("choice", KINDS)
def test_every_key_of_every_kind_has_its_meaning(choice: str) -> None:
    _, cfg = composed("train", choice)
    group = choice.split("=")[0]
    keys = [key for _, some in sections(cfg) for key in some if key.name.startswith(f"{group}.")]
    assert {key.name.partition(".")[2] for key in keys} == set(cfg[group]) - {"kind"}
    assert all(len(key.meaning) > 10 for key in keys), [key.name for key in keys if len(key.meaning) <= 10]


@pytest.mark.parametrize("command", ["write_data", "check_data"])
def test_every_choice_that_is_offered_composes(command: str) -> None:
    """Those of `train` are composed in test_config.py and test_recipes.py."""
    set_command(command, schema_of(command))
    needed = ["out=x"] if command == "write_data" else []
    offered = choices()
    assert "experiment" in offered and set(offered) <= {"experiment", "task", "model"}
    for group, names in offered.items():
        for name in names[:: 1 if group == "model" else 4]:
            assert isinstance(to_object(composed(command, f"{group}={name}", *needed)[1]), schema_of(command))


# The last one names a folder by its seed, which the commands for data do not have.
@pytest.mark.parametrize("experiment", ["quickstart", "ablation_cpu_right_side", "gsm8k_phi3", "gsm8k_gpt2_coconut"])
def test_a_recipe_gives_the_commands_for_data_the_same_data(experiment: str) -> None:
    recipe = to_object(composed("train", f"experiment={experiment}")[1])
    report = to_object(composed("check_data", f"experiment={experiment}")[1])
    text = to_object(composed("write_data", f"experiment={experiment}", "out=x")[1])
    recipe.model.init_from = None
    assert (report.task, report.data, report.model) == (recipe.task, recipe.data, recipe.model)
    assert text.task == recipe.task
    small = to_object(composed("check_data", f"experiment={experiment}", "task.validation_size=7", "task=parity")[1])
    assert (small.task.kind, small.task.validation_size, small.data) == ("parity", 7, recipe.data)


def test_a_slip_in_the_top_keys_of_a_recipe_is_refused_by_the_commands_for_data(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\ntsak:\n  digits: 3\n")
    with pytest.raises(UserError, match="conf/experiment/mine.yaml: tsak: no such key"):
        composed("write_data", "experiment=mine", f"hydra.searchpath=[{tmp_path}]")


@pytest.mark.parametrize("settings", [(), ("task=mult2x2", "seed=1")])
def test_hydras_own_help_stays_as_it_is(settings: tuple[str, ...]) -> None:
    out = subprocess.run(
        [sys.executable, "-m", "stepwise_pl.train", *settings, "--hydra-help"], capture_output=True, text=True, cwd=REPO
    )
    assert out.returncode == 0 and "--multirun" in out.stdout and out.stdout.startswith("Hydra")


# --- python -m stepwise_pl


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stepwise_pl", *arguments], capture_output=True, text=True, cwd=REPO)


def test_without_arguments_the_commands_are_listed_one_a_line() -> None:
    out = run()
    assert (out.returncode, out.stderr) == (0, "")
    listed = [line.split()[0] for line in out.stdout.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(COMMANDS) == sorted(front.COMMANDS)
    assert all(len(line) <= 100 for line in out.stdout.splitlines())
    assert run("--help").stdout == out.stdout


def test_a_command_gets_its_arguments() -> None:
    out = run("write_data", "task=mult99x99", "out=x")
    assert (out.returncode, out.stderr[:38]) == (2, "error: task=mult99x99: no such task; c")
    assert run("check-data", "--help").stdout.startswith("Look at the data before a long run")


@pytest.mark.parametrize(
    "word,line",
    [
        ("trian", "error: trian: no such command. Did you mean train?\n"),
        ("xyz", f"error: xyz: no such command. There are {', '.join(front.COMMANDS)}.\n"),
        ("experiment=quickstart", "error: experiment=quickstart: name a command first, such as train; python -m stepwise_pl lists them\n"),
    ],
)  # fmt: skip
def test_an_unknown_command_is_one_line(word: str, line: str) -> None:
    out = run(word)
    assert (out.returncode, out.stdout, out.stderr) == (2, "", line)


def test_the_console_script_is_this_command() -> None:
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["stepwise-pl"].partition(":")
    assert getattr(importlib.import_module(module), name) is front.main
