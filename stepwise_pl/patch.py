"""`python -m stepwise_pl.patch run=<folder>`: is what the states of a trained model hold used?"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from stepwise_pl.cli.entry import entry_point
from stepwise_pl.cli.words import say
from stepwise_pl.common.disk import write_json
from stepwise_pl.common.errors import UserError, one_of, require
from stepwise_pl.common.settings import setting
from stepwise_pl.runs.folder import kept_checkpoints, require_run
from stepwise_pl.runs.inside import FOLDER, Ablation, Patch, Swap, write_rows
from stepwise_pl.runs.predictions import digest_of
from stepwise_pl.runs.saved_config import require_same_files

if TYPE_CHECKING:
    from stepwise_pl.inside.pairs import Pairs
    from stepwise_pl.inside.places import Place
    from stepwise_pl.models.trained_run import TrainedRun
    from stepwise_pl.tasks import Example

log = logging.getLogger("stepwise_pl")

# In the place of a checkpoint: every one that the run kept.
ALL = "all"
PARTS = ("prompt", "thought", "cot", "answer")
BAR = "|{bar}| {desc}, {percentage:.0f}%, {elapsed}, left {remaining}"
# The shares of a checkpoint's time, about.
PATCHES, ABLATIONS = 0.65, 0.35


@dataclass
class PatchConfig:
    """Patches, ablations and swaps in trained runs: `python -m stepwise_pl.patch run=<folder>`."""

    # The run folder.
    run: str = setting("", path=True)
    # Several run folders, or folders above them, such as that of a sweep. Words without a key are such folders.
    runs: list[str] = setting(factory=list, path=True)
    # `all`: every checkpoint of `trainer.keep_every_removed`, or `best` if the run kept none; or `best`, `last`, `removed-<k>`, a file.
    checkpoint: str = setting(ALL, path=True)
    # The tokens that are scored: those of the `answer`, given the CoT that is left; or all that is `written`, CoT included.
    token: str = "answer"
    # Pairs of problems for each word of the prompt; at least 1.
    pairs: int = 32
    # The places to patch and to ablate: parts (`prompt`, `thought`, `cot`, `answer`) or tokens (`prompt -1`, `answer 0`); none: all.
    places: list[str] = field(default_factory=list)
    # The layers to patch and to ablate, by the number of their state: 0 is the sum of the embeddings; none: all but the last.
    layers: list[int] = field(default_factory=list)
    # Problems that an ablation is scored on, from the start of the test split; 0: no ablations.
    problems: int = 250
    # Training problems that the linear probes of the ablations are fitted on; at least 2.
    fit_problems: int = 2000
    # Ablate each target where its linear probe is best (`best`), or at every place and layer (`all`).
    ablate: str = "best"
    # The seed of pairs and random subspaces; at least 0.
    seed: int = 0
    # Problems read at a time; at least 1.
    batch_size: int = 256
    # The device: `cpu`, `gpu`, or `auto`, the GPU if there is one.
    accelerator: str = "auto"
    # Modules and files of one's own (docs/extending.md); those of the run are loaded anyway, if they are still in place.
    plugins: list[str] = setting(factory=list, path=True)

    def __post_init__(self) -> None:
        if not self.runs:
            require_run(self.run, "patch")
        elif self.run:
            raise UserError(f"run={self.run} and {', '.join(self.runs)}: give all folders in one way")
        one_of("accelerator", self.accelerator, ("auto", "cpu", "gpu"))
        one_of("token", self.token, ("answer", "written"))
        one_of("ablate", self.ablate, ("best", ALL))
        for key, least in (("pairs", 1), ("problems", 0), ("fit_problems", 2), ("seed", 0), ("batch_size", 1)):
            require(getattr(self, key) >= least, key, getattr(self, key), f"must be at least {least}")
        for name in self.places:
            part, _, number = name.partition(" ")
            is_place = part in PARTS and (not number or number.lstrip("-").isdigit())
            require(
                is_place, "places", name, f"must be one of {', '.join(PARTS)}, or one of its tokens, as `prompt -1`"
            )
        for layer in self.layers:
            require(layer >= 0, "layers", layer, "must be at least 0")


@dataclass
class Texts:
    """The problems of a task.

    Attributes:
        pairs: problems that differ in one word of the prompt.
        fit, held_back, scored: problems of training, validation and test, for the ablations.
    """

    pairs: "Pairs"
    fit: "list[Example]"
    held_back: "list[Example]"
    scored: "list[Example]"

    @property
    def digest(self) -> str:
        """A digest of all problems."""
        from stepwise_pl.evaluation.problems import digest
        from stepwise_pl.tasks import ExampleList

        return digest(ExampleList([*self.pairs.first, *self.pairs.second, *self.fit, *self.held_back, *self.scored]))


@dataclass
class Findings:
    """The tables of a run, and facts about each of its checkpoints for patch.json."""

    patches: list[Patch] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)


def patch(config: PatchConfig) -> list[Path]:
    """Look into the runs; write the tables into each run folder, and print them. Return the folders.

    If there are several runs, one that cannot be looked into is a warning.

    Raises:
        UserError: no run can be looked into.
    """
    from stepwise_pl.reporting.history import find_runs

    folders, notes = find_runs(config.runs or [config.run])
    if not folders:
        raise UserError(f"nothing to patch: {'; '.join(notes)}. Give folders of runs, or folders above them")
    for note in notes:
        log.warning("%s", note)
    known: dict[str, Texts] = {}
    done: list[Path] = []
    for folder in folders:
        try:
            look_into(folder, config, known)
            done.append(folder)
        except UserError as error:
            if len(folders) == 1:
                raise
            log.warning("%s: %s; the other runs go on", folder, error)
    if not done:
        raise UserError(f"none of the {len(folders)} runs can be looked into; the lines above say why")
    return done


def look_into(folder: Path, config: PatchConfig, known: dict[str, Texts]) -> Findings:
    """Look into a run. Its earlier tables stay as they are until all new ones are made.

    Args:
        known: the problems of the tasks that were read so far, to which those of this run are added.

    Raises:
        UserError: the run or a checkpoint cannot be read, or has no such layer.
    """
    from stepwise_pl.reporting.inside_text import ablation_lines, patch_lines, swap_lines

    started, found = time.monotonic(), Findings()
    names = checkpoint_names(folder, config.checkpoint)
    (folder / FOLDER).mkdir(exist_ok=True)
    with logging_redirect_tqdm(), tqdm(total=len(names), bar_format=BAR, disable=not sys.stderr.isatty()) as bar:
        for name in names:
            bar.set_description_str(f"{folder.name}, {name}")
            run = load(folder, name, config)
            key = f"{run.config.task!r} {run.config.task.fingerprint()}"
            texts = known[key] if key in known else known.setdefault(key, texts_of(run, config))
            found.checkpoints.append(look(run, texts, config, found, lambda share: bar.update(share) and None))
            digest, device = texts.digest, run.model.device.type
            del run  # The next checkpoint is read into the memory that this one leaves.
    for table, kind in ((found.patches, Patch), (found.ablations, Ablation), (found.swaps, Swap)):
        write_rows(folder, table, kind)
    settings = {key: value for key, value in asdict(config).items() if key not in ("run", "runs", "plugins")}
    facts = {"device": device, "data_digest": digest, "seconds": round(time.monotonic() - started, 1)}
    write_json(folder / FOLDER / "patch.json", {"settings": settings, **facts, "checkpoints": found.checkpoints})
    lines = [patch_lines(found.patches, found.checkpoints), ablation_lines(found.ablations), swap_lines(found.swaps)]
    tables = "\n\n".join("\n".join(part) for part in lines if part)
    say(f"{folder}\n\n{tables}\n\nwritten to      {folder / FOLDER}\n")
    return found


def checkpoint_names(folder: Path, asked: str) -> list[str]:
    """Return the checkpoints to look into: those that the run kept, or else its best; or the one that is asked for."""
    kept = [path.stem for path in kept_checkpoints(folder / "checkpoints")]
    return (kept or ["best"]) if asked == ALL else [asked]


def load(folder: Path, checkpoint: str, config: PatchConfig) -> "TrainedRun":
    """Load a run with a checkpoint, on the device asked for.

    Raises:
        UserError: it cannot be read, its data files have changed, or this machine has no GPU.
    """
    import torch

    from stepwise_pl.models.trained_run import load_run

    has_gpu = torch.cuda.is_available()
    if config.accelerator == "gpu" and not has_gpu:
        raise UserError("accelerator=gpu: this machine has no CUDA device; accelerator=cpu")
    run = load_run(str(folder), checkpoint)
    require_same_files(run.path, run.config.task)
    run.to("cuda" if has_gpu and config.accelerator != "cpu" else "cpu")
    return run


def texts_of(run: "TrainedRun", config: PatchConfig) -> Texts:
    """Return the problems of a run's task. A warning tells if there are no pairs, or nothing to ablate.

    Raises:
        UserError: the problems cannot be read.
    """
    from stepwise_pl.inside.pairs import find_pairs

    task = run.config.task
    splits = task.splits((str(run.tokenizer.eos_token),))
    pairs = find_pairs(task, splits, config.pairs, config.seed)
    if not pairs.is_solvable:
        log.warning(
            "task=%s: does not say which problem a changed prompt is (`solved`, docs/extending.md); no patches, no swaps",
            task.kind,
        )
    elif not len(pairs):
        log.warning(
            "task=%s: every problem that differs in one word from one of test was trained on; no patches, no swaps",
            task.kind,
        )
    wanted = {"train": config.fit_problems, "validation": config.problems, "test": config.problems}
    fit, held_back, scored = (splits[name].slice(0, min(most, len(splits[name]))) for name, most in wanted.items())
    if config.problems and not (held_back and scored):
        log.warning("task=%s: validation or test has no problem; no ablations", task.kind)
    return Texts(pairs, fit, held_back, scored)


def look(
    run: "TrainedRun", texts: Texts, config: PatchConfig, found: Findings, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Look into a checkpoint; add to the tables, and return facts about the checkpoint.

    Raises:
        UserError: a problem does not fit the model, or the model has no such layer.
    """
    import numpy as np

    from stepwise_pl.inside.ablation import Settings, ablations
    from stepwise_pl.inside.interchange import interchange, patch_places, patch_rows, right_pairs
    from stepwise_pl.inside.pairs import tokens_of
    from stepwise_pl.inside.places import places_of
    from stepwise_pl.inside.ridge import Problems
    from stepwise_pl.inside.subject import Source, Subject
    from stepwise_pl.inside.swaps import swap_rows, swaps

    source, subject_of, size = Source.of(run), partial(Subject.of, run), config.batch_size
    layers, written = layers_of(run, config.layers), config.token == "written"
    facts = {
        "checkpoint": source.checkpoint, "checkpoint_digest": digest_of(run.checkpoint), "step": run.step,
        "removed_tokens": source.removed_tokens, "stage": source.stage, "pairs": len(texts.pairs),
    }  # fmt: skip
    if len(texts.pairs):
        pairs = tokens_of(texts.pairs, subject_of, written)
        rows = right_pairs(pairs, size)
        places = chosen(patch_places(pairs, size), config.places)
        moves = interchange(pairs, rows, places, layers, size, lambda share: progress(PATCHES * share))
        found.patches += patch_rows(moves, pairs, source)
        found.swaps += swap_rows(swaps(pairs, size), pairs, source)
        facts |= {
            "pairs_of_equal_length": len(pairs),
            "pairs_with_target": int((pairs.target >= 0).sum()),
            "right_pairs": len(rows),
        }
        log.info(
            "%s: %d pairs, %d with a token that differs, %d of these right on both sides",
            source.checkpoint,
            len(pairs),
            facts["pairs_with_target"],
            len(rows),
        )
    if config.problems and texts.held_back and texts.scored:
        parts = texts.fit, texts.held_back, texts.scored
        numbers = np.split(np.arange(sum(map(len, parts))), np.cumsum(list(map(len, parts)))[:-1])
        problems = Problems(subject_of([text for part in parts for text in part]), *numbers)
        places = chosen(places_of(problems.subject.batches(size), problems.subject.side), config.places)
        settings = Settings(run.path / FOLDER, size, config.seed, config.ablate == ALL, written)
        found.ablations += ablations(
            problems, source, places, layers, settings, lambda share: progress(ABLATIONS * share)
        )
    return facts


def layers_of(run: "TrainedRun", asked: list[int]) -> list[int]:
    """Return the layers asked for, or all but the last: nothing but its own prediction reads the last state.

    Raises:
        UserError: the model has no such layer, or it is the last.
    """
    last = int(run.model.config.get_text_config().num_hidden_layers) - 1
    for layer in asked:
        require(
            layer <= last,
            "layers",
            layer,
            f"must be at most {last}: the model has {last + 1} layers, and nothing but its own prediction reads the state after the last",
        )
    return sorted(set(asked)) or list(range(last + 1))


def chosen(places: "list[Place]", names: list[str]) -> "list[Place]":
    """Return the places that have one of the names, or are in one of the parts that are named; all if there are no names."""
    return [place for place in places if not names or str(place) in names or place.part in names]


def main() -> None:
    """Run the command."""
    entry_point("patch", PatchConfig, patch)


if __name__ == "__main__":
    main()
