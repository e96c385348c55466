"""Names of runs, jobs and sweeps, made of the settings that tell them apart.

Names are one to one: two settings with different values never get the same name, also where a file system takes upper
and lower case for the same. A value of small letters, digits, `_`, `.` and `-` stands in the name as it is; any other
value gets a digest behind it. A key stands without its group if no other key ends alike: `delta-4` for schedule.delta=4.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, QuotedString, ValueType
from omegaconf import DictConfig

from stepwise_pl.cli.overrides import _BLANKS, _in_quotes, _split, parsed
from stepwise_pl.config.keys import flat, is_aside, may_change, settings_of
from stepwise_pl.config.known import choice_file
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.config.run import Config
from stepwise_pl.runs.sweep_folder import Job, label

_DIGEST = 10  # characters

_GROUPS_OF_NAME = ("task", "model", "schedule")

_SIMPLE = re.compile(r"[a-z0-9_.-]*(?<![.])")

_LOOKS_DIGESTED = re.compile(rf".*-[0-9a-f]{{{_DIGEST}}}")


def canonical(override: str) -> tuple[str, str | None]:
    """Key and value of an override, the same for every way to write the same value; no value for a deletion.

    `+key=a`, `++key='a'` and `key=a` are the same. A number stands as it was typed.
    """
    found = parsed(override)
    if found is None:
        name, _, text = override.partition("=")
        return name.lstrip("+~"), text
    key = found.get_key_element().lstrip("+~")
    if found.is_delete():
        return key, None
    typed = override.partition("=")[2].strip(_BLANKS)
    value: Any = found._value
    if found.value_type is ValueType.SIMPLE_CHOICE_SWEEP:
        return key, ",".join(_canonical_value(part, text) for part, text in zip(value.list, _split(typed), strict=True))
    return key, typed if found.is_sweep_override() else _canonical_value(value, typed)


def _canonical_value(value: Any, typed: str | None = None) -> str:
    """A parsed value as text. `typed`: as the user wrote it, for numbers."""
    if isinstance(value, list):
        return f"[{','.join(map(_canonical_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_canonical_value(key)}:{_canonical_value(item)}' for key, item in value.items())}}}"
    if isinstance(value, str | QuotedString):
        text = value.text if isinstance(value, QuotedString) else value
        bare = parsed(f"key={text}")
        is_same = bare is not None and not bare.is_sweep_override() and bare._value == text
        return text if is_same else _in_quotes(text)
    if value is None or typed is None:
        return str(Override._get_value_element_as_str(value))
    return typed


class Names:
    """The rules by which runs and sweeps are named. `cli.former_names` holds the names that earlier versions made."""

    # Characters of a digest in a name.
    digest = _DIGEST
    # Characters of a folder's name and of a sweep's, digest and hyphen included; file systems allow 255 bytes.
    longest = longest_sweep = 60 + 1 + _DIGEST

    def run_name(self) -> str:
        """Folder name of the run at hand from Hydra's choices and overrides, the same for the same command line.

        `<experiment>` or `<task>-<model>-<schedule>`, then the other overrides if there are any (`folder_name`).
        """
        hydra_cfg = HydraConfig.get()
        chosen = hydra_cfg.runtime.choices
        has_experiment = bool(chosen.get("experiment"))
        rest = [override for override in hydra_cfg.overrides.task if self.names_a_run(override, has_experiment)]
        return "/".join([self.base_name(chosen), *([self.folder_name(rest)] if rest else [])])

    def sweep_name(
        self, config: DictConfig, overrides: Sequence[Override], swept: Sequence[str], with_length: bool = True
    ) -> str:
        """`<what the runs have in common>+<what is swept>+<other overrides>`.

        Seeds are left out, so that more of them may be added with resume=true.

        Args:
            overrides: of the command line.
            swept: the keys that the sweeper gives values to.
            with_length: False leaves out how long the runs train.
        """
        choices = config.hydra.runtime.choices
        has_experiment = bool(choices.get("experiment")) and "experiment" not in swept
        given = {override.get_key_element().lstrip("+"): override.input_line or "" for override in overrides}
        given |= self.given_elsewhere(config)
        over = [line for key, line in given.items() if key in swept and key != "seed"]
        rest = [
            line
            for key, line in given.items()
            if key not in swept and self.names_a_run(line, has_experiment)
            if with_length or not (key.startswith("trainer.") and may_change(key))
        ]
        parts = [self.base_name(choices, swept), *(self.folder_name(some) for some in (over, rest) if some)]
        return self.shortened("+".join(parts), self.longest_sweep)

    def run_of(self, swept: Mapping[str, str], seed: int) -> str:
        """The run folder of a job, relative to the sweep folder."""
        cell = self.folder_name([f"{key}={value}" for key, value in swept.items() if key != "seed"])
        return f"{cell}/seed{seed}" if cell else f"seed{seed}"

    def base_name(self, chosen: Mapping[str, Any], swept: Sequence[str] = ()) -> str:
        """`<experiment>`, or `<task>-<model>-<schedule>`, without what is swept."""
        experiment = chosen.get("experiment") if "experiment" not in swept else None
        names = [experiment] if experiment else [chosen[group] for group in _GROUPS_OF_NAME if group not in swept]
        return "-".join(self.choice(str(name)) for name in names)

    def folder_name(self, overrides: Sequence[str]) -> str:
        """`<key>-<value>+<key>-<value>`: Hydra takes such a name in `run=` as it is, with `=` or `,` it would not."""
        return self.shortened("+".join(sorted(self.parts(overrides))), self.longest)

    def shortened(self, name: str, longest: int) -> str:
        """The name, its end made a digest if it is longer."""
        if len(name) <= longest:
            return name
        digest = sha256(name.encode()).hexdigest()[: self.digest]
        return f"{name[: longest - len(digest) - 1]}-{digest}"

    def parts(self, overrides: Sequence[str]) -> list[str]:
        """Each setting in a name. Of two values for one key Hydra takes the last."""
        return [_part(self.key(key), value, key) for key, value in dict(map(canonical, overrides)).items()]

    def key(self, key: str) -> str:
        """A key in a name: its last part, unless another key of the command has the same."""
        last = key.rpartition(".")[2]
        return last if _keys_by_last_part().get(last) == [key] else key

    def choice(self, name: str) -> str:
        """The name of an experiment, a task, a model or a schedule, in a name."""
        return plain_name(name)

    def names_a_run(self, override: str, has_experiment: bool) -> bool:
        """Whether an override is part of the name of a run, besides its experiment, or task, model and schedule.

        Every override that may change what is learned is part of the name; `config.keys.aside` lists the others.
        """
        return not is_of_base_name(override, has_experiment) and changes_learning(override)

    def given_elsewhere(self, config: DictConfig) -> dict[str, str]:
        """The overrides of a sweep that its sweeper's settings give, not the command line, by key."""
        return {key: f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()}


# The names that this version makes.
NOW = Names()


def is_of_base_name(override: str, has_experiment: bool) -> bool:
    """Whether an override chooses the experiment, or else the task, model or schedule."""
    key = keys_of([override]).pop()
    return key == "experiment" or (key in _GROUPS_OF_NAME and not has_experiment)


@functools.cache
def _keys_by_last_part() -> dict[str, list[str]]:
    """The keys of this package by their last part. Those of plugins have no part in it, so that no plugin changes a name."""
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for key, _ in settings_of(Config, own=True)):
        found.setdefault(key.rpartition(".")[2], []).append(key)
    return found


def _part(key: str, value: str | None, whole_key: str) -> str:
    """One setting in a name, under a key that may be shortened. A key without a value was deleted."""
    text = key if value is None else f"{key}-{value}"
    # Without quotes, `True` and `False` are booleans. Hydra writes them with a capital letter in the jobs of a sweep.
    letters = f"{key}-{value.lower()}" if value in ("True", "False") else text
    # A hyphen in a key, or an end like that of a digest, could be read in two ways.
    is_simple = _SIMPLE.fullmatch(letters) and "-" not in key and not _LOOKS_DIGESTED.fullmatch(text)
    return text if is_simple else with_digest(text, f"{whole_key}={value}" if value is not None else f"~{whole_key}")


def plain_name(text: str) -> str:
    """The name of a choice, such as that of an experiment, as a folder's name."""
    is_simple = _SIMPLE.fullmatch(text) and not text.startswith(".") and not _LOOKS_DIGESTED.fullmatch(text)
    return text if is_simple else with_digest(text.lstrip("."), text)


def with_digest(readable_part: str, whole: str) -> str:
    """A name that holds for `whole` alone: its readable part in letters that every file system has, and a digest."""
    readable_part = re.sub(r"[^\w.-]", "_", readable_part, flags=re.ASCII)
    return f"{readable_part}-{sha256(whole.encode(errors='surrogatepass')).hexdigest()[:_DIGEST]}"


def run_apart(job: Job) -> str:
    """Another run folder for a job whose own holds another job."""
    cell, _, seed = job.run.rpartition("/")
    return f"{with_digest(cell, label(job.swept))}/{seed}"


def changes_learning(override: str) -> bool:
    """Whether an override sets, or takes away, anything that is not in `config.keys.aside`."""
    key, value = canonical(override)
    file = choice_file(key, value) if value is not None else None
    if file is None:
        return not (is_aside(key) or is_aside(f"{key}."))
    # A choice such as `trainer=gpu` does not change learning if its file sets only keys of `aside`, on its group's schema.
    set_here = read_yaml(file)
    keys = flat({key: {name: item for name, item in set_here.items() if name != "defaults"}})
    return set_here.get("defaults") != [f"_{key}"] or not all(map(is_aside, keys))


def keys_of(overrides: Iterable[str]) -> set[str]:
    """The keys and groups that are set."""
    return {override.split("=")[0].lstrip("+~") for override in overrides}
