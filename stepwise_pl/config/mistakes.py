"""A key or choice that does not exist: the line that says so, and what may have been meant."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.known import CONF, choice_file, choices, choices_with, kind_of, known_keys


def refuse_unknown(node: DictConfig, prefix: str) -> None:
    """Raise `UserError` for a key that the dataclass of its group does not have; `prefix` stands before the keys of the node."""
    schema = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(schema):
        return
    known = [field.name for field in dataclasses.fields(schema)]
    for key in map(str, node):
        if key not in known:
            raise UserError(unknown_key(f"{prefix}{key}", known, value=node._get_node(key)))
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            refuse_unknown(child, f"{prefix}{key}.")


# A line that lists more choices than these hides its hint, so it does without the list.
MANY_CHOICES = 20
# Keys of earlier versions, and how to write their value now; `{}` is the value.
REPLACED = {
    "trainer.max_steps": "trainer.duration={}steps",
    "trainer.max_epochs": "trainer.duration={}epochs",
    "optimizer.decay_steps": "optimizer.decay=<share of the run>",
}


def unknown_key(key: str, known: list[str], chosen: Mapping[str, str] = {}, value: object = None) -> str:
    """`key`, in full, is not among the `known` names of its group.

    Args:
        chosen: the choice of each group, if known.
        value: the value that the key was given, if known.
    """
    group, _, short = key.rpartition(".")
    for old, now in REPLACED.items():
        if key == old or (not group and short == old.rpartition(".")[2]):
            is_number = str(value).isdecimal()
            given = "" if value is None else f"={value}"
            others = [one for one in known_keys() if one.rpartition(".")[2] == short and not group]
            also = f", or {' or '.join(others)}" if others else ""
            return f"{key}{given}: write {now.format(value if is_number else '<number>')}{also}"
    if having := [f"{group}={name}" for name in choices_with(key)]:
        listed = ", ".join(having[:3]) + (f" and {len(having) - 3} more" if len(having) > 3 else "")
        this = f"{group}={chosen[group]}" if group in chosen else f"this {group}"
        return f"{key}: {this} has no such key; {listed} {'has' if len(having) == 1 else 'have'} it"
    names = [name for name in known if group or name != "hydra"]
    return f"{key}: no such key.{suggestion(key, names)} {group or 'The top level'} has: {', '.join(names)}"


def explain(error: Exception, chosen: Mapping[str, str] = {}) -> str:
    """One line for a complaint of Hydra or OmegaConf, with the key and what is allowed.

    Args:
        chosen: the choice of each group, if known.
    """
    found = (one for one in (error.__cause__, error, error.__context__) if isinstance(one, OmegaConfBaseException))
    cause = next(found, error)
    text = str(error)
    if match := re.match(r"In '([^']+)': \w+ raised while composing config", text):
        file = choice_file(*match[1].split("/", 1)) if "/" in match[1] else None
        is_ours = file is None or file.is_relative_to(CONF)
        return f"{f'conf/{match[1]}.yaml' if is_ours else file}: {_of_key(cause, chosen) or cause}"
    if match := re.search(
        r"Could not find '(.+)/([^'/]*)'\s+Available options in '[^']+':\s(.*?)Config search", text, re.S
    ):
        return no_choice(match[1], match[2], match[3].split())
    if match := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return f"{match[1]}: no such config group.{suggestion(match[1])}".removesuffix(".")
    return _of_key(cause, chosen, text) or text


def _of_key(cause: BaseException, chosen: Mapping[str, str], text: str = "") -> str | None:
    """The line on the key that OmegaConf complains about; None if it names none. `text`: Hydra's own words."""
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return None
    if "Could not override" in text or "not in" in str(cause):
        parent = cause.parent_node
        if isinstance(parent, DictConfig) and OmegaConf.get_type(parent) is dict:
            return f"{cause.full_key}: is not set yet; to add it write +{cause.full_key}=..."
        known = sorted(str(key) for key in parent) if isinstance(parent, DictConfig) else []
        # Hydra offers to add the key with its value.
        given = re.search(rf"use \+{re.escape(cause.full_key)}=(.*)", text)
        return unknown_key(cause.full_key, known, chosen, given and given[1])
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key}=???: three question marks stand for a value that is missing; give one"
    if "Value ''" in str(cause):
        return f"{cause.full_key} is empty: give a value, or leave {cause.full_key} out"
    return wrong_type(cause.full_key, cause)


def wrong_type(key: str, cause: OmegaConfBaseException) -> str:
    """One line for a value of another type than its key has."""
    complaint = str(cause).splitlines()[0]
    if match := re.fullmatch(r"Value '(.*)' of type '\w+' could not be converted to (Integer|Float)", complaint):
        value, kind = match.groups()
        return f"{key}={value}: must be a number" if kind == "Float" else not_whole(key, value)
    if match := re.fullmatch(r"Value '(.*)' is not a valid bool \(type \w+\)", complaint):
        return f"{key}={match[1]}: must be true or false"
    if complaint.endswith(" is not Optional"):
        return f"{key}=null: must have a value"
    if match := re.fullmatch(r"Cannot convert '\w+' to string: '(.*)'", complaint):
        return f"{key}={match[1]}: must be a text, not a list or a mapping"
    is_merge = complaint.startswith("Cannot merge")
    if (complaint.startswith("Cannot assign") and " to Dict[" in complaint) or (is_merge and cause.object_type is dict):
        return f"{key}: must be a mapping, such as {{name: 1}}"
    if complaint.startswith("Invalid value assigned") or (is_merge and cause.object_type is list):
        return f"{key}: must be a list, such as [a, b]"
    return f"{key}: {complaint}"


def not_whole(key: str, value: str) -> str:
    """One line for a value that is no whole number; it shows 3M, 3e6 or 3000000.0 written as one."""
    line = f"{key}={value}: must be a whole number"
    match = re.fullmatch(r"(\d+\.?\d*(?:e\+?\d{1,2})?) ?([kmb]?)", value, re.I)
    if match is None:
        return line
    number = Decimal(match[1]) * 1000 ** " kmb".index(match[2].lower() or " ")
    is_shown = number == number.to_integral_value() and number < 10**15
    return f"{line}; write {int(number)}" if is_shown else line


def suggestion(key: str, siblings: Sequence[str] = ()) -> str:
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
    found = found or difflib.get_close_matches(key, alike, n=1, cutoff=0.8)
    if not found:
        names = {other.rpartition(".")[2]: other for other in reversed(known)}
        found = [names[one] for one in difflib.get_close_matches(name, names, n=1, cutoff=0.75)]
    return f" Did you mean {' or '.join(found[:3])}?" if found else ""


def no_choice(group: str, name: str, options: list[str]) -> str:
    """One line for a choice that a group lacks. Of many choices it lists those that hold the name; else the hint would be lost among them."""
    allowed = sorted(option for option in options if not option.startswith("_"))
    close = difflib.get_close_matches(name, allowed, n=1)
    of_kind = [
        option for option in allowed if group in ("task", "schedule", "method") and kind_of(group, option) == name
    ]
    near, listed = close or of_kind, allowed
    is_long = len(allowed) > MANY_CHOICES
    if is_long and (within := [option for option in allowed if name and name in option]):
        near, listed = [], within
    elif is_long and near:
        listed = []
    line = f"{group}={name}: no such {group}"
    if listed:
        line += f"; choose from {', '.join(listed)}"
    if near:
        line += f". Did you mean {' or '.join(f'{group}={one}' for one in near[:3])}?"
    if len(listed) < len(allowed):
        line += f" (--help lists all {len(allowed)})"
    if group.startswith("hydra/"):
        line += f" ({name} may come with: pip install 'stepwise_pl[sweep]', or [slurm] or [ray])"
    return line
