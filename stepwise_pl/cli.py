"""Hydra, in one place: from the command line to checked dataclasses, and errors in one line.

Only this module, `overrides` for the grammar and `multirun` for sweeps import hydra and omegaconf.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
import yaml  # type: ignore[import-untyped]
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from stepwise_pl import commands, registry, terminal
from stepwise_pl import config as schemas
from stepwise_pl.disk import disk_error, write_text
from stepwise_pl.errors import UserError, first_line
from stepwise_pl.expected import changed_keys
from stepwise_pl.overrides import (
    Setting,
    canonical,
    folder_name,
    literal,
    parsed,
    plain_name,
    quoted,
    readable,
    setting,
)

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
_GROUPS_OF_NAME = ("task", "model", "schedule")
# The command that this process runs, for suggestions.
_command = "train"


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
    global _command
    _command = config_name
    terminal.restore_docstrings()
    terminal.prepare()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors to us instead of printing them
    register_schemas()
    try:
        sys.argv[1:] = understood(sys.argv[1:])
    except UserError as error:
        raise SystemExit(fail(str(error))) from None

    def job(cfg: DictConfig) -> Any:
        # The log is for the person at the keyboard. Hydra has silenced it until here.
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        if config_name == "train" and in_sweep():
            from stepwise_pl import multirun

            return multirun.run_job(run, cfg)
        try:
            return run(to_object(cfg))
        except Exception as error:
            # Hydra would print a line of its own before an error that leaves here.
            if HydraConfig.get().mode is RunMode.RUN and (line := told(error)) is not None:
                raise SystemExit(fail(line)) from None
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
        return _no_name(str(error))
    return disk_error(error)


def _no_name(otherwise: str) -> str:
    """The error line for a group that is given something else than the name of a choice, such as null or a number."""
    for word in sys.argv[1:]:
        given, found = setting(word), parsed(word)
        if given is not None and given.key in choices() and found is not None and not isinstance(found.value(), str):
            if found.value() is None:
                return f"{given.key} is not set: choose one with {given.key}=<name>; --help lists them"
            return _no_choice(given.key, given.value, choices()[given.key])
    return otherwise


def understood(arguments: Sequence[str]) -> list[str]:
    """The command line for Hydra: every word is a flag or a setting that its grammar accepts.

    Flags and their values stand in front, because Hydra's parser takes no settings on both sides of a flag.

    Raises:
        UserError: a word is neither; the message says what may have been meant.
    """
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UserError(
                f"{argument}: is no text in this terminal's encoding; rename the file, or set LC_ALL=C.UTF-8"
            )
    given, words, flags = _flags_and_words(arguments)
    if flags.shell_completion:  # Its words are for Hydra alone.
        if not any(re.match("(install|uninstall|query)=", word) for word in words):
            raise UserError("--shell-completion: give install=<shell>, uninstall=<shell> or query=<shell> with it")
        return [*given, *words]
    sweeps = flags.multirun or any(re.fullmatch("hydra.mode=multirun", word, re.IGNORECASE) for word in words)
    return [*given, *(_fit(word, sweeps) for word in positional(words, TOP[f"_{_command}"]))]


def _flags_and_words(arguments: Sequence[str]) -> tuple[list[str], list[str], Any]:
    """Hydra's flags with their values as they were typed, the other words, and the flags as Hydra's parser reads them.

    Raises:
        UserError: there is no such flag, or it has no such value.
    """

    def refuse(message: str) -> NoReturn:
        if match := re.fullmatch(r"unrecognized arguments: (--?(\S+))(.*)", message, re.DOTALL):
            example = match[2] if "=" in match[2] else f"{match[2]}=<value>"
            raise UserError(
                f"{match[1]}: no such flag; a setting is written without hyphens: {example}; --help lists both"
            )
        raise UserError(f"{message}; --help explains")

    parser = get_args_parser()
    parser.allow_abbrev = False
    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(list(arguments))
    # From the end, because the value of a flag may read as a setting does.
    given, left = [], list(flags.overrides)
    for argument in reversed(arguments):
        if left and argument == left[-1]:
            left.pop()
        else:
            given.append(argument)
    return given[::-1], list(flags.overrides), flags


def _fit(word: str, sweeps: bool) -> str:
    """A word of the command line as Hydra can read it."""
    if (given := setting(word)) is not None:
        _refuse_place(given)
        word = readable(word, sweeps)
        if given.key in choices() and (found := parsed(word)) is not None and not found.is_sweep_override():
            value = found.value()
            if isinstance(value, list) and any(isinstance(name, int | float | None) for name in value):
                raise UserError(_no_choice(given.key, given.value, choices()[given.key]))
        return word
    if (found := parsed(word)) is not None and found.is_delete():
        return word
    name, equals, _ = word.partition("=")
    key = name.lstrip("+~").strip()
    if equals and not key:
        raise UserError(f"{word}: there is no key before the equals sign; a setting is written key=value")
    if equals:
        raise UserError(f"{name}: no such key.{_suggestion(key)} --help lists them")
    if key in (*known_keys(), *choices()):
        raise UserError(f"{word}: has no value; write {key}=<value>, without blanks around the equals sign")
    named = {choice: group for group in reversed(choices()) for choice in choices()[group]}
    close = difflib.get_close_matches(word, named, n=1)
    hint = f" Did you mean {named[close[0]]}={close[0]}?" if close else _suggestion(key)
    raise UserError(f"{word}: is no setting, which is written key=value.{hint or ' --help lists the keys.'}")


def _refuse_place(given: Setting) -> None:
    """Raise `UserError` if a choice is made of a group that this command lacks, or for a place of the user's own."""
    group, at, _ = given.key.partition("@")
    if at:
        raise UserError(f"{given.key}: a choice has one place only; write {group}=<name>, without @")
    if (CONF / group).is_dir() and group not in choices():
        has = f"its groups are {', '.join(choices())}" if choices() else "it has none"
        raise UserError(f"{group}: no such config group in {_command}, {has}")


def choices() -> dict[str, list[str]]:
    """The groups that this command has, and what may be chosen in each; experiments first."""
    groups = [field.name for field in dataclasses.fields(TOP[f"_{_command}"])]
    if _command == "train":
        groups.insert(0, "experiment")
    found = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in groups}
    return {group: names for group, names in found.items() if names}


def known_keys() -> list[str]:
    """Every dotted key of this command, of all tasks and schedules."""
    kinds = registry.load_all()

    def keys(schema: type, prefix: str) -> Iterable[str]:
        for field in dataclasses.fields(schema):
            yield f"{prefix}{field.name}"
            parts = [kind for (group, _), kind in kinds.items() if group == field.name and not prefix]
            made: list[Any] = [*parts] or [field.default_factory]
            for part in made:
                if isinstance(part, type) and dataclasses.is_dataclass(part):
                    yield from keys(part, f"{prefix}{field.name}.")

    return list(dict.fromkeys(keys(TOP[f"_{_command}"], "")))


def _suggestion(key: str, siblings: Sequence[str] = ()) -> str:
    """` Did you mean ...?` for a key that is not known; empty if nothing is like it.

    Args:
        siblings: the names that are known where the key stands.
    """
    group, _, name = key.rpartition(".")
    known = [*choices(), *known_keys()]
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, siblings, n=1)
    found = [".".join([*[group] * bool(group), close[0]])] if close and not elsewhere else elsewhere
    alike = [other for other in known if ("." in other) == ("." in key)]
    found = found or difflib.get_close_matches(key, alike, n=1, cutoff=0.75)
    if not found:
        names = {other.rpartition(".")[2]: other for other in reversed(known)}
        found = [names[one] for one in difflib.get_close_matches(name, names, n=1, cutoff=0.75)]
    return f" Did you mean {' or '.join(found[:3])}?" if found else ""


def positional(words: Sequence[str], schema: type) -> list[str]:
    """The words that are no flags: folders that are named without a key become `runs=[...]`, `run=` or `sweep=`.

    A folder's name may hold an equals sign, as those of sweeps do.

    Raises:
        UserError: folders are given with and without a key, or too many.
    """
    keys = {field.name for field in dataclasses.fields(schema)}
    key = next((name for name in ("runs", "run", "sweep") if name in keys), None)
    if key is None:
        return list(words)
    folders = [word for word in words if _is_folder(word, keys, key)]
    if not folders:
        return list(words)
    given = [word for word in words if word.startswith(f"{key}=")]
    if given or (key != "runs" and len(folders) > 1):
        how = "all in one way" if key == "runs" else "one folder"
        raise UserError(f"{' and '.join([*folders, *given])}: give {how}")
    value = f"[{','.join(map(quoted, folders))}]" if key == "runs" else quoted(folders[0])
    return [f"{key}={value}", *(word for word in words if word not in folders)]


def _is_folder(word: str, keys: set[str], key: str) -> bool:
    if "=" not in word and Path(word).is_dir():  # even if its name is that of a key, or begins with `hydra`
        return True
    if word.partition("=")[0].lstrip("+") in keys or re.match(r"\+{0,2}hydra[./][\w./]+=", word):
        return False
    if word.startswith("~") and "/" not in word:  # deletes a key
        return False
    return "=" not in word or Path(word).expanduser().is_dir() or keys == {key}


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
    # Blanks stay as they are: a message may show how a value is to be typed.
    sys.stderr.write(f"error: {' '.join(line.strip() for line in message.splitlines())}\n")
    sys.stderr.flush()
    return 2


def to_object(cfg: DictConfig) -> Any:
    """A composed config as its dataclass, with `~` in paths replaced by the home folder.

    Raises:
        UserError: the dataclass has no such key, or a value does not fit.
    """
    cfg = OmegaConf.create(cfg)  # a copy
    _refuse_unknown(cfg, "")
    _find_homes(cfg)
    return _as_object(cfg)


def _find_homes(cfg: DictConfig) -> None:
    """Replace `~` at the beginning of every path (`config.PATHS`), so that no folder of that name is ever made."""
    for key in schemas.PATHS:
        *parents, name = key.split(".")
        node: Any = cfg
        for parent in parents:
            node = node.get(parent) if isinstance(node, DictConfig) and parent in node else None
        if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_missing(node, name):
            continue
        path = node[name]
        if isinstance(path, ListConfig):
            node[name] = [_escaped(_at_home(key, one)) for one in path]
        elif path == "" and node._get_node(name)._is_optional() and key != "data.cache_dir":  # type: ignore[union-attr]
            raise UserError(f"{key} is empty: give a path, or leave {key} out")
        elif isinstance(path, str) and path.startswith("~"):
            node[name] = _escaped(_at_home(key, path))


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
    group = key.rpartition(".")[0]
    names = [name for name in known if group or name != "hydra"]
    return f"{key}: no such key.{_suggestion(key, names)} {group or 'The top level'} has: {', '.join(names)}"


def explain(error: Exception) -> str:
    """What Hydra or OmegaConf complains about, in one line that names the key and what is allowed."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(error)
    if match := re.search(
        r"Could not find '(.+)/([^'/]*)'\s+Available options in '[^']+':\s(.*?)Config search", text, re.S
    ):
        return _no_choice(match[1], match[2], match[3].split())
    if match := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return f"{match[1]}: no such config group.{_suggestion(match[1])}".removesuffix(".")
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        if "Could not override" in text or "not in" in str(cause):
            parent = cause.parent_node
            if isinstance(parent, DictConfig) and OmegaConf.get_type(parent) is dict:
                return f"{cause.full_key}: is not set yet; to add it write +{cause.full_key}=..."
            known = sorted(str(key) for key in parent) if isinstance(parent, DictConfig) else []
            return unknown_key(cause.full_key, known)
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key}=???: three question marks stand for a value that is missing; give one"
        if "Value ''" in str(cause):
            return f"{cause.full_key} is empty: give a value, or leave {cause.full_key} out"
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return text


def _no_choice(group: str, name: str, options: list[str]) -> str:
    allowed = sorted(option for option in options if not option.startswith("_"))
    close = difflib.get_close_matches(name, allowed, n=1)
    line = f"{group}={name}: no such {group}; choose from {', '.join(allowed)}"
    line += f". Did you mean {group}={close[0]}?" if close else ""
    if group.startswith("hydra/"):
        line += f" ({name} may come with: pip install 'stepwise_pl[sweep]', or [slurm] or [ray])"
    return line


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
        return not (key.startswith(schemas.ASIDE) or f"{key}.".startswith(schemas.ASIDE))
    # A choice of a group says how a run is run if all that its file sets does; its defaults are the group's own.
    set_here = read_yaml(file)
    keys = schemas.flat({key: {name: item for name, item in set_here.items() if name != "defaults"}})
    return set_here.get("defaults") != [f"_{key}"] or not all(one.startswith(schemas.ASIDE) for one in keys)


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
    """The dataclass from plain containers, such as a run folder's config.yaml; `kind` selects task and schedule."""
    kinds = registry.load_all()
    cfg = OmegaConf.structured(schema)
    for key, value in _escaped(dict(plain)).items():
        kind = (key, str(value.get("kind"))) if isinstance(value, dict) else None
        if kind not in kinds and key not in cfg:
            raise UserError(unknown_key(key, [str(name) for name in cfg]))
        try:
            if kind in kinds:
                value = OmegaConf.merge(OmegaConf.structured(kinds[kind]), value)  # type: ignore[index]
            if isinstance(value, dict) and not isinstance(cfg[key], DictConfig):
                raise UserError(f"{key}: is a mapping, where one value is meant")
            cfg[key] = OmegaConf.merge(cfg[key], value) if isinstance(value, dict) else value
        except OmegaConfBaseException as error:
            line = explain(error)
            is_whole = line.startswith((f"{key}.", f"{key}:"))  # else the key that it names begins within this group
            raise UserError(line if is_whole else f"in {key}: {line}") from None
    _refuse_unknown(cfg, "")
    return _as_object(cfg)  # type: ignore[no-any-return]


def _escaped(value: Any) -> Any:
    """Plain containers in which `${` is text to OmegaConf, as it is in values that were resolved before."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return literal(value) if isinstance(value, str) else value
