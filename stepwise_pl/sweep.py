"""`python -m stepwise_pl.sweep <sweep folder>`: table and figures of a sweep, also while it goes on."""

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


if __name__ == "__main__":
    cli.entry_point("sweep", sweep)
