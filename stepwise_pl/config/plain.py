"""Configurations as dataclasses, as plain containers, and as YAML; errors that name the key."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from stepwise_pl.common import registry
from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.mistakes import explain, refuse_unknown, unknown_key

T = TypeVar("T")


def to_object(cfg: DictConfig) -> Any:
    """A composed config as its dataclass, with `~` in paths replaced by the home folder.

    Raises:
        UserError: the dataclass has no such key, or a value does not fit.
    """
    cfg = OmegaConf.create(cfg)  # a copy
    refuse_unknown(cfg, "")
    _find_homes(cfg)
    return _as_object(cfg)


def _find_homes(node: DictConfig, prefix: str = "") -> None:
    """Replace `~` at the beginning of every path, so that no folder of that name is ever made.

    A path is a setting whose field says so (`common.settings`). `prefix` stands before the keys of the node.
    """
    schema = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(schema) or node._is_none():
        return
    for field in dataclasses.fields(schema):
        key, child = f"{prefix}{field.name}", node._get_node(field.name)
        if isinstance(child, DictConfig):
            _find_homes(child, f"{key}.")
        if not field.metadata.get("path") or OmegaConf.is_missing(node, field.name):
            continue
        path = node[field.name]
        if isinstance(path, ListConfig):
            node[field.name] = [_escaped(_at_home(key, one)) for one in path]
        elif path == "" and child._is_optional() and key != "data.cache_dir":  # type: ignore[union-attr]
            raise UserError(f"{key} is empty: give a path, or leave {key} out")
        elif isinstance(path, str) and path.startswith("~"):
            node[field.name] = _escaped(_at_home(key, path))


def _at_home(key: str, path: Any) -> Any:
    if not isinstance(path, str) or not path.startswith("~"):
        return path
    found = os.path.expanduser(path)  # noqa: PTH111  (it raises nothing, and leaves `./` as it is)
    if found.startswith("~") and key != "data.cache_dir":  # the cache has its own words for that
        raise UserError(f"{key}={path}: {path.split('/')[0]} is the home of nobody here; give the path from / on")
    return found


def _as_object(cfg: DictConfig) -> Any:
    try:
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    for group in ("task", "schedule", "method"):
        part = getattr(config, group, None)
        if part is not None and registry.SCHEMAS.get((group, part.kind)) is not type(part):
            raise UserError(
                f"{group}.kind={part.kind}: cannot be set by itself; choose a whole {group} with {group}=<name>"
            )
    return config


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as plain containers (numbers, strings, lists, dicts)."""
    return dataclasses.asdict(config)


def save_yaml(data: Mapping[str, Any], path: Path) -> None:
    """Write plain containers as YAML."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(_escaped(dict(data))), resolve=True))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read plain containers from YAML; `${` in a text has no meaning.

    Raises:
        UserError: the file cannot be read, or is not a YAML mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), get_yaml_loader())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:
        raise UserError(f"{path}: cannot be read as YAML ({first_line(error)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: is {'empty' if data is None else 'not a YAML mapping'}")
    try:
        json.dumps(data, default=str, skipkeys=True)
    except (ValueError, RecursionError):
        raise UserError(f"{path}: a part of it refers to itself") from None
    return {str(key): value for key, value in data.items()}


def config_from(plain: Mapping[str, Any], schema: type[T]) -> T:
    """The dataclass from plain containers, such as a run folder's config.yaml; `kind` selects task, schedule and method."""
    kinds = registry.load_all()
    cfg = OmegaConf.structured(schema)
    for key, value in _escaped(dict(plain)).items():
        kind = (key, str(value.get("kind"))) if isinstance(value, dict) else None
        if kind not in kinds and key not in cfg:
            raise UserError(unknown_key(key, [str(name) for name in cfg]))
        known = sorted(name for group, name in kinds if group == key)
        if known and kind is not None and kind not in kinds and isinstance(value.get("kind"), str):
            raise UserError(f"{key}.kind={kind[1]}: no {key} is registered as this; there are {', '.join(known)}")
        try:
            if kind in kinds:
                value = OmegaConf.merge(OmegaConf.structured(kinds[kind]), value)  # type: ignore[index]
            if isinstance(value, dict) and not isinstance(cfg[key], DictConfig):
                raise UserError(f"{key}: is a mapping, where one value is meant")
            cfg[key] = OmegaConf.merge(cfg[key], value) if isinstance(value, dict) else value
        except OmegaConfBaseException as error:
            line = explain(error)
            # Else the key that the line names begins within this group.
            is_whole = line.startswith((f"{key}.", f"{key}:", f"{key}="))
            raise UserError(line if is_whole else f"in {key}: {line}") from None
    refuse_unknown(cfg, "")
    return _as_object(cfg)  # type: ignore[no-any-return]


def _escaped(value: Any) -> Any:
    """Plain containers in which `${` is text to OmegaConf, as it is in values that were resolved before."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return literal(value) if isinstance(value, str) else value


def literal(text: str) -> str:
    """The text as OmegaConf must be given it for `${` to have no meaning."""
    return re.sub(r"(\\*)\$\{", lambda match: f"{2 * match[1]}\\${{", text)
