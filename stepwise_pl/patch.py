"""`python -m stepwise_pl.patch run=<folder>`: is what the states of a trained model hold used?"""

import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

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
from stepwise_pl.common.errors import one_of, require
from stepwise_pl.common.text import counted, duration
from stepwise_pl.runs.folder import ALL
from stepwise_pl.runs.inside import FOLDER, Ablation, Patch, Swap, write_rows
from stepwise_pl.runs.predictions import digest_of
from stepwise_pl.runs.saved_config import require_same_files

if TYPE_CHECKING:
    from stepwise_pl.inside.cause import Texts

log = logging.getLogger("stepwise_pl")

BAR = "|{bar}| {desc}, {percentage:.0f}%, {elapsed}, left {remaining}"
# The shares of a checkpoint's time, about: of a short CoT the ablations take most, of a long one the patches.
PATCHES, ABLATIONS = 0.65, 0.35


@dataclass
class PatchConfig(LookConfig):
    """Patches, ablations and swaps in trained runs: `python -m stepwise_pl.patch run=<folder>`."""

    # The tokens that are scored: those of the `answer`, given the CoT that is left; or all that is `written`, CoT included.
    token: str = "answer"
    # Pairs of problems for each word of the prompt; at least 1.
    pairs: int = 32
    # The places to patch and to ablate: parts (`prompt`, `thought`, `cot`, `answer`) or tokens (`prompt -1`, `answer 0`); none: see
    # `most_places`.
    places: list[str] = field(default_factory=list)
    # If `places` names none: thoughts, places of the CoT and places of the answer, each at most so many, evenly spaced; at least 1.
    most_places: int = 24
    # The layers to patch and to ablate, by the number of their state: 0 is the sum of the embeddings; none: all but the last.
    layers: list[int] = field(default_factory=list)
    # Problems that an ablation is scored on, from the start of the test split; 0: no ablations.
    problems: int = 250
    # Training problems that the linear probes of the ablations are fitted on; at least 2.
    fit_problems: int = 2000
    # Ablate each target where its linear probe is best (`best`), or at every place and layer (`all`).
    ablate: str = "best"
    # The seed of pairs and random changes; at least 0.
    seed: int = 0
    # Problems read at a time; at least 1.
    batch_size: int = 256

    def __post_init__(self) -> None:
        self.check("patch")
        one_of("token", self.token, ("answer", "written"))
        one_of("ablate", self.ablate, ("best", ALL))
        for key, least in (
            ("pairs", 1),
            ("most_places", 1),
            ("problems", 0),
            ("fit_problems", 2),
            ("seed", 0),
            ("batch_size", 1),
        ):
            require(getattr(self, key) >= least, key, getattr(self, key), f"must be at least {least}")
        require_places(self.places)
        for layer in self.layers:
            require(layer >= 0, "layers", layer, "must be at least 0")


@dataclass
class Findings:
    """The tables of a run, and for patch.json facts about each checkpoint, and a digest of the problems."""

    patches: list[Patch] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    data_digest: str = ""


def patch(config: PatchConfig) -> list[Path]:
    """Look into the runs; write the tables into each run folder, and print them. Return the folders.

    If there are several runs, one that cannot be looked into is a warning.

    Raises:
        UserError: no run can be looked into.
    """
    from stepwise_pl.models.devices import device_of

    device_of(config.accelerator)  # before any run is read
    known: dict[str, Texts] = {}
    return list(look_at_each(run_folders(config), lambda folder: look_into(folder, config, known)))


def look_into(folder: Path, config: PatchConfig, known: dict[str, "Texts"]) -> Findings:
    """Look into a run; write and print its tables. Earlier tables stay as they are until all new ones are made.

    Args:
        known: the problems of the tasks that were read so far, to which those of this run are added.

    Raises:
        UserError: the run or a checkpoint cannot be read, or has no such layer.
    """
    from stepwise_pl.inside.scratch import temporary_folder
    from stepwise_pl.reporting.inside_text import ablation_lines, patch_lines, swap_lines

    started = time.monotonic()
    # A folder that cannot be written is found before the work, not after it.
    with temporary_folder(folder / FOLDER):
        found = findings(folder, config, known)
    places = [*(row.place for row in found.patches), *(row.place for row in found.ablations)]
    warn_of_absent_places(folder, config.places, places)
    for table, kind in ((found.patches, Patch), (found.ablations, Ablation), (found.swaps, Swap)):
        write_rows(folder, table, kind)
    settings = {key: value for key, value in asdict(config).items() if key not in ("run", "runs", "plugins")}
    seconds = round(time.monotonic() - started, 1)
    facts = {"settings": settings, "seconds": seconds, "data_digest": found.data_digest}
    write_json(folder / FOLDER / "patch.json", {**facts, "checkpoints": found.checkpoints})
    lines = [patch_lines(found.patches, found.checkpoints), ablation_lines(found.ablations), swap_lines(found.swaps)]
    tables = "\n\n".join("\n".join(part) for part in lines if part)
    say(f"{folder}\n\n{tables}\n\nwritten to      {folder / FOLDER}\n")
    if config.wandb:
        from stepwise_pl.reporting.inside_files import pictures_of
        from stepwise_pl.training.wandb_inside import log_inside

        with pictures_of(folder, "patch") as pictures:
            log_inside(folder, "patch", pictures, config.offline)
    return found


def findings(folder: Path, config: PatchConfig, known: dict[str, "Texts"]) -> Findings:
    """Look into the checkpoints of a run. If there are several, one that cannot be read is a warning.

    Args:
        known: see `look_into`.

    Raises:
        UserError: no checkpoint can be read, the data files have changed, or the model has no such layer.
    """
    from stepwise_pl.inside.cause import ablations_of, layers_of, patches_and_swaps, texts_of
    from stepwise_pl.models.trained_run import load_onto

    names, found = checkpoints_of(folder, config), Findings()
    with logging_redirect_tqdm(), tqdm(total=len(names), bar_format=BAR, disable=not sys.stderr.isatty()) as bar:

        def patched(share: float) -> None:
            bar.update(PATCHES * share)

        def ablated(share: float) -> None:
            bar.update(ABLATIONS * share)

        for run in each_that_loads(folder, names, lambda name: load_onto(folder, name, config.accelerator)):
            bar.set_description_str(f"{folder.name}, {run.checkpoint.stem}")
            if not found.checkpoints:  # Mistakes are told before the work.
                require_same_files(folder, run.config.task)
                layers_of(run, config.layers)
            key = f"{run.config.task!r} {run.config.task.fingerprint()}"
            texts = known[key] if key in known else known.setdefault(key, texts_of(run, config))
            if not found.checkpoints:
                log.info(
                    "%s: %s, %s of problems, %s for ablations", folder, counted(len(names), "checkpoint"),
                    counted(len(texts.pairs), "pair"), counted(len(texts.scored), "problem"),
                )  # fmt: skip
            began = time.monotonic()
            patches, swaps, facts = patches_and_swaps(run, texts, config, patched)
            found.patches += patches
            found.swaps += swaps
            found.ablations += ablations_of(run, texts, config, ablated)
            about = {"digest": digest_of(run.checkpoint), "step": run.step, "device": run.model.device.type}
            found.checkpoints.append({**facts, **about})
            found.data_digest = texts.digest
            log.info("%s: %s", run.checkpoint.stem, duration(time.monotonic() - began))
            del run  # The next checkpoint is read into the memory that this one leaves.
    return found


def main() -> None:
    """Run the command."""
    entry_point("patch", PatchConfig, patch)


if __name__ == "__main__":
    main()
