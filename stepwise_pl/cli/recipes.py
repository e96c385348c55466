"""Recipes under other choices: what `experiment=<name>` sets for a group that the command line replaced is left out.

A recipe, a file in conf/experiment, chooses groups and sets keys in them. If the command line chooses another schedule
than the recipe does, a key of the recipe's schedule is left out (a) if the other schedule has no such key, and (b) if
the file of the other schedule sets the key itself. All other keys of the recipe hold. Hydra composes the configuration
of every job of a sweep anew, so the place for this is the loader that merges the files (`RecipeLoader`).

`write_data` and `check_data` have fewer groups than `train`. They take what a recipe says about theirs.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from stepwise_pl.common.errors import UserError
from stepwise_pl.config import known
from stepwise_pl.config.keys import flat
from stepwise_pl.config.mistakes import explain
from stepwise_pl.config.run import Config

_RECIPES = "experiment/"


def use_recipe_loader() -> None:
    """Let Hydra make its loaders of this kind; it offers no other way to choose one."""
    hydra._internal.hydra.ConfigLoaderImpl = RecipeLoader  # type: ignore[misc, attr-defined]


def left_out() -> str:
    """Return the line on the keys of the recipe that are left out; empty if none are."""
    runtime: Any = HydraConfig.get().runtime
    return str(runtime.left_out)


def with_recipes(line: str, swept: Iterable[str]) -> str:
    """Return the line on a key that some choice lacks; if the group of the key is swept, with the way to sweep over it."""
    group = line.partition(".")[0]
    if group not in swept or "has no such key" not in line:
        return line
    key = line.partition(":")[0]
    return (
        f"{line}; give a recipe to each {group} that needs keys of its own, and sweep over experiment=<name>,<name>; if every swept "
        f"{group} has the key, write '{key}=choice(<value>)'"
    )


class _LeftOut(NamedTuple):
    """A key of a recipe that is left out, and the reason."""

    key: str
    choice: str
    is_set_there: bool


class RecipeLoader(ConfigLoaderImpl):
    """Hydra's loader, with recipes that give way to the choices of the command line.

    `hydra.runtime.left_out` of a composed configuration says what was left out: one line, or nothing.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        # State of the present composition: the files of the recipe under its own choices, what is left out, the choices, and what is swept.
        self._own: list[ResultDefault] | None = None
        self._left_out: tuple[_LeftOut, ...] = ()
        self._chosen: Mapping[str, str] = {}
        self._swept: list[str] = []
        self._own_before: dict[tuple[str | None, ...], list[ResultDefault] | None] = {}

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        self._own, self._left_out = self._own_files(config_name, overrides), ()
        try:
            cfg = super()._load_configuration_impl(
                config_name, overrides, run_mode, from_shell, validate_sweep_overrides
            )
        except (ConfigCompositionException, OmegaConfBaseException) as error:
            raise UserError(with_recipes(explain(error, self._chosen), self._swept)) from error
        with open_dict(cfg.hydra.runtime):
            cfg.hydra.runtime.left_out = left_out_line(self._chosen.get("experiment", ""), self._left_out)
        return cfg

    def _own_files(self, config_name: str | None, overrides: list[str]) -> list[ResultDefault] | None:
        """The files of the recipe under its own choices; None if the command line names no recipe, or chooses nothing besides."""
        words = [one for one in overrides if one.lstrip("+").startswith(("experiment=", "hydra.searchpath="))]
        kept = (config_name, *words)
        if not any(known.choices().get(one.partition("=")[0].lstrip("+")) for one in overrides if one not in words):
            return None
        if kept not in self._own_before:  # The jobs of a sweep ask again and again.
            parsed, repo = self._parse_overrides_and_create_caching_repo(config_name, words)
            recipe = [one for one in parsed if one.key_or_group == "experiment" and not one.is_sweep_override()]
            found = create_defaults_list(repo, config_name, recipe, prepend_hydra=True, skip_missing=False)
            self._own_before[kept] = found.defaults if recipe else None
        return self._own_before[kept]

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, repo = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        self._swept = [one.key_or_group for one in parsed if one.is_sweep_override()]
        return parsed, _Repository(repo)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        self._chosen = _choices(defaults)
        if self._own is not None:
            own = _choices(self._own)
            replaced = {group for group, name in self._chosen.items() if own.get(group, name) != name}
            if replaced:
                self._left_out = tuple(self._to_leave_out(replaced, defaults, repo))
        return super()._compose_config_from_defaults_list(defaults, repo)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        loaded = super()._load_single_config(default, repo)
        if self._left_out and _is_recipe(default):
            # The repository keeps what it has loaded; the copy is for this merge alone.
            loaded = replace(loaded, config=copy.deepcopy(loaded.config))
            for key, *_ in self._left_out:
                group, _, name = key.rpartition(".")
                part = OmegaConf.select(loaded.config, group)
                if isinstance(part, DictConfig):
                    part.pop(name, None)
        return loaded

    def _to_leave_out(
        self, replaced: set[str], defaults: list[ResultDefault], repo: IConfigRepository
    ) -> Iterable[_LeftOut]:
        """Yield the keys that no longer hold, from the recipe and from the recipes that it builds on."""
        assert self._own is not None
        set_there = {key for one in defaults if _group_of(one) in replaced for key in self._keys_of_file(one, repo)}
        in_recipe = {key: None for one in defaults if _is_recipe(one) for key in self._keys_of_file(one, repo)}
        for key in in_recipe:
            group, _, name = key.partition(".")
            # A key that the recipe's own choice lacks is a slip in the recipe; it stays, and is refused.
            if group not in replaced or not has_key(self._schema(group, self._own, repo), name):
                continue
            if key in set_there or not has_key(self._schema(group, defaults, repo), name):
                yield _LeftOut(key, f"{group}={self._chosen[group]}", key in set_there)

    def _schema(self, group: str, defaults: list[ResultDefault], repo: IConfigRepository) -> Any:
        """The schema of the choice of a group; None if it has none."""
        loaded = [self._load_single_config(one, repo) for one in defaults if _group_of(one) == group]
        return next((OmegaConf.select(one.config, group) for one in loaded if one.is_schema_source), None)

    def _keys_of_file(self, default: ResultDefault, repo: IConfigRepository) -> list[str]:
        """The dotted keys that a YAML file sets; none for a schema."""
        loaded = self._load_single_config(default, repo)
        if loaded.is_schema_source or not isinstance(loaded.config, DictConfig):
            return []
        return list(flat(OmegaConf.to_container(loaded.config, resolve=False)))  # type: ignore[arg-type]


class _Repository(CachingConfigRepository):
    """Files for composing. Of a recipe it gives what this command has: its groups and keys."""

    def __init__(self, other: CachingConfigRepository) -> None:
        self.delegate, self.cache = other.delegate, other.cache

    def load_config(self, config_path: str) -> ConfigResult | None:
        is_loaded = f"config_path={config_path}" in self.cache
        loaded = super().load_config(config_path)
        if loaded is not None and not is_loaded and config_path.startswith(_RECIPES):
            if not isinstance(loaded.config, DictConfig):
                raise UserError(f"{config_path}.yaml: is no mapping of keys, which a recipe is")
            others = {field.name for field in fields(Config)} - {field.name for field in fields(known.command.schema)}
            for key in others & set(loaded.config):
                loaded.config.pop(key)
            _drop_references(loaded.config, others)
            loaded.defaults_list = [
                one
                for one in loaded.defaults_list or []
                if not (isinstance(one, GroupDefault) and one.override and (one.group or "").lstrip("/") in others)
            ]
        return loaded


def _drop_references(config: DictConfig, names: Iterable[str]) -> None:
    """Drop the keys of a recipe whose values refer to one of the names, such as `outputs/teacher/seed${seed}`, in place."""
    reference = re.compile(rf"\$\{{({'|'.join(names)})[.}}]")
    for key, value in OmegaConf.to_container(config, resolve=False).items():  # type: ignore[union-attr]
        if isinstance(value, str) and reference.search(value):
            del config[key]  # `pop` would look the reference up
        elif isinstance(node := config._get_node(key), DictConfig):
            _drop_references(node, names)


def left_out_line(recipe: str, left_out: Iterable[_LeftOut]) -> str:
    """One line on the keys that were left out of a recipe, with the reasons; empty if there are none."""
    keys: dict[tuple[str, bool], list[str]] = {}
    for key, choice, is_set_there in left_out:
        keys.setdefault((choice, is_set_there), []).append(key)
    parts = []
    for (choice, is_set_there), some in keys.items():
        many = len(some) > 1
        why = f"sets {'them' if many else 'it'} itself" if is_set_there else f"has no such key{'s' * many}"
        parts.append(f"{', '.join(some)}, because {choice} {why}")
    return f"experiment={recipe}: left out {'; '.join(parts)}" if parts else ""


def has_key(node: Any, key: str) -> bool:
    """Whether a configuration has the dotted key, by its dataclasses; a mapping without a dataclass takes any key."""
    name, _, rest = key.partition(".")
    if not isinstance(node, DictConfig) or not is_dataclass(OmegaConf.get_type(node)):
        return True
    return name in node and (not rest or has_key(node._get_node(name), rest))


def _is_recipe(default: ResultDefault) -> bool:
    return (default.config_path or "").startswith(_RECIPES)


def _group_of(default: ResultDefault) -> str:
    return (default.config_path or "").rpartition("/")[0]


def _choices(defaults: Iterable[ResultDefault]) -> dict[str, str]:
    """The choice of each group in a defaults list. A file comes after those that it builds on."""
    names = ((one.config_path or "").rpartition("/") for one in defaults)
    return {group: name for group, _, name in names if group}
