"""One setting of the command line: read `key=value` as Hydra does, and write a value so that Hydra can read it.

Hydra's grammar refuses values such as `~/x.jsonl` or `a#1.jsonl`, though they can only mean a text. `readable` puts such
values into quotes. It never changes a value that Hydra accepts. If a value may mean several things, its error shows how
to write each of them.
"""

import functools
import os
import re
import shlex
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import literal

_QUOTED = re.compile(r"""'(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)'|"(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)\"""", re.DOTALL)
_PAIRS = {"[": "]", "{": "}", "(": ")"}
_BLANKS = " \t"  # Hydra drops blanks around a value without quotes
_HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


# --- reading


def parsed(override: str) -> Override | None:
    """The override as Hydra reads it; None if its grammar refuses it."""
    try:
        return OverridesParser(_functions()).parse_override(override)
    except (HydraException, RecursionError):
        return None


@functools.cache
def _functions() -> Any:
    return create_functions()


class Setting(NamedTuple):
    """A word of the command line, cut at its first equals sign. `prefix` stands before the key: `+`, `++`, `~` or nothing."""

    prefix: str
    key: str
    value: str

    @property
    def start(self) -> str:
        """The word without its value."""
        return f"{self.prefix}{self.key}="


def setting(word: str) -> Setting | None:
    """The parts of `key=value`; None for a word without an equals sign or without a key that Hydra's grammar knows."""
    match = re.fullmatch(r"(\+{0,2}|~)([^=+~][^=]*)=(.*)", word, re.DOTALL)
    if match is None or parsed(f"{match[1]}{match[2]}=0") is None:
        return None
    return Setting(*match.groups())


def readable(word: str, sweeps: bool) -> str:
    """The override, with quotes around the parts that Hydra refuses and that can only mean a text.

    Args:
        word: an override with a key (`setting`).
        sweeps: whether --multirun is given; commas then separate the values of several jobs.

    Raises:
        UserError: the value may mean several things, or a bracket or quote is not closed. The message shows how to
            write the value as a text.
    """
    found = parsed(word)
    given = setting(word)
    assert given is not None
    if found is not None:
        if not found.is_sweep_override() or sweeps:
            return word
        if found.value_type is ValueType.SIMPLE_CHOICE_SWEEP:
            raise _ambiguous(given)
        raise UserError(f"{word}: gives several values, which need --multirun (-m); {_as_text(given)}")
    try:
        value = _repaired(given.value, sweeps, given.key in _HYDRA_FOLDERS)
    except RecursionError:
        raise UserError(f"{given.start}...: has too many nested brackets") from None
    except ValueError as error:
        if str(error) == ",":
            raise _ambiguous(given) from None
        raise UserError(f"{given.start}{given.value}: {error}; {_as_text(given)}") from None
    if parsed(given.start + value) is None:
        raise UserError(f"{given.start}{given.value}: Hydra's grammar refuses this value; {_as_text(given)}")
    return given.start + value


def _ambiguous(given: Setting) -> UserError:
    listed = f"{given.start}[{given.value}]"
    return UserError(
        f"{given.start}{given.value}: a comma separates the values of a sweep, which needs --multirun (-m); "
        f"{_as_text(given)}{f', for a list {_shell(listed)}' if parsed(listed) else ''}"
    )


def _as_text(given: Setting) -> str:
    return f"for this text write {shown(given.start, given.value)}"


def _repaired(value: str, sweeps: bool, is_folder: bool = False) -> str:
    """The value, with quotes around the parts that Hydra refuses and that can only mean a text.

    Raises:
        ValueError: the value may mean something else.
    """
    value = value.strip(_BLANKS)
    if _is_element(value):
        return value
    parts = _split(value)
    if len(parts) > 1 and sweeps:
        return ",".join(_repaired(part, False) for part in parts)
    if len(parts) > 1:
        raise ValueError(",")
    opening, closed = value[0], value[-1] == _PAIRS.get(value[0])
    if opening in "'\"":
        if _QUOTED.match(value):
            raise ValueError("text goes on behind the closing quote")
        raise ValueError("the quote is not closed")
    if opening in "[{" and not closed:
        raise ValueError("the bracket is not closed")
    if opening == "[":
        return f"[{','.join(_repaired(part, False) for part in _split(value[1:-1]))}]"
    if opening == "{":
        pairs = [part.partition(":") for part in _split(value[1:-1])]
        return f"{{{','.join(f'{key}:{_repaired(item, False)}' for key, _, item in pairs)}}}"
    if call := re.fullmatch(r"(\w+)\s*\((.*)\)", value, re.DOTALL):
        if call[1] not in _functions().definitions:
            raise ValueError(f"there is no function {call[1]} (but {', '.join(sorted(_functions().definitions))})")
        return f"{call[1]}({','.join(_repaired(part, False) for part in _split(call[2]))})"
    if "," in value:
        raise ValueError(",")
    if "${" in value:
        raise ValueError("${...} gives the value of another key only if the text around it needs no quotes")
    return quoted(os.path.expanduser(value) if is_folder else value)  # noqa: PTH111


def _is_element(value: str) -> bool:
    found = parsed(f"key={value}")
    return found is not None and not found.is_sweep_override()


def _split(text: str) -> list[str]:
    """The parts between commas, without blanks around them. Commas inside quotes or closed brackets do not count."""
    commas, closing = [], _closing_brackets(text)
    place = 0
    while place < len(text):
        if (quote := _quote_at(text, place)) is not None:
            place = quote
        elif place in closing:
            place = closing[place]
        else:
            if text[place] == ",":
                commas.append(place)
            place += 1
    starts, ends = [0, *(comma + 1 for comma in commas)], [*commas, len(text)]
    return [text[start:end].strip(_BLANKS) for start, end in zip(starts, ends, strict=True)]


def _closing_brackets(text: str) -> dict[int, int]:
    """Map the place of each opening bracket to the place behind its closing bracket; leave out unclosed ones."""
    closing, open_places, place = {}, [], 0
    while place < len(text):
        if (quote := _quote_at(text, place)) is not None:
            place = quote
            continue
        if text[place] in _PAIRS:
            open_places.append(place)
        elif open_places and text[place] == _PAIRS[text[open_places[-1]]]:
            closing[open_places.pop()] = place + 1
        place += 1
    return closing


def _quote_at(text: str, place: int) -> int | None:
    """The place behind the quoted part that begins at `place`; None if there is none. A quote in mid-word is text."""
    if text[place] not in "'\"" or text[:place].rstrip(_BLANKS)[-1:] not in ("", *"[{(,:"):
        return None
    match = _QUOTED.match(text, place)
    return match.end() if match else None


# --- writing


def quoted(text: str, quote: str = "'") -> str:
    """A text in quotes, so that Hydra and OmegaConf read it literally, even `${`."""
    return _in_quotes(literal(text), quote)


def _in_quotes(text: str, quote: str = "'") -> str:
    """The text in quotes. A backslash stands for itself, except before a quote."""
    escaped = re.sub(rf"\\+(?={quote}|\Z)", lambda match: 2 * match[0], text).replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"


def shown(start: str, value: str) -> str:
    """`key='value'` for a literal text, as the user must type it into a shell."""
    single, double = start + quoted(value), start + quoted(value, '"')
    if not set(single) & set('"$`!\n') and not re.search(r"\\\\", single):
        return f'"{single}"'
    return f"'{double}'" if "'" not in double else shlex.quote(single)


def _shell(word: str) -> str:
    return word if re.fullmatch(r"[\w./=,:+-]*", word) else shlex.quote(word)
