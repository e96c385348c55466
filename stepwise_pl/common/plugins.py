"""Plugins: modules and files outside this package that register tasks, schedules and methods, or define callbacks.

A plugin is named by its module, `my_package.my_module`, or by its file, `./my_task.py`. A file is a module of the same
name whose folder stands at the end of Python's search path. A folder `conf` beside a plugin holds choices and recipes.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.common.registry import SCHEMAS

# An installed package names its plugins under this group of entry points. They are loaded at every start.
GROUP = "stepwise_pl.plugins"

# The names of the plugins that are loaded, as a run keeps them.
_loaded: set[str] = set()

# Folders of choices and recipes besides this package's own: those beside plugins, and those the command line names.
folders: list[Path] = []


def load(name: str, look_in: Iterable[Path] = (), called: str = "") -> str:
    """Import a plugin; return its name as a run keeps it: a module's name, or the absolute path of a file.

    Args:
        look_in: further folders in which a module may lie, besides the current folder and Python's search path.
        called: the plugin in messages; `plugins=<name>` by default.

    Raises:
        UserError: there is no such plugin, its import fails, or it brings nothing.
    """
    called = called or f"plugins={name}"
    path = Path(name).expanduser()
    if path.suffix == ".py" or os.sep in name:
        path = Path(os.path.abspath(path))  # noqa: PTH100  (a link keeps its own name)
        if not path.is_file() or path.suffix != ".py":
            why = "is not a Python file (.py)" if path.exists() else "no such file"
            raise UserError(f"{called}: {why}; name a file, ./my_task.py, or a module, my_package.my_module")
        module_name = _module_name(str(path))
        _look_in([path.parent.parent if path.stem == "__init__" else path.parent])
        _require_own_name(path, module_name, called)
        kept = str(path)
    else:
        _look_in([Path.cwd(), *look_in])
        kept = module_name = name
    if kept in _loaded:
        return kept
    before = set(SCHEMAS)
    module = _imported(module_name, called)
    folder = Path(module.__file__ or "").parent / "conf"
    if folder.is_dir() and folder not in folders:
        folders.append(folder)
    if not (folder.is_dir() or set(SCHEMAS) != before or any(map(_is_part, vars(module).values()))):
        raise UserError(
            f"{called}: {module.__file__} registers no task, schedule or method (with @register above @dataclass), defines "
            "no Lightning callback, and has no folder conf beside it"
        )
    _loaded.add(kept)
    return kept


def load_installed() -> None:
    """Load the plugins of the installed packages.

    Raises:
        UserError: the import of one fails.
    """
    for found in entry_points(group=GROUP):
        package = found.dist.name if found.dist else found.name
        load(found.value.partition(":")[0], called=f"plugin {found.name} of the installed package {package}")


def named(name: str, key: str) -> Any:
    """Return the object `<module>.<name>` that a key names.

    Raises:
        UserError: there is no such module or object.
    """
    module_name, dot, attribute = name.rpartition(".")
    if not dot:
        raise UserError(f"{key}={name}: is written <module>.<class>")
    _look_in([Path.cwd()])
    module = _imported(module_name, f"{key}={name}")
    if not hasattr(module, attribute):
        raise UserError(f"{key}={name}: {module.__file__} defines no {attribute}")
    return getattr(module, attribute)


def digests(names: Iterable[str]) -> dict[str, str]:
    """A digest of the Python files of each loaded plugin. It changes when the plugin is edited."""
    found = {}
    for name in names:
        module = sys.modules.get(_module_name(name))
        if module is None or not module.__file__:
            continue
        first = Path(module.__file__)
        files = sorted(first.parent.rglob("*.py")) if first.name == "__init__.py" else [first]
        found[name] = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    return found


def kinds() -> list[tuple[str, str]]:
    """Group and kind of each class that comes from outside of this package."""
    return [place for place, cls in SCHEMAS.items() if cls.__module__.partition(".")[0] != __name__.partition(".")[0]]


def _module_name(name: str) -> str:
    """The module of a plugin that is named by its module or its file. A package may be named by its first file."""
    path = Path(name)
    if path.suffix != ".py":
        return name
    return path.parent.name if path.stem == "__init__" else path.stem


def _look_in(places: Iterable[Path]) -> None:
    """Append folders to Python's search path, here and in the processes that this one starts."""
    for place in map(str, places):
        if place not in sys.path:
            sys.path.append(place)
            # Workers of a sweep read the classes of plugins before any line of this package runs.
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), place]))


def _require_own_name(path: Path, name: str, called: str) -> None:
    """Raise `UserError` if the module of this name is another than the file."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # such as `__main__`
        spec = None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():
        other = spec.origin if spec is not None and spec.origin else name
        raise UserError(f"{called}: has the name of another module ({other}); rename the file")


def _imported(name: str, called: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except UserError as error:
        raise UserError(f"{called}: {error}") from None
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{called}: no module {error.name} in the current folder or among the installed packages; a file is named "
                "with its path, ./my_task.py"
            ) from None
        reason = error.msg if isinstance(error, SyntaxError) else first_line(error)
        raise UserError(f"{called}: cannot be imported, {type(error).__name__}: {reason} ({place(error)})") from None


def place(error: BaseException) -> str:
    """File and line in which the code of a plugin failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename} line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    return f"{frames[-1].filename} line {frames[-1].lineno}"


def _is_part(value: Any) -> bool:
    """Whether a name of a plugin is a registered class, or a callback."""
    return isinstance(value, type) and (
        value in SCHEMAS.values() or any(base.__name__ == "Callback" for base in value.__mro__[1:])
    )
