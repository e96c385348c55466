"""The tables of a look inside a run, as the report reads them: each alone, so that a damaged one costs the others nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.runs.inside import (
    COMMANDS,
    FOLDER,
    GRIDS,
    Ablation,
    Attention,
    Fourier,
    Grid,
    Lens,
    Patch,
    Probe,
    Row,
    Similarity,
    Swap,
    read_grids,
    read_rows,
)
from stepwise_pl.runs.predictions import why_stale

# Words of the lens on the page, at most: some MB of it.
MOST_WORDS = 200_000


@dataclass
class Inside:
    """The tables in `<run>/inside/`. A list is empty if its table is missing or damaged.

    Attributes:
        grids: the lens on some problems, word by word.
    """

    probes: list[Probe] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    lens: list[Lens] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    fourier: list[Fourier] = field(default_factory=list)
    similarity: list[Similarity] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


KINDS: dict[str, type[Row]] = {
    "probes": Probe, "patches": Patch, "ablations": Ablation, "swaps": Swap, "lens": Lens, "attention": Attention,
    "fourier": Fourier, "similarity": Similarity,
}  # fmt: skip


def read_inside(run: Path) -> tuple[Inside, list[str]]:
    """Return the tables in the folder of a run, and notes: on each that cannot be read, and on rows about checkpoints of before.

    Rows about a checkpoint that the run has written anew since are left out.
    """
    found = Inside()
    notes: list[str] = []
    stale = {
        kind: names for command, kinds in COMMANDS.items() for names in [_stale(run, command, notes)] for kind in kinds
    }

    def note(file: str, error: Exception) -> None:
        why = first_line(error).removeprefix(f"{run / FOLDER / file}: ")
        notes.append(f"{FOLDER}/{file} cannot be read ({why})")

    for name, kind in KINDS.items():
        try:
            setattr(found, name, [row for row in read_rows(run, kind) if row.checkpoint not in stale[kind]])
        except (UserError, OSError, ValueError, ArithmeticError) as error:
            note(kind.file, error)
    try:
        grids = [_checked(grid, number) for number, grid in enumerate(read_grids(run), start=1)]
        grids = [grid for grid in grids if grid.checkpoint not in stale[Lens]]
        found.grids = grids[: _num_shown(grids)]
        if len(found.grids) < len(grids):
            notes.append(f"{FOLDER}/{GRIDS} is long: the page shows the first {len(found.grids)} of {len(grids)} lines")
    except (UserError, OSError, ValueError, TypeError) as error:
        note(GRIDS, error)
    return found, notes


def _stale(run: Path, command: str, notes: list[str]) -> list[str]:
    """Return the checkpoints that the run has written anew since a command read them, and add a note on them."""
    file = run / FOLDER / f"{command}.json"
    try:
        looked_at = json.loads(file.read_text(encoding="utf-8"))["checkpoints"]
        why = {
            str(each["checkpoint"]): why_stale(
                run,
                file,
                {"checkpoint": f"{each['checkpoint']}.ckpt", "checkpoint_digest": each["digest"], "step": each["step"]},
            )
            for each in looked_at
        }
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
    ):  # The tables are there, or they are not. This file adds little.
        return []
    old = [name for name, reason in why.items() if reason]
    if old:
        notes.append(
            f"{FOLDER}/{file.name}: {', '.join(f'{name}.ckpt' for name in old)} was written anew since; what was found there "
            f"is left out. Run {command} again"
        )
    return old


def _checked(grid: Grid, number: int) -> Grid:
    """The lens on a problem, as it is. Raise `ValueError` if it is not a word and a probability for each layer and place."""
    width = len(grid.places)
    widths = {*map(len, grid.words), *map(len, grid.probabilities), len(grid.read), len(grid.next)}
    if widths != {width} or not len(grid.words) == len(grid.probabilities) == len(grid.layers):
        raise ValueError(
            f"line {number} has no word and probability for each of {len(grid.layers)} layers and {width} places"
        )
    if not all(0 <= share <= 1 for of_layer in grid.probabilities for share in of_layer):
        raise ValueError(f"line {number}: a probability is not between 0 and 1")
    return grid


def _num_shown(grids: Sequence[Grid]) -> int:
    """How many of them the page has room for."""
    sizes = accumulate(len(grid.places) * len(grid.layers) for grid in grids)
    return max(1, sum(size <= MOST_WORDS for size in sizes))
