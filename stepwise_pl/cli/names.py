"""Names of runs, jobs and sweeps, made of the settings that tell them apart."""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from hydra.core.override_parser.types import Override, QuotedString, ValueType

from stepwise_pl.cli.overrides import _BLANKS, _in_quotes, _split, parsed
from stepwise_pl.runs.sweep_folder import Job, label

_LONGEST_NAME = 200  # bytes; file systems allow 255

_DIGEST = 10  # characters

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


def folder_name(overrides: Sequence[str], former: bool = False) -> str:
    """`<key>-<value>+<key>-<value>`: Hydra takes such a name in `run=` as it is, with `=` or `,` it would not.

    Args:
        former: as versions before names were one to one made it.
    """
    if former:
        parts = [re.sub(r"[^\w.-]", "_", override.lstrip("+~").replace("=", "-", 1)) for override in overrides]
        return shortened("+".join(sorted(parts)), _LONGEST_NAME, former)
    # Of two values for one key Hydra takes the last.
    parts = [_part(*one) for one in dict(map(canonical, overrides)).items()]
    return shortened("+".join(sorted(parts)), _LONGEST_NAME)


def _part(key: str, value: str | None) -> str:
    """One setting in a name. A key without a value was deleted."""
    text = key if value is None else f"{key}-{value}"
    # Bare, these are no text but yes and no (`canonical`); Hydra writes them with a capital letter in the jobs of a sweep.
    letters = f"{key}-{value.lower()}" if value in ("True", "False") else text
    # A hyphen in a key, or an end like that of a digest, could be read in two ways.
    is_simple = _SIMPLE.fullmatch(letters) and "-" not in key and not _LOOKS_DIGESTED.fullmatch(text)
    return text if is_simple else with_digest(text, f"{key}={value}" if value is not None else f"~{key}")


def plain_name(text: str) -> str:
    """The name of a choice, such as that of an experiment, as a folder's name."""
    is_simple = _SIMPLE.fullmatch(text) and not text.startswith(".") and not _LOOKS_DIGESTED.fullmatch(text)
    return text if is_simple else with_digest(text.lstrip("."), text)


def with_digest(readable_part: str, whole: str) -> str:
    """A name that holds for `whole` alone: its readable part in letters that every file system has, and a digest."""
    readable_part = re.sub(r"[^\w.-]", "_", readable_part, flags=re.ASCII)
    return f"{readable_part}-{sha256(whole.encode(errors='surrogatepass')).hexdigest()[:_DIGEST]}"


def shortened(name: str, longest: int, former: bool = False) -> str:
    """The name, its end made a digest if it is longer."""
    if len(name) <= longest:
        return name
    digest = sha256(name.encode()).hexdigest()[: 8 if former else _DIGEST]
    return f"{name[: longest - len(digest) - 1]}-{digest}"


def run_of(swept: dict[str, str], seed: int, former: bool = False) -> str:
    """The run folder of a job, relative to the sweep folder.

    Args:
        former: as versions before names were one to one made it.
    """
    cell = folder_name([f"{key}={value}" for key, value in swept.items() if key != "seed"], former)
    return f"{cell}/seed{seed}" if cell else f"seed{seed}"


def run_apart(job: Job) -> str:
    """Another run folder for a job whose own holds another job."""
    cell, _, seed = job.run.rpartition("/")
    return f"{with_digest(cell, label(job.swept))}/{seed}"
