"""`python -m stepwise_pl.write_data task=<task> out=<folder>`: a task's splits as text files."""

from dataclasses import dataclass, field
from pathlib import Path

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.settings import setting
from stepwise_pl.config.run import require_chosen
from stepwise_pl.tasks import Task
from stepwise_pl.tasks.base import SPLITS, write_lines


@dataclass
class WriteDataConfig:
    """Write a task's splits as text files: `python -m stepwise_pl.write_data task=mult4x4 out=data`."""

    task: Task = field(default_factory=Task)
    # The folder to write train.txt, validation.txt and test.txt into; needed.
    out: str = setting("", path=True)
    # Modules and files of one's own (docs/extending.md); one of them may register the task.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        require_chosen(task=self.task)
        if not self.out:
            raise UserError("out is not set: python -m stepwise_pl.write_data task=<task> out=<folder>")


def write_data(config: WriteDataConfig) -> None:
    """Write train.txt, validation.txt and test.txt, one `prompt||cot #### answer` a line.

    Raises:
        UserError: one of the files exists already.
    """
    out = Path(config.out)
    paths = {split: out / f"{split}.txt" for split in SPLITS}
    for path in paths.values():
        if path.exists():
            raise UserError(f"{path}: exists already; choose another folder for out")
    splits = config.task.load()
    out.mkdir(parents=True, exist_ok=True)
    for note in splits.notes:
        say(f"note: {note}")
    for split, examples in splits.items():
        write_lines(examples, paths[split])
        say(f"{len(examples):8d} examples  {paths[split]}")


def main() -> None:
    """Run the command."""
    entry_point("write_data", WriteDataConfig, write_data)


if __name__ == "__main__":
    main()
