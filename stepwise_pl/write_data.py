"""`python -m stepwise_pl.write_data task=<task> out=<folder>`: a task's splits as text files."""

from pathlib import Path

from stepwise_pl import cli
from stepwise_pl.commands import WriteDataConfig
from stepwise_pl.errors import UserError
from stepwise_pl.tasks.base import SPLITS, write_lines


def write_data(config: WriteDataConfig) -> None:
    """Write train.txt, validation.txt and test.txt, one `prompt||cot #### answer` a line.

    Raises:
        UserError: the folder holds such a file already.
    """
    out = Path(config.out)
    paths = {split: out / f"{split}.txt" for split in SPLITS}
    for path in paths.values():
        if path.exists():
            raise UserError(f"{path}: exists already; choose another folder for out")
    splits = config.task.load()
    out.mkdir(parents=True, exist_ok=True)
    for note in splits.notes:
        cli.say(f"note: {note}")
    for split, examples in splits.items():
        write_lines(examples, paths[split])
        cli.say(f"{len(examples):8d} examples  {paths[split]}")


if __name__ == "__main__":
    cli.entry_point("write_data", write_data)
