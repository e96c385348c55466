"""The findings of a look inside, in the folder `inside/` of a run. The commands write it, the report reads it.

probes.csv        probes and their controls (`Probe`)
patches.csv       states of another problem put in (`Patch`)
ablations.csv     the direction of a probe taken out (`Ablation`)
swaps.csv         digits of the prompt replaced (`Swap`)
lens.csv          the logit lens over many problems (`Lens`)
lens.jsonl        the same word by word, for some problems (`Grid`)
attention.csv     attention, the mean over problems (`Attention`)
fourier.csv       the Fourier fit of the digits' vectors (`Fourier`)
similarity.csv    representation similarity (`Similarity`)

Beside each table of a command stands `<command>.json`: its settings, and digests of what it read.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from stepwise_pl.common.disk import write_text
from stepwise_pl.common.errors import UserError, first_line

FOLDER = "inside"
# The parts of an example, in which places are numbered, in the order in which they are read.
PARTS = ("prompt", "thought", "cot", "answer")

# The source that a probe reads (`Probe.source`).
TRAINED, RANDOM, RAW, CONSTANT, SHUFFLED = SOURCES = ("trained", "random", "raw", "constant", "shuffled")
# The layer of a probe that reads no state.
NO_LAYER = -1

R = TypeVar("R", bound="Row")


@dataclass(frozen=True)
class Row:
    """A row of a table. The first fields say where it was measured.

    Attributes:
        checkpoint: the name of the checkpoint, without ending.
        removed_tokens: CoT tokens gone at its stage.
        stage: the stage of the checkpoint.
        layer: 0 is the sum of the embeddings, l the output of layer l.
        place: a place as text (`prompt -1`, `thought 0`, `cot 3`, `answer 2`): its token has been read, and the next is predicted.
    """

    file: ClassVar[str] = ""

    checkpoint: str
    removed_tokens: int
    stage: int


@dataclass(frozen=True)
class Probe(Row):
    """A probe, or a control of it.

    Attributes:
        target: what is read: `cot 3`, `answer 2` (tokens, by place), `running_sum 0` (a quantity, by number).
        kind: `class`: score is accuracy; `number`: score is R².
        source: what the probe reads. `trained`: the states; `random`: those of the model with random weights; `raw`: the tokens
            read so far, one-hot with their positions; `constant`: nothing; `shuffled`: the states, with a random label for each problem.
            The layer of `raw` and `constant` is -1; `constant` has no place.
        probe: `linear` or `mlp`; `constant` if it reads nothing.
        score: on problems that the probe has not seen.
        low, high: 95% interval over the scored problems.
        error: mean absolute error in units of the quantity; of a class: the share of wrong labels.
        bits: online code length, bits per label; nan: not computed.
        bits_uniform: the same of a code that knows nothing but the labels' distribution.
        num_fit, num_scored: problems.
        chosen: whether it is the probe of its target, stage, source and kind of probe that was best on problems held back from the fit,
            among the places that are not `given`. One with a hidden layer stands where the best linear one does, unless all were fitted.
        given: whether the target has been read at the place, or before it, or a word that may hold it: its own token; if that is
            gone, the next one of the CoT that is left, or else the answer; for a quantity the word of the answer that it stands
            behind; for the result of a step any token of the CoT that is left, or else the answer.
    """

    file: ClassVar[str] = "probes.csv"

    layer: int
    place: str
    target: str
    kind: str
    source: str
    probe: str
    score: float
    low: float
    high: float
    error: float
    bits: float
    bits_uniform: float
    num_fit: int
    num_scored: int
    chosen: bool
    given: bool = False


@dataclass(frozen=True)
class Patch(Row):
    """States of problem B put into problem A, at one layer and place. A and B differ in one word of the prompt.

    Attributes:
        changed: the word in which they differ, as a place.
        target: the first token in which the answers differ, as a place; with `token=written` the first of all that is written.
        moved, kept: shares of the pairs that answer as B and as A.
        low, high: 95% Wilson interval of `moved`.
        effect: mean share of the way that the logit difference of B's and A's token goes; 0: nothing changes, 1: as in B.
        pairs: their number.
    """

    file: ClassVar[str] = "patches.csv"

    layer: int
    place: str
    changed: str
    target: str
    moved: float
    low: float
    high: float
    kept: float
    effect: float
    pairs: int


@dataclass(frozen=True)
class Ablation(Row):
    """The directions that a linear probe reads, taken out of the states at one layer and place by least-squares erasure (arXiv 2306.03819).

    Attributes:
        target: what the probe reads.
        dimensions: the number of directions that are read.
        accuracy: of the tokens `scored`, teacher-forced, without what the probe reads.
        random_low, random_high: least and most of the same after changes of the same size along random directions.
        random_mean: mean of the same.
        whole: accuracy with nothing taken out.
        num_scored: problems.
        scored: the tokens that the accuracies are about: one, as a place; or `answer`, the share of all its tokens; or `written`,
            that of the CoT that is left and the answer.
        decoded: accuracy of the probe.
        constant: accuracy of the label that is most frequent.
    """

    file: ClassVar[str] = "ablations.csv"

    layer: int
    place: str
    target: str
    dimensions: int
    accuracy: float
    random_mean: float
    random_low: float
    random_high: float
    whole: float
    num_scored: int
    scored: str = "answer"
    decoded: float = math.nan
    constant: float = math.nan


@dataclass(frozen=True)
class Swap(Row):
    """A word of the prompt replaced by another: how far a token of the answer moves.

    Attributes:
        changed: the word, as a place.
        target: the token of the answer, as a place.
        distance: mean total variation distance of the token's distribution, 0 to 1.
        should_move: share of the pairs in which the right token changes.
        moved: share of the pairs in which the model's token changes.
        right: share of the pairs in which the model's token is right before and after.
        pairs: their number.
    """

    file: ClassVar[str] = "swaps.csv"

    changed: str
    target: str
    distance: float
    should_move: float
    moved: float
    right: float
    pairs: int


@dataclass(frozen=True)
class Lens(Row):
    """The logit lens: what the model would say if it stopped after a layer.

    Attributes:
        token: the token that is looked for, as a place; a token that is gone has the place it would have. `next`: the token
            that follows in each problem, and that the model must say there; there is no such row inside of prompts and thoughts.
        source: `trained`, or `random`: the same model with random weights.
        top: share of the problems in which it is the most probable word.
        probability: its mean probability.
        problems: their number.
        chance: `top` if the most probable word had nothing to do with the problem: the mean over all pairs of a word said in
            one problem and a token of another or the same.
    """

    file: ClassVar[str] = "lens.csv"

    layer: int
    place: str
    token: str
    source: str
    top: float
    probability: float
    problems: int
    chance: float = math.nan


@dataclass(frozen=True)
class Attention(Row):
    """Attention from one place to another, the mean over problems.

    Attributes:
        layer: from 1: it reads the states after the layer before.
        head: number in the layer, from 0.
        place: where it is read from (the query).
        to: where to (the key), as a place. `rest`: all tokens together that have no row of their own. There is a row for
            each place up to `place` itself; all rows of a head and a place sum to 1.
        weight: 0 to 1.
    """

    file: ClassVar[str] = "attention.csv"

    layer: int
    head: int
    place: str
    to: str
    weight: float


@dataclass(frozen=True)
class Fourier(Row):
    """The fit of the vectors of the digits by 1, cos and sin of k = 1, 2, .. turns, and (-1)^n.

    Attributes:
        what: `embedding`; `output`, the output embedding if it is another; or `<place>, layer <l>`: mean states by the digit that
            comes next there.
        num_basis, num_digits: basis functions, with the constant one, and points.
        fit: R² of the trained vectors, over all dimensions, centred.
        random_mean, random_high: mean and 95% quantile of the same for random vectors.
        basis: the functions besides the constant one: `k 1-2, (-1)^n` is cos and sin of 1 and of 2 turns, and (-1)^n; `k 2` is cos
            and sin of 2 turns alone.
        shuffled_high: 95% quantile of the same for the trained vectors with their digits in random order.
    """

    file: ClassVar[str] = "fourier.csv"

    what: str
    num_basis: int
    num_digits: int
    fit: float
    random_mean: float
    random_high: float
    basis: str = ""
    shuffled_high: float = math.nan


@dataclass(frozen=True)
class Similarity(Row):
    """Linear CKA (arXiv 1905.00414) of states at one layer and place with those of another model or stage. States that are the same
    in all problems have none, and no row.

    Attributes:
        other: `stage <k>`, the first kept stage of the same run; `random` (the model with random weights, at the same stage); or
            the folder of another run, at its last checkpoint.
        cka: 1 for states that differ in rotation and scale alone. The estimate is unbiased, so that it is 0 on average for
            independent states, and may fall a little below 0.
        problems: their number.
    """

    file: ClassVar[str] = "similarity.csv"

    layer: int
    place: str
    other: str
    cka: float
    problems: int


# The tables of each command, by their rows.
COMMANDS: dict[str, tuple[type[Row], ...]] = {
    "probe": (Probe,),
    "patch": (Patch, Ablation, Swap),
    "lens": (Lens, Attention, Fourier, Similarity),
}


@dataclass(frozen=True)
class Grid:
    """The logit lens on one problem: a line of lens.jsonl.

    Attributes:
        checkpoint, removed_tokens, stage: see `Row`.
        problem: its number among the problems, from 0.
        prompt, cot, answer: its texts, with the whole CoT.
        layers: their numbers.
        places: all places that it has at this stage but the last.
        read: the token read at each place; `[thought]` and `[input <k>]` are inputs that are no words.
        next: the token that follows each place, in the same form.
        words: the most probable word at each layer and place.
        probabilities: those of these words.
    """

    checkpoint: str
    removed_tokens: int
    stage: int
    problem: int
    prompt: str
    cot: str
    answer: str
    layers: list[int]
    places: list[str]
    read: list[str]
    next: list[str]
    words: list[list[str]]
    probabilities: list[list[float]]


GRIDS = "lens.jsonl"


def write_grids(folder: Path, grids: Sequence[Grid]) -> Path:
    """Write the lens on some problems into the folder of a run; return its file. An earlier one is replaced."""
    path = folder / FOLDER / GRIDS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(asdict(grid), ensure_ascii=False) + "\n" for grid in grids))
    return path


def read_grids(folder: Path) -> list[Grid]:
    """Return the lens on some problems from the folder of a run; none if it is not there.

    Raises:
        UserError: the file is no such table.
    """
    path = folder / FOLDER / GRIDS
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            return [_grid(json.loads(line), number) for number, line in enumerate(file, start=1)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: holds no lens on problems ({first_line(error)}); make it again") from None


def _grid(fields_of: Any, number: int) -> Grid:
    """Return a line of lens.jsonl. Raise `TypeError` or `ValueError` if it is none; `number`: of the line, from 1."""
    grid = Grid(**fields_of)
    for name, kind in get_type_hints(Grid).items():
        if not _has_type(getattr(grid, name), kind):
            raise ValueError(f"line {number}: {name} has another type")
    return grid


def _has_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        (of,) = get_args(kind)
        return isinstance(value, list) and all(_has_type(each, of) for each in value)
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, kinds) and not isinstance(value, bool)


def write_rows(folder: Path, rows: Sequence[Row], kind: type[Row]) -> Path:
    """Write a table of one kind of rows into the folder of a run; return its file. An earlier one is replaced."""
    path = folder / FOLDER / kind.file
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(kind)]
    out.writerow(names)
    for row in rows:
        values = [getattr(row, name) for name in names]
        out.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])
    write_text(path, text.getvalue())
    return path


def read_rows(folder: Path, kind: type[R]) -> list[R]:
    """Return the rows of a table in the folder of a run; none if it is not there.

    Raises:
        UserError: the file is not such a table.
    """
    path = folder / FOLDER / kind.file
    if not path.is_file():
        return []
    types = get_type_hints(kind)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                kind(**{field.name: _value(row[field.name], types[field.name]) for field in fields(kind)})
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: is no table of {kind.__name__.lower()} rows ({error}); make it again") from None


def _value(text: str, kind: Any) -> Any:
    return text == "True" if kind is bool else kind(text)
