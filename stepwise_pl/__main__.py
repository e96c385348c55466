"""`python -m stepwise_pl`, and the console script `stepwise-pl`: the list of commands, and the way to each of them."""

import difflib
import os
import re
import sys

from stepwise_pl.cli.words import fail, say
from stepwise_pl.common import terminal
from stepwise_pl.config.known import CONF
from stepwise_pl.config.plain import read_yaml

# In the order in which a newcomer needs them.
COMMANDS = (
    "train", "ask", "evaluate", "compare", "probe", "patch", "lens", "report", "sweep", "export", "demo", "harness", "check_data", "write_data", "dashboard",
)  # fmt: skip


def summary(command: str) -> str:
    """The beginning of a command's header, up to its first full stop or colon."""
    header = " ".join(read_yaml(CONF / f"{command}.yaml")["hydra"]["help"]["header"].split())
    return re.split(r"[.:](?: |$)", header)[0]


def overview() -> str:
    """The commands, one line each."""
    lines = [f"  {name:12}{summary(name)}" for name in COMMANDS]
    return "\n".join([
        "Stepwise Internalization: train language models to reason without writing their reasoning down.", "",
        *lines, "",
        "Begin with:   python -m stepwise_pl.train experiment=quickstart",
        "Every key:    python -m stepwise_pl.<command> --help",
    ])  # fmt: skip


def main() -> None:
    """Run the command that the first word names, in this process's place; without a word, list the commands."""
    terminal.prepare()
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        return say(overview())
    name = words[0].replace("-", "_")
    if name not in COMMANDS:
        if "=" in words[0] or words[0].startswith("-"):
            raise SystemExit(fail(f"{words[0]}: name a command first, such as train; python -m stepwise_pl lists them"))
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(COMMANDS)}."
        raise SystemExit(fail(f"{words[0]}: no such command. {hint}"))
    # A process of its own: trainers and launchers start further processes by the command line that they see.
    os.execv(sys.executable, [sys.executable, "-m", f"stepwise_pl.{name}", *words[1:]])


if __name__ == "__main__":
    main()
