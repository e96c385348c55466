"""`python -m stepwise_pl.sweep <sweep folder>`: table, figures, maps and laws of a sweep, also while it goes on."""

from dataclasses import dataclass
from pathlib import Path

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.errors import UserError, require
from stepwise_pl.common.settings import setting
from stepwise_pl.reporting.sweep_text import report
from stepwise_pl.runs.measures import require_measure


@dataclass
class SweepConfig:
    """Table, figures, maps and laws of a sweep, as far as it has come: `python -m stepwise_pl.sweep <sweep folder>`."""

    # The sweep folder.
    sweep: str = setting("", path=True)
    # The swept key of a map's columns. Draw a map over two swept keys, with a panel for each combination of the others.
    x: str | None = None
    # The swept key of the map's rows.
    y: str | None = None
    # The measure that the map shows and that laws are fitted to; null: `removed_share`. The measures
    # are listed above.
    value: str | None = None
    # Fit a power law, value = a · key^b, over this swept key, which has numbers; alone for each combination of the
    # others, and pooled with one b for all. Null: fit none.
    fit: str | None = None

    def __post_init__(self) -> None:
        if not self.sweep:
            raise UserError("sweep is not set: python -m stepwise_pl.sweep <sweep folder>")
        for key, named, other in (("x", self.x, "y"), ("y", self.y, "x")):
            if named and not getattr(self, other):
                raise UserError(f"{key}={named}: a map has two keys; give {other}=<swept key> as well")
        if self.x and self.y:
            require(self.x.lstrip("+") != self.y.lstrip("+"), "y", self.y, "is x as well; a map has two different keys")
        if self.value is not None:
            require_measure(self.value)
            if not (self.x or self.fit):
                raise UserError(
                    f"value={self.value}: is for a map or a law; give x=<swept key> y=<swept key>, or fit=<swept key>"
                )


def sweep(config: SweepConfig) -> None:
    """Bring sweep.json, sweep.csv and the figures up to date, and print the table; draw the map and fit the laws asked for.

    Raises:
        UserError: it is no sweep folder, a file in it is damaged, or a key was not swept.
    """
    from stepwise_pl.reporting.sweep import refresh
    from stepwise_pl.reporting.sweep_maps import Question, answer

    folder = Path(config.sweep)
    found, cells = refresh(folder, draw=True)
    text = report(found, cells)
    if config.x or config.fit:
        text += answer(folder, cells, Question(config.value or "removed_share", config.x, config.y, config.fit))
    say(text)


def main() -> None:
    """The command."""
    entry_point("sweep", SweepConfig, sweep)


if __name__ == "__main__":
    main()
