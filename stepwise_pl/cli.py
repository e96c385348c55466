"""Hydra, in one place: from the command line to checked dataclasses, and errors in one line.

Only this module and `multirun`, for sweeps, import hydra and omegaconf.
"""

import contextlib
import dataclasses
import difflib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stepwise_pl import commands, registry
from stepwise_pl import config as schemas
from stepwise_pl.disk import disk_error, write_text
from stepwise_pl.errors import UserError, printable

T = TypeVar("T")

_PACKAGE = Path(__file__).parent
# In a wheel the YAML files lie inside the package; in a checkout, at the top of the repository.
CONF = next((path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir()), _PACKAGE / "conf")

TOP: dict[str, type] = {
    "_train": schemas.Config,
    "_evaluate": commands.EvaluateConfig,
    "_compare": commands.CompareConfig,
    "_report": commands.ReportConfig,
    "_export": commands.ExportConfig,
    "_write_data": commands.WriteDataConfig,
    "_check_data": commands.CheckDataConfig,
    "_dashboard": commands.DashboardConfig,
    "_sweep": commands.SweepConfig,
}
GROUPS: dict[str, type] = {
    "model": schemas.ModelConfig,
    "optimizer": schemas.OptimizerConfig,
    "trainer": schemas.TrainerConfig,
    "guard": schemas.GuardConfig,
    "logger": schemas.LoggerConfig,
}
# Overrides that change neither what is learned nor how: they do not name a run.
_UNNAMED = ("run_dir", "resume", "objective", "seed", "logger", "trainer", "experiment")
_GROUPS_OF_NAME = ("task", "model", "schedule")
_LONGEST_NAME = 200  # file systems allow 255 bytes


def register_schemas() -> None:
    """Make every dataclass known to Hydra: `_<group>`, or `_<kind>` for a task or schedule."""
    store = ConfigStore.instance()
    for name, schema in TOP.items():
        store.store(name, schema)
    for group, schema in GROUPS.items():
        store.store(f"_{group}", schema, group=group)
    for (group, kind), schema in registry.load_all().items():
        store.store(f"_{kind}", schema, group=group)


def entry_point(config_name: str, run: Callable[[Any], Any]) -> Any:
    """Compose `conf/<config_name>.yaml` with the command line, check it, and call `run` with the object.

    A `UserError` and whatever Hydra, the configuration or the disk complains about becomes
    one line on standard error and exit status 2; a defect keeps its traceback.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors to us instead of printing them
    sys.argv[1:] = flags_first(sys.argv[1:])
    register_schemas()
    sys.argv[1:] = positional(sys.argv[1:], TOP[f"_{config_name}"])

    def job(cfg: DictConfig) -> Any:
        # What is logged is for the person at the keyboard. Hydra has silenced it until here.
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        if config_name == "train" and in_sweep():
            from stepwise_pl import multirun

            return multirun.run_job(run, cfg)
        try:
            return run(to_object(cfg))
        except UserError as error:
            if HydraConfig.get().mode is RunMode.RUN:
                raise SystemExit(fail(str(error))) from None
            raise

    main = hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(job)
    shown = io.StringIO()
    try:
        if {"-h", "--help"} & set(sys.argv):
            with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
                main()
            return say(re.sub(r"\b_\w+, ", "", shown.getvalue()))  # schemas are no choices
        from stepwise_pl import multirun

        with multirun.closing():
            return main()
    except BrokenPipeError:  # `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        if (line := told(error)) is None:
            raise
        raise SystemExit(fail(line)) from None


def told(error: Exception) -> str | None:
    """An error that somebody at the keyboard can put right, in one line; None for a defect."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain(error)
    if isinstance(error, UserError):
        return str(error)
    if "Config group override must be" in str(error):  # Hydra's, a bare ValueError
        null = next((a.split("=")[0] for a in sys.argv[1:] if a.endswith("=null")), "a config group")
        return f"{null} is not set: choose one with {null}=<name>; --help lists them"
    if "Expecting one subcommand from" in str(error):  # the same, of --shell-completion
        return "--shell-completion: give install=<shell>, uninstall=<shell> or query=<shell> with it"
    return disk_error(error)


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The command line with its flags and their values in front: Hydra's parser takes no override behind them.

    Raises:
        SystemExit: of status 2, after one line, if there is no such flag or it has no such value.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise SystemExit(fail(f"{printable(message)}; settings are key=value, and --help lists them and the flags"))

    parser.error = refuse  # type: ignore[method-assign]  # it would print its usage as well
    overrides = list(parser.parse_intermixed_args(arguments).overrides)
    # From the end, because the value of a flag may read as an override does.
    flags, left = [], list(overrides)
    for argument in reversed(arguments):
        if left and argument == left[-1]:
            left.pop()
        else:
            flags.append(argument)
    return [*reversed(flags), *overrides]


def positional(arguments: Sequence[str], schema: type) -> list[str]:
    """The command line for Hydra: folders that are named without a key become `runs=[...]`, `run=` or `sweep=`.

    A folder's name may hold an equals sign, as those of sweeps do.
    """
    keys = {field.name for field in dataclasses.fields(schema)}
    key = next((name for name in ("runs", "run", "sweep") if name in keys), None)
    if key is None:
        return list(arguments)

    def is_folder(argument: str) -> bool:
        name, equals, _ = argument.partition("=")
        if argument.startswith(("+", "~")):
            return False
        if not equals:  # even if its name is that of a key, or begins with `hydra`
            return True
        return not name.startswith("hydra") and name not in keys and (Path(argument).is_dir() or keys == {key})

    # Without flags and their values.
    folders = [argument for argument in get_args_parser().parse_args(arguments).overrides if is_folder(argument)]
    if not folders:
        return list(arguments)
    given = [argument for argument in arguments if argument.startswith(f"{key}=")]
    if given or (key != "runs" and len(folders) > 1):
        raise SystemExit(
            fail(f"{' and '.join([*folders, *given])}: give {'all in one way' if key == 'runs' else 'one folder'}")
        )
    value = f"[{','.join(map(quoted, folders))}]" if key == "runs" else quoted(folders[0])
    return [f"{key}={value}", *(argument for argument in arguments if argument not in folders)]


def in_sweep() -> bool:
    """Whether this run is one of a `--multirun`."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def chosen() -> list[str]:
    """The names of experiment, task, model and schedule that Hydra was asked for."""
    choices = HydraConfig.get().runtime.choices
    return [str(name) for key in ("experiment", "task", "model", "schedule") if (name := choices.get(key))]


def say(text: str) -> None:
    """Print for the person at the keyboard."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fail(message: str) -> int:
    """Print one line for the person at the keyboard; return the exit status."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return 2


def to_object(cfg: DictConfig) -> Any:
    """A composed config as its dataclass, refusing keys that the dataclass does not have."""
    cfg = OmegaConf.create(cfg)  # a copy
    _refuse_unknown(cfg, "")
    try:
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    for group in ("task", "schedule"):
        part = getattr(config, group, None)
        if part is not None and registry.SCHEMAS.get((group, part.kind)) is not type(part):
            raise UserError(
                f"{group}.kind={part.kind}: cannot be set by itself; choose a whole {group} with {group}=<name>"
            )
    return config


def _refuse_unknown(node: DictConfig, prefix: str) -> None:
    schema = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(schema):
        return
    known = [field.name for field in dataclasses.fields(schema)]
    for key in map(str, node):
        if key not in known:
            raise UserError(unknown_key(f"{prefix}{key}", known))
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_unknown(child, f"{prefix}{key}.")


def unknown_key(key: str, known: list[str]) -> str:
    """`key`, in full, is not among the `known` names of its group."""
    group, _, name = key.rpartition(".")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {group + '.' if group else ''}{close[0]}?" if close else ""
    return f"{key}: no such key.{hint} {group or 'The top level'} has: {', '.join(known)}"


def explain(error: Exception) -> str:
    """What Hydra or OmegaConf complains about, in one line that names the key and what is allowed."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(error)
    if match := re.search(
        r"Could not find '([\w./-]+)/([\w.-]+)'\s+Available options in '[^']+':\s(.*?)Config search", text, re.S
    ):
        group, name, options = match.groups()
        allowed = sorted(option for option in options.split() if not option.startswith("_"))
        line = f"{group}={name}: no such {group}; choose from {', '.join(allowed)}"
        if group.startswith("hydra/"):
            line += f" ({name} may come with: pip install 'stepwise_pl[sweep]', or [slurm] or [ray])"
        return line
    if match := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return f"{match[1]}: no such config group"
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        if "Could not override" in text or "not in" in str(cause):
            parent = cause.parent_node
            if isinstance(parent, DictConfig) and OmegaConf.get_type(parent) is dict:
                return f"{cause.full_key}: is not set yet; to add it write +{cause.full_key}=..."
            known = sorted(str(key) for key in parent) if isinstance(parent, DictConfig) else []
            return unknown_key(cause.full_key, known)
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return text


def run_name() -> str:
    """Folder name of the run at hand from Hydra's choices and overrides, the same for the same command line.

    `<experiment>` or `<task>-<model>-<schedule>`, then the other overrides if there are any (`folder_name`).
    """
    hydra_cfg = HydraConfig.get()
    choices = hydra_cfg.runtime.choices
    experiment = choices.get("experiment")
    name = experiment or "-".join(str(choices[group]) for group in _GROUPS_OF_NAME)
    rest = [override for override in hydra_cfg.overrides.task if names_a_run(override, bool(experiment))]
    return "/".join([name, *([folder_name(rest)] if rest else [])])


def folder_name(overrides: list[str]) -> str:
    """`<key>-<value>+<key>-<value>`: Hydra takes such a name in `run=` as it is, with `=` or `,` it would not."""
    parts = [re.sub(r"[^\w.-]", "_", override.lstrip("+~").replace("=", "-", 1)) for override in overrides]
    return shortened("+".join(sorted(parts)), _LONGEST_NAME)


def shortened(name: str, longest: int) -> str:
    """The name, its end made a digest if it is longer."""
    return name if len(name) <= longest else f"{name[: longest - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


def names_a_run(override: str, has_experiment: bool) -> bool:
    """Whether an override is part of the name of a run, besides its experiment, or task, model and schedule."""
    key = override.split("=")[0].lstrip("+~")
    named = _UNNAMED if has_experiment else (*_UNNAMED, *_GROUPS_OF_NAME)
    return key not in named and not key.startswith(("logger.", "trainer."))


def given_keys() -> set[str]:
    """The keys and groups that this command line sets."""
    return keys_of(HydraConfig.get().overrides.task)


def keys_of(overrides: Iterable[str]) -> set[str]:
    """The keys and groups that are set."""
    return {override.split("=")[0].lstrip("+~") for override in overrides}


def quoted(text: str) -> str:
    """As Hydra reads it: in quotes, where a backslash stands for itself except before a quote."""
    return "'{}'".format(re.sub(r"\\+(?='|$)", lambda match: 2 * match[0], text).replace("'", "\\'"))


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as plain containers (numbers, strings, lists, dicts)."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def save_yaml(data: Mapping[str, Any], path: Path) -> None:
    """Write plain containers as YAML."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(dict(data))))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read plain containers from YAML. Raises `UserError` if the file is not a YAML mapping."""
    try:
        data = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: is not a YAML mapping")
    return {str(key): value for key, value in data.items()}


def config_from(plain: Mapping[str, Any], schema: type[T]) -> T:
    """The dataclass from plain containers, such as a run folder's config.yaml; `kind` selects task and schedule."""
    kinds = registry.load_all()
    cfg = OmegaConf.structured(schema)
    for key, value in plain.items():
        kind = (key, value.get("kind")) if isinstance(value, dict) else None
        if kind not in kinds and key not in cfg:
            raise UserError(unknown_key(key, [str(name) for name in cfg]))
        try:
            if kind in kinds:
                value = OmegaConf.merge(OmegaConf.structured(kinds[kind]), value)  # type: ignore[index]
            cfg[key] = OmegaConf.merge(cfg[key], value) if isinstance(value, dict) else value
        except OmegaConfBaseException as error:
            raise UserError(explain(error)) from None
    return to_object(cfg)  # type: ignore[no-any-return]
