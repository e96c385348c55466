"""`python -m stepwise_pl.probe run=<folder>`: what can be read off the hidden states of a trained run, and since when."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.run_folders import (
    LookConfig,
    checkpoints_of,
    each_that_loads,
    look_at_each,
    require_places,
    run_folders,
    warn_of_absent_places,
)
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import write_json
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.common.text import duration
from stepwise_pl.runs.inside import FOLDER, Probe, write_rows
from stepwise_pl.runs.predictions import digest_of
from stepwise_pl.runs.saved_config import require_same_files

log = logging.getLogger("stepwise_pl")


@dataclass
class ProbeConfig(LookConfig):
    """Probes of the hidden states of trained runs: `python -m stepwise_pl.probe run=<folder>`."""

    # The targets, by name (`cot 3`) or by the first word of names (`cot`, `answer`, `running_sum`); empty: everything.
    targets: list[str] = setting(factory=list)
    # Problems of the training split to fit probes on, at most; at least 20.
    problems: int = 4000
    # Problems of validation and test to score probes on, at most; at least 10.
    scored: int = 2000
    # `operands`: no operand of a problem to fit is in a problem to score, if the task names operands; `problems`: split by problem.
    split: str = "operands"
    # Places to read at, by name (`answer 1`, `prompt -3`) or by part (`prompt`, `thought`, `cot`, `answer`); empty: all.
    places: list[str] = setting(factory=list)
    # Places at the end of the prompts that are read without being named; at least 1.
    prompt_places: int = 1
    # Layers to read after: 0 is the sum of the embeddings; empty: all.
    layers: list[int] = setting(factory=list)
    # Probes with one hidden layer: `chosen`, where the linear probe is best on problems held back from the fit; `all`; or `none`.
    mlp: str = "chosen"
    # Online code lengths: `chosen`, of the linear probes that are best on problems held back; or `none`.
    code: str = "chosen"
    # Gigabytes of states on the disk at a time. If all do not fit, the model reads the problems several times.
    disk_gb: float = 4.0
    # Problems that the model reads at a time; at least 1.
    batch_size: int = 200

    def __post_init__(self) -> None:
        self.check("probe")
        for key, least in (("problems", 20), ("scored", 10), ("prompt_places", 1), ("batch_size", 1)):
            require(getattr(self, key) >= least, key, getattr(self, key), f"must be at least {least}")
        one_of("split", self.split, ("operands", "problems"))
        one_of("mlp", self.mlp, ("chosen", "all", "none"))
        one_of("code", self.code, ("chosen", "none"))
        require(0 < self.disk_gb <= 1e9, "disk_gb", self.disk_gb, "must be above 0, and at most a billion")
        require_places(self.places)
        require(all(layer >= 0 for layer in self.layers), "layers", self.layers, "must be at least 0")


def probe(config: ProbeConfig) -> dict[str, list[Probe]]:
    """Probe runs; write the tables of each into its folder, and print the chosen probes.

    Returns:
        The rows of each run, by folder.

    Raises:
        UserError: there is nothing to probe in the run, or in none of several.
    """
    from stepwise_pl.models.devices import device_of
    from stepwise_pl.reporting.probe_seeds import seed_lines
    from stepwise_pl.reporting.probe_text import probe_lines

    device_of(config.accelerator)  # before any run is read
    is_first = True

    def probed(folder: Path) -> list[Probe]:
        nonlocal is_first
        rows, lines = probe_run(folder, config)
        say("\n".join([*([] if is_first else [""]), *lines[:1], "", *probe_lines(rows), "", *lines[1:]]))
        is_first = False
        if config.wandb:
            from stepwise_pl.reporting.inside_files import pictures_of
            from stepwise_pl.training.wandb_inside import log_inside

            with pictures_of(folder, "probe") as pictures:
                log_inside(folder, "probe", pictures, config.offline)
        return rows

    found = look_at_each(run_folders(config), probed)
    if lines := seed_lines(found):
        say("\n".join(lines))
    return {str(folder): rows for folder, rows in found.items()}


def probe_run(folder: Path, config: ProbeConfig) -> tuple[list[Probe], list[str]]:
    """Probe a run, and write its tables once all of it is there.

    Returns:
        The rows, and lines for reading: what was probed, and where the tables are.

    Raises:
        UserError: a checkpoint or the data cannot be read, or there is nothing to probe.
    """
    from stepwise_pl.inside.look import Look
    from stepwise_pl.inside.scratch import temporary_folder
    from stepwise_pl.models.trained_run import load_onto

    began = time.monotonic()
    names = checkpoints_of(folder, config)
    look: Look | None = None
    rows: list[Probe] = []
    checkpoints: list[dict[str, Any]] = []
    with temporary_folder(folder / FOLDER) as states:
        runs = each_that_loads(folder, names, lambda name: load_onto(folder, name, config.accelerator))
        for number, run in enumerate(runs, start=1):
            if look is None:
                require_same_files(folder, run.config.task)
                look = Look.of(run, config)
                log.info("%s: %s", folder, look.line(run, len(names)))
            checkpoints.append({
                "checkpoint": run.checkpoint.stem, "digest": digest_of(run.checkpoint), "step": run.step
            })  # fmt: skip
            turn = f"{run.checkpoint.name}{f' ({number} of {len(names)})' if len(names) > 1 else ''}"
            rows += look.rows(run, states, partial(progress, turn))
            del run  # The next checkpoint is read into the memory that this one leaves.
    assert look is not None
    if not rows:
        raise UserError(f"places={config.places}: no checkpoint of {folder} has such a place")
    warn_of_absent_places(folder, config.places, [row.place for row in rows])
    seconds = time.monotonic() - began
    table = write_rows(folder, rows, Probe)
    about = {"settings": asdict(config), "checkpoints": checkpoints, **look.about(), "seconds": round(seconds, 1)}
    write_json(folder / FOLDER / "probe.json", about)
    return rows, [
        f"probes of {folder}: {look.problems.line(look.task)}",
        f"written to {table} ({len(rows):,} rows, {duration(seconds)})",
    ]


@contextlib.contextmanager
def progress(name: str, pieces: int) -> Iterator[Callable[[], Any]]:
    """Show a bar on a terminal, and a line in a log once all pieces are done."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    began = time.monotonic()
    with logging_redirect_tqdm(), tqdm(total=pieces, desc=name, file=sys.stderr, disable=None, leave=False) as bar:
        yield bar.update
    log.info("%s: %s", name, duration(time.monotonic() - began))


def main() -> None:
    """Run the command."""
    entry_point("probe", ProbeConfig, probe)


if __name__ == "__main__":
    main()
