"""Check the words of a command line: flags, settings, and folders named without a key."""

import dataclasses
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from stepwise_pl.cli.overrides import Setting, parsed, quoted, readable, setting
from stepwise_pl.cli.resumed_groups import with_saved_groups
from stepwise_pl.common.errors import UserError
from stepwise_pl.config import known
from stepwise_pl.config.known import CONF, choices, known_keys
from stepwise_pl.config.mistakes import no_choice, suggestion


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line for Hydra, in which every word is a flag or a setting that Hydra's grammar accepts.

    Flags and their values come first, because Hydra's parser fails if settings stand on both sides of a flag.

    Raises:
        UserError: a word is neither; the message suggests a word that the user may have meant.
    """
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UserError(
                f"{argument}: is no text in this terminal's encoding; rename the file, or set LC_ALL=C.UTF-8"
            )
    given, words, flags = _flags_and_words(arguments)
    if flags.hydra_help:  # Hydra shows it without the settings of this project, and would refuse them.
        return given
    if flags.shell_completion:  # Only Hydra reads the words after this flag.
        if not any(re.match("(install|uninstall|query)=", word) for word in words):
            raise UserError("--shell-completion: give install=<shell>, uninstall=<shell> or query=<shell> with it")
        return [*given, *words]
    sweeps = flags.multirun or any(re.fullmatch("hydra.mode=multirun", word, re.IGNORECASE) for word in words)
    fit = [_fit(word, sweeps) for word in positional(words, known.command.schema)]
    return [*given, *(fit if sweeps or known.command.name != "train" else with_saved_groups(fit))]


def _flags_and_words(arguments: Sequence[str]) -> tuple[list[str], list[str], Any]:
    """Return Hydra's flags and their values as typed, the other words, and the flags as Hydra's parser reads them.

    Raises:
        UserError: a flag or its value is unknown.
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
    if flags.experimental_rerun:
        raise UserError(
            "--experimental-rerun: needs a job that Hydra has pickled, and no command here writes one; "
            "to go on with a run write train run_dir=<run> resume=true"
        )
    modes = [f"--{name}" for name in ("run", "cfg", "info") if getattr(flags, name)]
    if flags.multirun and modes:
        raise UserError(f"{modes[0]}: is about one run; leave --multirun (-m) out")
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)}: each asks for something else; give one of them")
    if not (flags.cfg or flags.help):
        for name in ("resolve", "package"):
            if getattr(flags, name):
                raise UserError(f"--{name}: is for showing the configuration; add --cfg job")
    # Go from the end, because the value of a flag may look like a setting.
    given, left = [], list(flags.overrides)
    for argument in reversed(arguments):
        if left and argument == left[-1]:
            left.pop()
        else:
            given.append(argument)
    return given[::-1], list(flags.overrides), flags


def _fit(word: str, sweeps: bool) -> str:
    """A word of the command line, changed so that Hydra can read it.

    Raises:
        UserError: the word is no setting, or its key or choice is unknown.
    """
    if (given := setting(word)) is not None:
        _refuse_place(given)
        word = readable(word, sweeps)
        if given.key in choices() and (found := parsed(word)) is not None and not found.is_sweep_override():
            value = found.value()
            if isinstance(value, list) and any(isinstance(name, int | float | None) for name in value):
                raise UserError(no_choice(given.key, given.value, choices()[given.key]))
        return word
    if (found := parsed(word)) is not None and found.is_delete():
        return word
    name, equals, _ = word.partition("=")
    key = name.lstrip("+~").strip()
    if equals and not key:
        raise UserError(f"{word}: there is no key before the equals sign; a setting is written key=value")
    if equals:
        raise UserError(f"{name}: no such key.{suggestion(key)} --help lists them")
    if key in (*known_keys(), *choices()):
        raise UserError(f"{word}: has no value; write {key}=<value>, without blanks around the equals sign")
    named = {choice: group for group in reversed(choices()) for choice in choices()[group]}
    close = difflib.get_close_matches(word, named, n=1)
    hint = f" Did you mean {named[close[0]]}={close[0]}?" if close else suggestion(key)
    raise UserError(f"{word}: is no setting; a setting is written key=value.{hint or ' --help lists the keys.'}")


def _refuse_place(given: Setting) -> None:
    """Raise `UserError` if this command lacks the group, if all of Hydra is set at once, or if the choice names a place in the configuration (`@`)."""
    if given.key == "hydra":
        raise UserError(
            f"hydra={given.value}: Hydra's settings are set one by one, as hydra.verbose=true; leave it out"
        )
    group, at, _ = given.key.partition("@")
    if at:
        raise UserError(f"{given.key}: a choice has one place only; write {group}=<name>, without @")
    if (CONF / group).is_dir() and group not in choices():
        has = f"its groups are {', '.join(choices())}" if choices() else "it has none"
        raise UserError(f"{group}: no such config group in {known.command.name}, {has}")


def positional(words: Sequence[str], schema: type) -> list[str]:
    """Return the words with folders without a key turned into `runs=[...]`, `run=` or `sweep=`.

    In a command that has a question, all other words without a key are its words.

    A folder's name may contain an equals sign, as the folders of a sweep do.

    Args:
        words: the words that are no flags.
        schema: the dataclass of the command; its fields are the keys.

    Raises:
        UserError: folders are given both with and without a key, or too many folders are given.
    """
    keys = {field.name for field in dataclasses.fields(schema)}
    if "question" in keys:
        words = _with_question(words, keys)
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


def _with_question(words: Sequence[str], keys: set[str]) -> list[str]:
    """Return the words with those of a question turned into `question=`: all that are neither settings nor folders.

    Raises:
        UserError: the question is given with a key as well.
    """

    def is_setting(word: str) -> bool:
        key = word.partition("=")[0].lstrip("+~").strip()
        return "=" in word and (key in keys or bool(re.match(r"hydra[./]", key)))

    # A question may be longer than a path can be; os.path takes that for no folder.
    asked = [word for word in words if not (is_setting(word) or os.path.isdir(os.path.expanduser(word)))]  # noqa: PTH111, PTH112
    left = [word for word in words if word not in asked]
    if not asked:
        return left
    if given := [word for word in left if word.startswith("question=")]:
        raise UserError(f"{' '.join(asked)} and {given[0]}: give one question")
    return [*left, f"question={quoted(' '.join(asked))}"]


def _is_folder(word: str, keys: set[str], key: str) -> bool:
    if "=" not in word and Path(word).is_dir():  # even if the folder has the name of a key, or begins with `hydra`
        return True
    if word.partition("=")[0].lstrip("+") in keys or re.match(r"\+{0,2}hydra[./][\w./]+=", word):
        return False
    if word.startswith("~") and "/" not in word:  # deletes a key
        return False
    return "=" not in word or Path(word).expanduser().is_dir() or keys == {key}
