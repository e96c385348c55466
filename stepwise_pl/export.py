"""`python -m stepwise_pl.export run=<folder>`: a standard Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.settings import setting
from stepwise_pl.models.export import write_model
from stepwise_pl.runs.folder import require_run


@dataclass
class ExportConfig:
    """A standard Hugging Face folder from a run: `python -m stepwise_pl.export run=<folder>`."""

    # The run folder.
    run: str = setting("", path=True)
    # `best`, `last`, `good`, `removed-<k>` (`stage-<k>` if stages have names), or a file.
    checkpoint: str = setting("best", path=True)
    # The folder to write; null: `export` in the run folder.
    out: str | None = setting(None, path=True)
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        require_run(self.run, "export")


def export(config: ExportConfig) -> Path:
    """Export as configured; return the folder.

    Raises:
        UserError: the folder is not empty, or see `write_model`.
    """
    out = Path(config.out) if config.out else Path(config.run) / "export"
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: is not empty; choose another folder")
    write_model(Path(config.run), config.checkpoint, out)
    say(f"written to {out}; {out / 'README.md'} shows how to prompt it")
    return out


def main() -> None:
    """Run the command."""
    entry_point("export", ExportConfig, export)


if __name__ == "__main__":
    main()
