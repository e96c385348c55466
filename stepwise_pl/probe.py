"""`python -m stepwise_pl.probe run=<folder>`: what can be read off the hidden states of a trained run, and since when."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import write_json
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.common.text import duration
from stepwise_pl.runs.folder import kept_checkpoints, require_run
from stepwise_pl.runs.inside import FOLDER, Probe, write_rows
from stepwise_pl.runs.predictions import digest_of
from stepwise_pl.runs.saved_config import require_same_files

if TYPE_CHECKING:
    from stepwise_pl.models.trained_run import TrainedRun

log = logging.getLogger("stepwise_pl")

# In the place of a checkpoint: every one that the run kept of its stages.
ALL = "all"
PARTS = ("prompt", "thought", "cot", "answer")


@dataclass
class ProbeConfig:
    """Probes of the hidden states of trained runs: `python -m stepwise_pl.probe run=<folder>`."""

    # The run folder. Several are named without a key.
    run: str = setting("", path=True)
    # Run folders, or folders above them, such as that of a sweep; named without a key. Each run gets its own tables.
    runs: list[str] = setting(factory=list, path=True)
    # `all`: every checkpoint of `trainer.keep_every_removed`, or the best one if the run kept none; or `best`, `last`,
    # `removed-<k>` (`stage-<k>` if stages have names), or a file.
    checkpoint: str = setting(ALL, path=True)
    # Of the kept checkpoints only every so many, from the first on, and the last; at least 1.
    every: int = 1
    # What is looked for, by name (`cot 3`) or by the first word of names (`cot`, `answer`, `running_sum`); empty: everything.
    targets: list[str] = setting(factory=list)
    # Problems of the training split to fit probes on, at most; at least 20.
    problems: int = 4000
    # Problems of validation and test to score probes on, at most; at least 10.
    scored: int = 2000
    # `operands`: no operand of a problem to fit is in a problem to score, if the task names operands; `problems`: split by problem.
    split: str = "operands"
    # Places to read at, by name (`answer 1`) or by part (`prompt`, `thought`, `cot`, `answer`); empty: all.
    places: list[str] = setting(factory=list)
    # Places at the end of the prompts; at least 1.
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
    # The device of the model: `cpu`, `gpu`, or `auto`: a GPU if there is one.
    accelerator: str = "auto"
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        if self.run or not self.runs:
            require_run(self.run, "probe")
        for key, least in (("problems", 20), ("scored", 10), ("prompt_places", 1), ("batch_size", 1), ("every", 1)):
            require(getattr(self, key) >= least, key, getattr(self, key), f"must be at least {least}")
        one_of("split", self.split, ("operands", "problems"))
        one_of("mlp", self.mlp, ("chosen", "all", "none"))
        one_of("code", self.code, ("chosen", "none"))
        one_of("accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        require(0 < self.disk_gb < float("inf"), "disk_gb", self.disk_gb, "must be above 0")
        for name in self.places:
            part, _, number = name.partition(" ")
            is_place = part in PARTS and (not number or number.removeprefix("-").isdigit())
            require(
                is_place, "places", name, f"must be one of {', '.join(PARTS)}, or one with a number, such as 'cot 3'"
            )
        require(all(layer >= 0 for layer in self.layers), "layers", self.layers, "must be at least 0")


def probe(config: ProbeConfig) -> dict[str, list[Probe]]:
    """Probe runs; write the tables of each into its folder, and print the chosen probes.

    Returns:
        The rows of each run, by folder.

    Raises:
        UserError: there is nothing to probe in the run, or in none of several.
    """
    from stepwise_pl.reporting.history import find_runs
    from stepwise_pl.reporting.probe_text import probe_lines

    folders, notes = find_runs([*([config.run] if config.run else []), *config.runs])
    for note in notes:
        log.warning("%s", note)
    if not folders:
        raise UserError(f"nothing to probe: {'; '.join(notes)}. Give folders of runs, or folders above them")
    done: dict[str, list[Probe]] = {}
    for folder in folders:
        try:
            rows, lines = probe_run(folder, config)
        except UserError as error:
            if len(folders) == 1:
                raise
            log.warning("%s: %s; the other runs go on", folder, error)
            continue
        done[str(folder)] = rows
        say("\n".join([*([""] if len(done) > 1 else []), *lines[:1], "", *probe_lines(rows), "", *lines[1:]]))
    if not done:
        raise UserError("no run could be probed")
    return done


def probe_run(folder: Path, config: ProbeConfig) -> tuple[list[Probe], list[str]]:
    """Probe a run, and write its tables once all of it is there.

    Returns:
        The rows, and lines for reading: what was probed, and where the tables are.

    Raises:
        UserError: a checkpoint or the data cannot be read, or there is nothing to probe.
    """
    from stepwise_pl.inside.look import Look
    from stepwise_pl.inside.reader import temporary_folder

    began = time.monotonic()
    names = checkpoints_of(folder, config)
    look: Look | None = None
    rows: list[Probe] = []
    digests: dict[str, str | None] = {}
    with temporary_folder(folder / FOLDER) as states:
        for number, name in enumerate(names, start=1):
            run = load(folder, name, config)
            if look is None:
                require_same_files(folder, run.config.task)
                look = Look.of(run, config)
                log.info("%s: %s", folder, look.line(run, len(names)))
            digests[run.checkpoint.name] = digest_of(run.checkpoint)
            turn = f"{run.checkpoint.name}{f' ({number} of {len(names)})' if len(names) > 1 else ''}"
            rows += look.rows(run, states, partial(progress, turn))
            del run  # The next checkpoint is read into the memory that this one leaves.
    assert look is not None
    if not rows:
        raise UserError(f"places={config.places}: no checkpoint of {folder} has such a place")
    seconds = time.monotonic() - began
    table = write_rows(folder, rows, Probe)
    about = {"settings": asdict(config), "checkpoints": digests, **look.about(), "seconds": round(seconds, 1)}
    write_json(folder / FOLDER / "probe.json", about)
    return rows, [
        f"probes of {folder}: {look.problems.line(look.task)}",
        f"written to {table} ({len(rows):,} rows, {duration(seconds)})",
    ]


def checkpoints_of(folder: Path, config: ProbeConfig) -> list[str]:
    """Return the names of the checkpoints to probe: for `all` those that the run kept of its stages, or the best one if it kept none."""
    if config.checkpoint != ALL:
        return [config.checkpoint]
    kept = [path.stem for path in kept_checkpoints(folder / "checkpoints")]
    return list(dict.fromkeys([*kept[:: config.every], *kept[-1:]])) or ["best"]


def load(folder: Path, checkpoint: str, config: ProbeConfig) -> "TrainedRun":
    """Load a checkpoint onto the device that is asked for. Raise `UserError` if it cannot be read, or there is no GPU."""
    from stepwise_pl.models.trained_run import device_of, load_run

    device = device_of(config.accelerator)
    run = load_run(str(folder), checkpoint)
    run.to(device)
    return run


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
