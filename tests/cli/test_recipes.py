"""Composition is a promise: every recipe composes with every choice of every other group, or is refused in one line."""

import random
from collections.abc import Iterator
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict

from stepwise_pl.cli import multirun
from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.common import plugins
from stepwise_pl.common.errors import UserError
from stepwise_pl.config.keys import flat
from stepwise_pl.config.known import CONF, choices, kind_of, set_command
from stepwise_pl.config.plain import to_object, to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.runs.at_work import unlock
from tests.conftest import command

set_command("train", Config)
GROUPS = choices()
EXPERIMENTS = GROUPS.pop("experiment")
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names]


@pytest.fixture(autouse=True, scope="module")
def _composing() -> Iterator[None]:
    GlobalHydra.instance().clear()
    set_command("train", Config)
    register_schemas("train", Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> tuple[Config, str]:
    """The checked configuration, and the line that says what was left out."""
    cfg = compose("train", list(overrides), return_hydra_config=True)
    left_out = cfg.hydra.runtime.left_out
    with open_dict(cfg):
        cfg.pop("hydra")
    return to_object(cfg), left_out


def composes(*overrides: str) -> None:
    """Compose to a checked configuration, or be refused in one line by a check; a merge never fails."""
    try:
        config, left_out = composed(*overrides)
    except UserError as error:
        # The checks say what is wrong with a value. They never say that a key is unknown.
        assert "no such key" not in str(error) and "conf/" not in str(error), overrides
        assert "\n" not in str(error) and len(str(error)) < 300, overrides
    else:
        assert isinstance(config, Config) and "\n" not in left_out
        assert all(not isinstance(value, DictConfig) for value in flat(to_plain(config)).values())


def yaml_of(path: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{path}.yaml").read_text()) or {}


def form_of_choice(group: str, name: str) -> tuple[str, str, frozenset[str]]:
    """The kind behind a choice and the keys that its file sets: a merge depends on nothing else of it."""
    keys = flat({key: value for key, value in yaml_of(f"{group}/{name}").items() if key != "defaults"})
    return group, kind_of(group, name), frozenset(keys)


def sets(experiment: str) -> tuple[frozenset[str], dict[str, str]]:
    """The keys and the choices of a recipe, with those of the recipes that it builds on."""
    own = yaml_of(f"experiment/{experiment}")
    keys, chosen = frozenset[str](), dict[str, str]()
    for one in own.pop("defaults", []):
        if isinstance(one, str):
            below, below_chosen = sets(one)
            keys, chosen = keys | below, below_chosen | chosen
        else:
            ((group, name),) = one.items()
            chosen[group.removeprefix("override /")] = name
    return keys | frozenset(key for key in flat(own) if not key.startswith("expected.")), chosen


def form_of_recipe(experiment: str) -> tuple[frozenset[str], frozenset[tuple[str, str, frozenset[str]]]]:
    keys, chosen = sets(experiment)
    return keys, frozenset(form_of_choice(*one) for one in chosen.items())


# A recipe of each form with a choice of each form in `make test`; all with all, one at a time, in `make long`.
RECIPES = sorted({form_of_recipe(name): name for name in EXPERIMENTS}.values())
FORMS = {form_of_choice(*one): one for one in CHOICES}.values()


@pytest.mark.parametrize("experiment", RECIPES)
def test_a_recipe_composes_with_each_choice_of_each_group(experiment: str) -> None:
    """Choices of several groups at a time, because a composition takes a tenth of a second; no key belongs to two groups."""
    forms = [[f"{group}={name}" for group, name in FORMS if group == of] for of in GROUPS]
    for together in zip_longest(*forms):
        composes(f"experiment={experiment}", *filter(None, together))


@pytest.mark.long
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_recipe_composes_with_all_choices(experiment: str) -> None:
    for group, name in CHOICES:
        composes(f"experiment={experiment}", f"{group}={name}")


@pytest.mark.long
def test_recipes_compose_with_choices_of_two_groups() -> None:
    pairs = [pair for pair in combinations(CHOICES, 2) if pair[0][0] != pair[1][0]]
    cases = [(experiment, pair) for experiment in EXPERIMENTS for pair in pairs]
    for experiment, pair in random.Random(0).sample(cases, 500):
        composes(f"experiment={experiment}", *(f"{group}={name}" for group, name in pair))


def test_keys_that_the_chosen_schedule_lacks_are_left_out_and_the_others_hold() -> None:
    config, line = composed("experiment=ablation_cpu_stepwise", "schedule=adaptive")
    assert config.schedule.smoothing == 4 and config.model.layers == 2
    assert line == (
        "experiment=ablation_cpu_stepwise: left out schedule.delta, schedule.pretrain_epochs, because schedule=adaptive has "
        "no such keys"
    )
    # A recipe that builds on another one counts with all that it builds on.
    config, line = composed("experiment=ablation_cpu_right_side", "schedule=adaptive")
    assert config.method.side == "right" and "experiment=ablation_cpu_right_side: left out schedule.delta," in line


def test_keys_of_several_groups_stand_in_one_line_with_their_reasons() -> None:
    _, line = composed("experiment=quickstart", "task=parity", "model=gpt2_2layer", "schedule=no_cot")
    assert (
        line == "experiment=quickstart: left out model.layers, model.heads, because model=gpt2_2layer sets them itself"
    )
    _, line = composed("experiment=quickstart", "task=file", "model=gpt2")
    assert line == (
        "experiment=quickstart: left out task.train_size, because task=file has no such key; "
        "model.layers, model.heads, because model=gpt2 sets them itself"
    )


def test_a_replaced_model_keeps_its_own_size_and_devices_stay_those_of_the_trainer() -> None:
    config, _ = composed("experiment=quickstart", "model=gpt2", "trainer=ddp")
    assert (config.model.layers, config.model.heads, config.model.width) == (12, 12, 768)
    assert config.model.config == {"initializer_range": 0.06}  # gpt2.yaml does not set it
    assert (config.trainer.devices, config.trainer.duration) == (2, "4000steps")


@pytest.mark.parametrize("experiment", ["quickstart", "ablation_cpu_no_cot", "gsm8k_phi3"])
def test_the_choices_of_the_recipe_itself_change_nothing(experiment: str) -> None:
    alone, _ = composed(f"experiment={experiment}")
    _, chosen = sets(experiment)
    again, line = composed(f"experiment={experiment}", *(f"{group}={name}" for group, name in chosen.items()))
    assert again == alone and line == ""


def test_keys_of_the_command_line_hold_whatever_is_left_out() -> None:
    config, line = composed("experiment=quickstart", "model=gpt2", "model.layers=3", "model.heads=4")
    assert config.model.layers == 3 and "model.layers" in line


SLIPS = {
    "schedule:\n  dleta: 3\n": "schedule.dleta: no such key. Did you mean schedule.delta?",
    "schedule:\n  keep: 0.9\n": "schedule.keep: schedule=stepwise has no such key; schedule=adaptive has it",
    "trainer:\n  durtion: 3steps\n": "trainer.durtion: no such key. Did you mean trainer.duration?",
    "optimizer:\n  lr: high\n": "optimizer.lr=high: must be a number",
    "trianer:\n  duration: 3steps\n": "trianer: no such key. Did you mean trainer?",
}


@pytest.mark.parametrize("recipe", SLIPS)
@pytest.mark.parametrize("choice", [[], ["model=gpt2"], ["schedule=explicit_cot"]])
def test_a_slip_in_a_recipe_is_refused_in_one_line(
    recipe: str, choice: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "folders", [tmp_path])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{recipe}")
    with pytest.raises(UserError) as refused:
        composed("experiment=mine", f"hydra.searchpath=[{tmp_path}]", *choice)
    assert str(refused.value).startswith(f"{tmp_path}/experiment/mine.yaml: ") and "\n" not in str(refused.value)
    said = SLIPS[recipe].replace(
        "schedule=stepwise", choice[0] if "schedule=explicit_cot" in choice else "schedule=stepwise"
    )
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "words,line",
    [
        ("schedule.keep=0.9", "schedule.keep: schedule=stepwise has no such key; schedule=adaptive has it"),
        ("schedule=no_cot schedule.chunk=one", "schedule.chunk: schedule=no_cot has no such key; schedule=adaptive has it"),
        ("+schedule.keep=0.9", "schedule.keep: this schedule has no such key; schedule=adaptive has it"),
        ("task.terms=3", "task.terms: task=mult4x4 has no such key; task=modular_sum has it"),
    ],
)  # fmt: skip
def test_a_key_of_another_choice_is_refused_with_the_choice_that_has_it(words: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        composed(*words.split())
    assert str(refused.value) == line


def test_a_sweep_over_schedules_of_a_recipe_is_planned_and_says_once_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose("train", ["experiment=ablation_cpu_stepwise", f"run_dir={tmp_path}"], return_hydra_config=True)
    config.hydra.overrides.task.extend(["schedule=stepwise,adaptive", "seed=0,1"])
    try:
        parsed = multirun.OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        jobs = multirun.plan(config, parsed, ["schedule", "seed"])
    finally:
        unlock(tmp_path)
    assert [(job.swept["schedule"], one.schedule.kind) for job, one in jobs] == [
        (name, kind) for name, kind in (("stepwise", "linear"), ("adaptive", "adaptive")) for _ in range(2)
    ]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "experiment=ablation_cpu_stepwise: left out schedule.delta, schedule.pretrain_epochs, because"
    )


@pytest.mark.long
def test_a_run_says_what_was_left_out(tmp_path: Path) -> None:
    short = (
        "trainer.duration=2steps",
        "optimizer.decay=0",
        "task.train_size=200",
        "task.validation_size=20",
        "task.test_size=20",
    )
    out = command(
        "train", "experiment=quickstart", "model=gpt2_2layer", "model.width=16", *short, f"run_dir={tmp_path / 'run'}"
    )
    said = [line for line in out.stderr.splitlines() if "left out" in line]
    assert said == [
        "experiment=quickstart: left out model.layers, model.heads, because model=gpt2_2layer sets them itself"
    ]
