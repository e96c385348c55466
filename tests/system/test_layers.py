"""The rooms of the house: imports only point down, never from wing to wing, and never in a circle."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import stepwise_pl

PACKAGE = Path(stepwise_pl.__file__).parent
# Each room may import the rooms before it. The commands, which are the files on top, may import all rooms.
WING_OF_TENSORS = (
    "common",
    "tasks schedules",
    "methods",
    "config",
    "data",
    "models",
    "evaluation",
    "inside training",
    "showing",
)
WING_OF_PAPER = ("common", "tasks schedules", "methods", "config", "runs", "reporting", "cli", "showing")
ROOMS = sorted({room for wing in (WING_OF_TENSORS, WING_OF_PAPER) for rooms in wing for room in rooms.split()})
NO_TORCH = ("common", "tasks", "schedules", "methods", "config", "runs", "reporting", "cli")
HEAVY = {"torch", "lightning", "transformers", "torchmetrics", "tokenizers", "wandb", "matplotlib", "gradio"}


class Import(NamedTuple):
    """An import statement: the module that it names, and whether it runs when its own module is loaded."""

    name: str
    at_the_top: bool


def imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    checked = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    # An import inside a function runs later. One inside `try` or `if` runs when the module is loaded.
    later = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        at_the_top = id(node) not in later and id(node) not in checked
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: an import without its package's name"
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_the_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # The import of a module from its folder does not need the names of the folder's __init__.
            modules = [name for name in names if (PACKAGE.parent / f"{name.replace('.', '/')}.py").is_file()]
            yield from (Import(name, at_the_top) for name in (modules if modules == names else [node.module, *names]))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): list(imports(path)) for path in PACKAGE.rglob("*.py")}


def room_of(name: str) -> str | None:
    """The room of a module, a folder of the package; None for a command and the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


# A method gets a learner, and uses torch inside its functions. Only imports that run when it is loaded count.
INSIDE = {
    name: {
        one.name
        for one in found
        if one.name in MODULES and one.name not in (name, "stepwise_pl")
        if one.at_the_top or room_of(name) != "methods"
    }
    for name, found in MODULES.items()
}


def is_below(room: str, other: str) -> bool:
    """Whether `other` stands before `room` in one of the two orders, or is `runs`, which training writes and reporting reads."""
    for wing in (WING_OF_TENSORS, WING_OF_PAPER):
        level = {name: number for number, rooms in enumerate(wing) for name in rooms.split()}
        if level.get(other, len(wing)) < level.get(room, -1):
            return True
    return other == "runs" and any(room in rooms.split() for rooms in WING_OF_TENSORS[4:])


def test_every_folder_is_a_room_with_a_description() -> None:
    folders = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py")))
    assert folders == ROOMS
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())), room


def test_imports_point_down() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in INSIDE.items()
        for other in others
        if (room := room_of(name)) is not None
        if (target := room_of(other)) != room and (target is None or not is_below(room, target))
    ]
    assert not wrong


def test_no_imports_form_a_circle() -> None:
    # Repeatedly remove the modules that import none of the others. Only circles stay.
    left = {name: set(others) for name, others in INSIDE.items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


def roots(name: str, top_only: bool = False) -> set[str]:
    return {one.name.split(".")[0] for one in MODULES[name] if one.at_the_top or not top_only}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_some_rooms_import_a_library(name: str) -> None:
    room = room_of(name)
    if room is None:
        assert not roots(name, top_only=True) & HEAVY
        return
    if room != "cli":
        assert "hydra" not in roots(name)
    if room not in ("cli", "config"):
        assert "omegaconf" not in roots(name)
    if room in NO_TORCH:
        assert not roots(name, top_only=True) & HEAVY
    if room != "training" and name != "stepwise_pl.data.module":
        assert "lightning" not in roots(name)


def test_help_loads_no_torch() -> None:
    script = (
        "import sys; sys.argv = ['train', '--help']\nfrom stepwise_pl import train\ntrain.main()\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert out.stdout.splitlines()[-1] == "[]", out.stderr
