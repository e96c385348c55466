"""What Hydra was asked for: names of runs, keys that are set, choices."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from stepwise_pl.cli.names import canonical, folder_name, plain_name
from stepwise_pl.cli.workers import here
from stepwise_pl.config.keys import ASIDE, flat
from stepwise_pl.config.known import CONF, choices
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.config.request import Request
from stepwise_pl.runs.expected import changed_keys

_GROUPS_OF_NAME = ("task", "model", "schedule")


def request() -> Request:
    """How the run at hand was started."""
    return Request(
        run_name(), run_name(former=True), frozenset(given_keys()), changed_from_recipe(), chosen(),
        here.job, here.label, here.worker,
    )  # fmt: skip


def in_sweep() -> bool:
    """Whether this run is one of a `--multirun`."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def chosen() -> list[str]:
    """The names of experiment, task, model and schedule that Hydra was asked for."""
    choices = HydraConfig.get().runtime.choices
    return [str(name) for key in ("experiment", "task", "model", "schedule") if (name := choices.get(key))]


def run_name(former: bool = False) -> str:
    """Folder name of the run at hand from Hydra's choices and overrides, the same for the same command line.

    `<experiment>` or `<task>-<model>-<schedule>`, then the other overrides if there are any (`folder_name`).

    Args:
        former: as versions before names were one to one made it.
    """
    hydra_cfg = HydraConfig.get()
    chosen = hydra_cfg.runtime.choices
    experiment = chosen.get("experiment")
    name = base_name(chosen, former=former)
    rest = [override for override in hydra_cfg.overrides.task if names_a_run(override, bool(experiment), former)]
    return "/".join([name, *([folder_name(rest, former)] if rest else [])])


def base_name(chosen: Mapping[str, Any], swept: Sequence[str] = (), former: bool = False) -> str:
    """`<experiment>`, or `<task>-<model>-<schedule>`, without what is swept."""
    experiment = chosen.get("experiment") if "experiment" not in swept else None
    names = [experiment] if experiment else [chosen[group] for group in _GROUPS_OF_NAME if group not in swept]
    return "-".join(str(name) if former else plain_name(str(name)) for name in names)


def names_a_run(override: str, has_experiment: bool, former: bool = False) -> bool:
    """Whether an override is part of the name of a run, besides its experiment, or task, model and schedule.

    All are that may change what is learned (`config.ASIDE` holds the others).
    """
    key = keys_of([override]).pop()
    if key == "experiment" or (key in _GROUPS_OF_NAME and not has_experiment):
        return False
    if former:
        unnamed = ("run_dir", "resume", "objective", "seed", "logger", "trainer")
        return key not in unnamed and not key.startswith(("logger.", "trainer."))
    return changes_learning(override)


def changes_learning(override: str) -> bool:
    """Whether an override sets, or takes away, anything that is not in `config.ASIDE`."""
    key, value = canonical(override)
    file = CONF / key / f"{value}.yaml"
    if value is None or not file.is_file():
        return not (key.startswith(ASIDE) or f"{key}.".startswith(ASIDE))
    # A choice of a group says how a run is run if all that its file sets does; its defaults are the group's own.
    set_here = read_yaml(file)
    keys = flat({key: {name: item for name, item in set_here.items() if name != "defaults"}})
    return set_here.get("defaults") != [f"_{key}"] or not all(one.startswith(ASIDE) for one in keys)


def given_keys() -> set[str]:
    """The keys and groups that this command line sets."""
    return keys_of(HydraConfig.get().overrides.task)


def changed_from_recipe() -> list[str]:
    """The keys of this command line that make something else of a recipe, sorted (`expected.changed_keys`)."""
    groups = choices()
    learned = {next(iter(keys_of([one]))) for one in HydraConfig.get().overrides.task if changes_learning(one)}
    return sorted({*changed_keys(given_keys()), *(learned & groups.keys() - {"experiment"})})


def keys_of(overrides: Iterable[str]) -> set[str]:
    """The keys and groups that are set."""
    return {override.split("=")[0].lstrip("+~") for override in overrides}
