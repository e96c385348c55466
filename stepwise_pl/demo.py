"""`python -m stepwise_pl.demo run=<folder>`: a page on which one asks a trained model, and sees each token come."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.config.training import ACCELERATORS
from stepwise_pl.runs.folder import is_export, require_run

# The settings that name a baseline; each is also the schedule of its run.
BASELINES = ("explicit_cot", "no_cot")


@dataclass
class DemoConfig:
    """A page on which one asks a trained model: `python -m stepwise_pl.demo run=<folder>`."""

    # The run folder, or a folder that `export` has written.
    run: str = setting("", path=True)
    # A run of the same task that was trained with schedule=explicit_cot, shown beside it; null: stage 0 of the run, if it kept one.
    explicit_cot: str | None = setting(None, path=True)
    # A run of the same task that was trained with schedule=no_cot, shown beside it; null: none.
    no_cot: str | None = setting(None, path=True)
    # Problems to click, as people write them; empty: the first ones of the test split.
    examples: list[str] = field(default_factory=list)
    # The address at which the page is served; 0.0.0.0 lets other machines in.
    host: str = "127.0.0.1"
    # The port; null: the first from 7860 on that is free.
    port: int | None = None
    # Open the page in the browser of this machine.
    open: bool = False
    # The device of the models: `cpu` or `gpu`.
    accelerator: str = "cpu"
    # Write the page as a folder for Hugging Face Spaces, with all that it needs, and serve nothing; null: serve.
    space: str | None = setting(None, path=True)
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        one_of("accelerator", self.accelerator, ACCELERATORS)
        require(self.port is None or 1 <= self.port < 2**16, "port", self.port, "must be from 1 to 65535, or null")
        require(bool(self.host), "host", self.host, "must be an address, such as 127.0.0.1")
        if not (self.run and is_export(Path(self.run))):
            require_run(self.run, "demo")


def demo(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C, or write it as a folder.

    Raises:
        UserError: gradio is not installed, a run cannot be read, or a baseline is a run of another task.
    """
    if config.space is not None:
        from stepwise_pl.showing.space import write_space

        say(write_space(Path(config.space), Path(config.run), baselines_of(config), config.examples))
        return
    require_gradio()
    from stepwise_pl.showing.page import serve
    from stepwise_pl.showing.panel import Panel

    panel = Panel.of(Path(config.run), baselines_of(config), config.examples, config.accelerator)
    serve(panel, config.host, config.port, is_opened=config.open)


def baselines_of(config: DemoConfig) -> dict[str, Path]:
    """The runs beside the first one, by the name of their schedule. Raise `UserError` if one is no run."""
    found = {key: Path(folder) for key in BASELINES if (folder := getattr(config, key)) is not None}
    for key, folder in found.items():
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{key}={folder}: no config.yaml there; give the folder of a training run")
    return found


def require_gradio() -> None:
    """Raise `UserError` if gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the page needs gradio, which is not installed; pip install "stepwise_pl[demo]"')


def main() -> None:
    """Run the command."""
    entry_point("demo", DemoConfig, demo)


if __name__ == "__main__":
    main()
