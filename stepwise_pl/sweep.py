"""`python -m stepwise_pl.sweep <sweep folder>`: table and figures of a sweep, also while it goes on."""

from dataclasses import dataclass
from pathlib import Path

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.settings import setting
from stepwise_pl.reporting.sweep_text import report


@dataclass
class SweepConfig:
    """Table and figures of a sweep, as far as it has come: `python -m stepwise_pl.sweep <sweep folder>`."""

    # The sweep folder.
    sweep: str = setting("", path=True)

    def __post_init__(self) -> None:
        if not self.sweep:
            raise UserError("sweep is not set: python -m stepwise_pl.sweep <sweep folder>")


def sweep(config: SweepConfig) -> None:
    """Bring sweep.json, sweep.csv and the figures up to date, and print the table.

    Raises:
        UserError: it is no sweep folder, or a file in it is damaged.
    """
    from stepwise_pl.reporting.sweep import refresh

    say(report(*refresh(Path(config.sweep), draw=True)))


def main() -> None:
    """The command."""
    entry_point("sweep", SweepConfig, sweep)


if __name__ == "__main__":
    main()
