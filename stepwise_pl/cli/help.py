"""The text of `--help`: a command's header and examples, its choices, and every key with its value and its meaning.

The meaning of a key is the comment above its field, in the source of the dataclass; it says unit and range. Groups show
the keys of the choice at hand, so that `schedule=adaptive --help` shows those of the adaptive schedule.
"""

import ast
import dataclasses
import functools
import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import hydra._internal.hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from stepwise_pl.cli.overrides import parsed
from stepwise_pl.config.known import choices

_COLUMN = 30  # of the meanings
_NARROW = 70  # a terminal of fewer columns gets the meanings below the keys
_WIDEST = 120


class Key(NamedTuple):
    """A key as the help shows it: dotted name, value as it is typed, and meaning."""

    name: str
    value: str
    meaning: str


def show_own_help() -> None:
    """Let Hydra's `--help` show this text. Hydra fills a string.Template, which takes a `$` in a text for its own."""
    hydra._internal.hydra.Hydra.app_help = _app_help  # type: ignore[method-assign]


def _app_help(self: Any, config_name: str | None, args_parser: Any, args: Any) -> None:
    # A sweep has many values for a key; the help shows the default.
    words = [word for word in args.overrides if (found := parsed(word)) is None or not found.is_sweep_override()]
    cfg = self.compose_config(config_name, words, run_mode=RunMode.RUN, with_log_configuration=True)
    help_cfg = cfg.hydra.help
    with open_dict(cfg):
        cfg.pop("hydra")
    sys.stdout.write(help_text(help_cfg, cfg, shutil.get_terminal_size().columns))


def help_text(help_cfg: DictConfig, cfg: DictConfig, columns: int) -> str:
    """The help of a command.

    Args:
        help_cfg: `hydra.help` of its YAML file: `header` is text, `template` holds the examples.
        cfg: the configuration as it is composed; it decides the choices whose keys are shown.
        columns: width of the terminal.
    """
    width = min(columns, _WIDEST) if columns > 20 else _WIDEST
    parts = [textwrap.fill(" ".join(str(help_cfg.header).split()), width), str(help_cfg.template).rstrip()]
    if choices():
        listed = (_columns(f"  {group}", ", ".join(names), width, 14) for group, names in choices().items())
        parts.append("\n".join(["Choices (for one of them and its keys: <group>=<choice> --help):", *listed]))
    parts.append("Every key (set it with key=value):")
    for title, keys in sections(cfg):
        lines = [_columns(f"  {key.name}={key.value}", key.meaning, width, _COLUMN) for key in keys]
        parts.append("\n".join([*([textwrap.fill(title, width)] if title else []), *lines]))
    return "\n\n".join(parts)


def sections(cfg: DictConfig) -> Iterator[tuple[str, list[Key]]]:
    """The groups of a configuration with their keys, and first the keys without a group."""
    if alone := list(keys_of(cfg)):
        yield "", alone
    for name in map(str, cfg):
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and dataclasses.is_dataclass(schema := OmegaConf.get_type(node)):
            summary = (inspect.getdoc(schema) or "").split("\n\n")[0]
            yield f"{name}: {' '.join(summary.split())}", list(keys_of(node, f"{name}."))


def keys_of(node: DictConfig, prefix: str = "") -> Iterator[Key]:
    """Every key below a node, but `kind`, which a choice sets."""
    schema = OmegaConf.get_type(node)
    assert isinstance(schema, type)
    meaning = meanings(schema)  # type: ignore[arg-type]
    for field in dataclasses.fields(schema):
        child = node._get_node(field.name)
        if isinstance(child, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(child)):
            if prefix:
                yield from keys_of(child, f"{prefix}{field.name}.")
        elif field.name != "kind":
            plain = OmegaConf.to_container(node, resolve=False, structured_config_mode=None)  # type: ignore[arg-type]
            yield Key(f"{prefix}{field.name}", _typed(plain[field.name]), meaning.get(field.name, ""))  # type: ignore[index,call-overload]


@functools.cache
def meanings(schema: type) -> dict[str, str]:
    """The comment above each field of a dataclass, in one line; a field of a parent class has its own line there."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        source = textwrap.dedent(inspect.getsource(cls))
        lines = source.splitlines()
        (body,) = ast.parse(source).body
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno - 1
                begin = first
                while lines[begin - 1].strip().startswith("#"):
                    begin -= 1
                if comment := " ".join(line.strip().lstrip("#").strip() for line in lines[begin:first]):
                    found[node.target.id] = comment
    return found


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_typed(item)}' for key, item in value.items())}}}"
    return repr(value).removesuffix(".0") if isinstance(value, float) else json.dumps(value)


def _columns(left: str, right: str, width: int, column: int) -> str:
    """The right text beside the left one, or below it if the left one is long or the terminal narrow."""
    if width < _NARROW:
        column = 6
    lines = textwrap.wrap(right, width - column, break_on_hyphens=False) or [""]
    if len(left) < column - 1:
        lines[0] = left.ljust(column) + lines[0]
    else:
        lines = [left, " " * column + lines[0], *lines[1:]]
    skip = 1 if len(left) < column - 1 else 2
    return "\n".join([*lines[:skip], *(" " * column + line for line in lines[skip:])]).rstrip()
