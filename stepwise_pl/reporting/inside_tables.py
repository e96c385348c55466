"""The tables of a look inside a run, as the report reads them: each alone, so that a damaged one costs the others nothing."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.runs.inside import (
    FOLDER,
    Ablation,
    Attention,
    Fourier,
    Lens,
    Patch,
    Probe,
    Row,
    Similarity,
    Swap,
    read_rows,
)

WORDS = "lens.jsonl"
# Records of the page's lens, at most: characters of the file.
MOST_WORDS = 4_000_000


@dataclass
class Inside:
    """The tables in `<run>/inside/`. A list is empty if its table is missing or damaged.

    Attributes:
        words: lines of lens.jsonl, the lens word by word (`read_words`).
    """

    probes: list[Probe] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    lens: list[Lens] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    fourier: list[Fourier] = field(default_factory=list)
    similarity: list[Similarity] = field(default_factory=list)
    words: list[dict[str, Any]] = field(default_factory=list)


KINDS: dict[str, type[Row]] = {
    "probes": Probe, "patches": Patch, "ablations": Ablation, "swaps": Swap, "lens": Lens, "attention": Attention,
    "fourier": Fourier, "similarity": Similarity,
}  # fmt: skip


def read_inside(run: Path) -> tuple[Inside, list[str]]:
    """Return the tables in the folder of a run, and a note on each that cannot be read."""
    found = Inside()
    notes: list[str] = []

    def note(file: str, error: Exception) -> None:
        why = first_line(error).removeprefix(f"{run / FOLDER / file}: ")
        notes.append(f"{FOLDER}/{file} cannot be read ({why})")

    for name, kind in KINDS.items():
        try:
            setattr(found, name, read_rows(run, kind))
        except (UserError, OSError, ValueError, ArithmeticError) as error:
            note(kind.file, error)
    try:
        found.words, cut = read_words(run / FOLDER / WORDS)
        notes += [f"{FOLDER}/{WORDS} is long: the page shows its first {len(found.words)} lines"] * cut
    except (UserError, OSError, ValueError) as error:
        note(WORDS, error)
    return found, notes


def read_words(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Read the lens word by word, a line for each problem and checkpoint.

    Returns:
        The lines, and whether the file is so long that its last lines are left out. Each line has `checkpoint`, `removed_tokens`,
        `prompt`, `layers` [layer], `places`, `read` and `next` [place], `words` and `probabilities` [layer][place].

    Raises:
        UserError: a line lacks something, or has another shape.
    """
    if not path.is_file():
        return [], False
    found: list[dict[str, Any]] = []
    size = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        size += len(line)
        if size > MOST_WORDS and found:
            return found, True
        try:
            found.append(_checked(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is no line of the lens ({first_line(error)})") from None
    return found, False


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """The parts of a line that the page shows, as texts and numbers. Raise `ValueError` if the shapes differ."""
    width, layers = len(line["places"]), [int(layer) for layer in line["layers"]]
    words = [list(map(str, row)) for row in line["words"]]
    probabilities = [[float(value) for value in row] for row in line["probabilities"]]
    read, following = list(map(str, line["read"])), list(map(str, line["next"]))
    if {*map(len, words), *map(len, probabilities), len(read), len(following)} != {width}:
        raise ValueError(f"not every row has {width} places")
    if not len(words) == len(probabilities) == len(layers):
        raise ValueError(f"not as many rows as layers: {len(layers)}")
    if any(not 0 <= value <= 1 for row in probabilities for value in row):
        raise ValueError("a probability is not between 0 and 1")
    return {
        "checkpoint": str(line["checkpoint"]), "removed_tokens": int(line["removed_tokens"]), "prompt": str(line["prompt"]),
        "layers": layers, "places": list(map(str, line["places"])), "read": read, "next": following, "words": words,
        "probabilities": probabilities,
    }  # fmt: skip
