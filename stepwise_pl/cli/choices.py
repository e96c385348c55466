"""The `Request` of a run, as Hydra was asked for it."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from stepwise_pl.cli import resumed_groups
from stepwise_pl.cli.former_names import FORMER
from stepwise_pl.cli.names import NOW, changes_learning, keys_of
from stepwise_pl.cli.workers import here
from stepwise_pl.config.known import choices
from stepwise_pl.config.request import Request
from stepwise_pl.runs.expected import changed_keys


def request(name: str | None) -> Request:
    """The request of this run, from Hydra; `name`: as the user gave it, None if Hydra's choices and settings make it."""
    former: tuple[str, ...]
    if name:
        # A sweep has the name, and its runs are told apart by what is swept.
        now, former = "/".join(filter(None, [name, here.cell])), ()
    else:
        now, former = NOW.run_name(), tuple(names.run_name() for names in FORMER)
    return Request(
        now, former, frozenset(given_keys()), changed_from_recipe(), chosen(),
        here.job, here.label, here.worker, here.sweep, here.words,
    )  # fmt: skip


def in_sweep() -> bool:
    """Whether this run is one of a `--multirun`."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def chosen() -> list[str]:
    """The names of experiment, task, model and schedule that Hydra was asked for."""
    choices = HydraConfig.get().runtime.choices
    return [str(name) for key in ("experiment", "task", "model", "schedule") if (name := choices.get(key))]


def given_keys() -> set[str]:
    """The keys and groups that this command line sets."""
    return keys_of(typed())


def typed() -> list[str]:
    """The settings of this command line, without those that a resumed run has added."""
    return [override for override in HydraConfig.get().overrides.task if override not in resumed_groups.added]


def changed_from_recipe() -> list[str]:
    """The keys of this command line that make something else of a recipe, sorted (`expected.changed_keys`)."""
    groups = choices()
    learned = {next(iter(keys_of([one]))) for one in typed() if changes_learning(one)}
    return changed_keys(given_keys(), learned & groups.keys() - {"experiment"})
