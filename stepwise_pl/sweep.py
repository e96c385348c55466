"""`python -m stepwise_pl.sweep <sweep folder>`: table and figures of a sweep, also while it goes on."""

import sys
from collections.abc import Sequence
from pathlib import Path

from stepwise_pl import cli, multirun
from stepwise_pl.commands import SweepConfig


def sweep(config: SweepConfig) -> None:
    """Bring sweep.json, sweep.csv and the figures up to date, and print the table.

    Raises:
        UserError: it is no sweep folder, or a file in it is damaged.
    """
    from stepwise_pl.sweep_results import refresh

    cli.say(multirun.report(*refresh(Path(config.sweep), draw=True)))


def overrides(arguments: Sequence[str]) -> list[str]:
    """The command line for Hydra: the folder that is named becomes `sweep=`, whatever characters it has."""
    folders = [one for one in arguments if not one.startswith(("-", "hydra", "sweep="))]
    return [f"sweep={cli.quoted(one)}" if [one] == folders else one for one in arguments]


if __name__ == "__main__":
    sys.argv[1:] = overrides(sys.argv[1:])
    cli.entry_point("sweep", sweep)
