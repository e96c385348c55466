"""`python -m stepwise_pl.lens run=<folder>`: logit lens, attention, geometry of digits and similarity of a run's kept checkpoints."""

import logging
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.run_folders import LookConfig, checkpoints_of, each_that_loads, look_at_each, run_folders
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import write_json
from stepwise_pl.common.errors import UserError, require
from stepwise_pl.common.settings import setting
from stepwise_pl.common.text import counted, duration
from stepwise_pl.runs.inside import FOLDER, Attention, Fourier, Lens, Similarity, write_grids, write_rows
from stepwise_pl.runs.saved_config import require_same_files

if TYPE_CHECKING:
    import torch

    from stepwise_pl.inside.overview import Tables
    from stepwise_pl.models.trained_run import TrainedRun
    from stepwise_pl.tasks import Example

log = logging.getLogger("stepwise_pl")

LEAST_PROBLEMS = 4  # for an unbiased CKA


@dataclass
class LensConfig(LookConfig):
    """A look inside trained runs: `python -m stepwise_pl.lens run=<folder>`, or several run and sweep folders."""

    # Problems of the test split, from its start; at least 4.
    problems: int = 500
    # The first of them, whose lens is written word by word to lens.jsonl; 0: none.
    shown: int = 12
    # Places at the end of the prompts; at least 1. null: as many as the shortest prompt has.
    prompt_places: int | None = 16
    # Thoughts, places of the CoT and places of the answer, each at most so many, evenly spaced; at least 1.
    places: int = 24
    # Tokens of CoT and answer that the lens looks for, at most so many, evenly spaced; at least 1.
    tokens: int = 32
    # Rows of attention.csv, at most; with more layers, heads and checkpoints it holds fewer places.
    attention_rows: int = 200_000
    # Folders of other runs of the same task; their last checkpoint is compared with each checkpoint of the run.
    beside: list[str] = setting(factory=list, path=True)
    # Problems read at a time; at least 1.
    batch_size: int = 100

    def __post_init__(self) -> None:
        self.check("lens")
        require(self.problems >= LEAST_PROBLEMS, "problems", self.problems, f"must be at least {LEAST_PROBLEMS}")
        require(self.shown >= 0, "shown", self.shown, "must be at least 0")
        require(self.prompt_places is None or self.prompt_places >= 1, "prompt_places", self.prompt_places,
                "must be at least 1")  # fmt: skip
        for key in ("places", "tokens", "batch_size", "attention_rows"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "must be at least 1")


def lens(config: LensConfig) -> list[dict[str, Any]]:
    """Look at the runs as configured; write the tables into their folders, and print the main results.

    Returns:
        What is written to lens.json, for each run.

    Raises:
        UserError: no run can be looked at. If some of several cannot, that is a warning.
    """
    from stepwise_pl.models.devices import device_of

    device = device_of(config.accelerator)
    return list(look_at_each(run_folders(config), lambda folder: look_at(folder, config, device)).values())


def look_at(folder: Path, config: LensConfig, device: "torch.device") -> dict[str, Any]:
    """Look at the checkpoints of a run; write and print what is found, and return what is written to lens.json.

    All tables are put in place at the end, so that a command that is stopped leaves earlier ones as they were.

    Raises:
        UserError: a checkpoint or the problems cannot be read.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from stepwise_pl.evaluation.problems import digest
    from stepwise_pl.inside.overview import PHASES, Overview
    from stepwise_pl.inside.scratch import temporary_folder
    from stepwise_pl.models.trained_run import load_run
    from stepwise_pl.reporting.lens_text import lens_lines
    from stepwise_pl.tasks import ExampleList

    began = time.monotonic()
    names = checkpoints_of(folder, config)
    runs = each_that_loads(folder, names, partial(load_run, str(folder)))
    first = next(runs)
    texts = held_out(first, config.problems)
    with (
        temporary_folder(folder / FOLDER) as scratch,
        logging_redirect_tqdm(),
        tqdm(total=PHASES * len(names), file=sys.stderr, disable=None, leave=False) as bar,
    ):

        def tick(doing: str) -> None:
            bar.set_description_str(f"{folder.name}, {doing}")
            bar.update()

        overview = Overview(config, texts, scratch, device, len(names), tick)
        beside = [overview.add_beside(other, first) for other in config.beside]
        log.info(
            "%s: %s, %s of the test split", folder, counted(len(names), "checkpoint"), counted(len(texts), "problem")
        )
        runs = chain([first], runs)
        del first
        for run in runs:
            started = time.monotonic()
            overview.look(run)
            log.info("%s: %s", run.checkpoint.stem, duration(time.monotonic() - started))
            del run  # The next checkpoint is read into the memory that this one leaves.
        tables = overview.tables
        facts = {
            "settings": {key: value for key, value in asdict(config).items() if key not in ("run", "runs")},
            "device": device.type,
            "problems": len(texts),
            "data_digest": digest(ExampleList(texts)),
            "checkpoints": tables.checkpoints,
            "copies": tables.copies,
            "beside": beside,
            "notes": tables.notes,
            "seconds": round(time.monotonic() - began, 1),
        }
        written = [path.replace(folder / FOLDER / path.name) for path in write_tables(scratch, tables, facts)]
    head = f"{folder}: {counted(len(tables.checkpoints), 'checkpoint')}, {len(texts)} test problems ({device.type}, {facts['seconds']:.0f} s)"
    lines = lens_lines(tables.lens, tables.fourier, tables.similarity, facts)
    say("\n".join([head, "", *lines, "", f"written to {folder / FOLDER}: {', '.join(path.name for path in written)}"]))
    if config.wandb:
        from stepwise_pl.reporting.inside_files import pictures_of
        from stepwise_pl.training.wandb_inside import log_inside

        with pictures_of(folder, "lens") as pictures:
            log_inside(folder, "lens", pictures, config.offline)
    return facts


def write_tables(folder: Path, tables: "Tables", facts: dict[str, Any]) -> list[Path]:
    """Write all tables as into the folder of a run; return the files."""
    files = [
        write_rows(folder, tables.lens, Lens), write_grids(folder, tables.grids), write_rows(folder, tables.attention, Attention),
        write_rows(folder, tables.fourier, Fourier), write_rows(folder, tables.similarity, Similarity),
    ]  # fmt: skip
    write_json(folder / FOLDER / "lens.json", facts)
    return [*files, folder / FOLDER / "lens.json"]


def held_out(run: "TrainedRun", count: int) -> "list[Example]":
    """Return the first problems of the test split, as many as asked for, or all.

    Raises:
        UserError: the task cannot be read, has changed since, or has too few.
    """
    require_same_files(run.path, run.config.task)
    test = run.config.task.splits((str(run.tokenizer.eos_token),))["test"]
    if len(test) < LEAST_PROBLEMS:
        raise UserError(
            f"run={run.path}: the test split has {len(test)} problems; at least {LEAST_PROBLEMS} are needed"
        )
    return test.slice(0, min(count, len(test)))


def main() -> None:
    """The command."""
    entry_point("lens", LensConfig, lens)


if __name__ == "__main__":
    main()
