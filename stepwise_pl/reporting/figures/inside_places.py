"""Places, stages and tokens in the tables of a look inside, as its figures need them."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from stepwise_pl.reporting.history import History
from stepwise_pl.runs.folder import number_kept
from stepwise_pl.runs.inside import PARTS, Grid, Row

# Characters of a name beside an axis, at most.
NAME = 22

R = TypeVar("R", bound=Row)
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Spot(NamedTuple):
    """A place, or the target of a probe: a part (or a quantity) and its number. Spots are sorted as they are read."""

    order: int
    part: str
    number: int

    @classmethod
    def of(cls, text: str) -> "Spot":
        """Read `<part> <number>`. A text of another form is a part of its own, after all others."""
        part, _, number = text.rpartition(" ")
        if not part or not number.lstrip("-").isdecimal():
            return cls(len(PARTS), text, 0)
        return cls(PARTS.index(part) if part in PARTS else len(PARTS), part, int(number))


class Stage(NamedTuple):
    """A stage of a run: a column of its figures."""

    removed_tokens: int
    stage: int


@dataclass(frozen=True)
class Removal:
    """How the CoT of a run leaves.

    Attributes:
        side: the side from which it leaves.
        length: tokens of the whole CoT.
        separators: tokens of the answer before its first word.
    """

    side: str
    length: int
    separators: int

    @classmethod
    def of(cls, run: History, names: Iterable[str]) -> "Removal":
        """How the CoT of the run leaves; `names`: the places and tokens of a table, for a run that has not noted its longest CoT."""
        numbers = [spot.number + 1 for spot in map(Spot.of, names) if spot.part == "cot"]
        length = run.max_cot_tokens or max(numbers, default=0)
        return cls(str(run.config.get("method.side", "left")), length, _num_separators(run.inside.grids))

    def is_gone(self, token: Spot, stage: Stage) -> bool:
        """Whether a token of the CoT has left at a stage."""
        place = token.number if self.side == "left" else self.length - 1 - token.number
        return token.part == "cot" and place < stage.removed_tokens

    def gives_away(self, place: Spot, token: Spot, stage: Stage) -> bool:
        """Whether a token of CoT or answer, or a word after it, has been read at a place."""
        if place < token:
            return False
        is_left = any(not self.is_gone(Spot.of(f"cot {number}"), stage) for number in range(token.number, self.length))
        return token.part != "cot" or is_left or place >= Spot.of(f"answer {self.separators}")


def _num_separators(grids: Sequence[Grid]) -> int:
    """The number of tokens with which the answer of each problem begins: 1 at least, which all layouts have."""
    read = [dict(zip(grid.places, grid.read, strict=True)) for grid in grids]
    number = 0
    while len({words.get(f"answer {number}") for words in read}) == 1 and f"answer {number}" in read[0]:
        number += 1
    return max(1, number)


def kept_rows(rows: Sequence[R]) -> list[R]:
    """The rows of one checkpoint for each stage: the one that was kept of the stage, before any other."""
    chosen: dict[Stage, str] = {}
    for row in rows:
        stage = stage_of(row)
        if stage not in chosen or (number_kept(chosen[stage]) is None and number_kept(row.checkpoint) is not None):
            chosen[stage] = row.checkpoint
    return [row for row in rows if row.checkpoint == chosen[stage_of(row)]]


def stage_of(row: Row) -> Stage:
    return Stage(row.removed_tokens, row.stage)


def stages_of(rows: Iterable[Row]) -> dict[Stage, str]:
    """The stages of the rows, ascending, with their names: removed tokens, and the stage's number where these are not enough."""
    stages = sorted({stage_of(row) for row in rows})
    removed = [stage.removed_tokens for stage in stages]
    return {
        stage: str(stage.removed_tokens) + f", stage {stage.stage}" * (removed.count(stage.removed_tokens) > 1)
        for stage in stages
    }


def in_order(names: Iterable[str]) -> list[str]:
    """The names of places or targets, each once, as they are read; quantities after tokens."""
    return sorted(dict.fromkeys(names), key=Spot.of)


def grouped(found: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Group findings by a key; their order stays."""
    groups: dict[K, list[T]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def short_names(names: Sequence[str]) -> list[str]:
    """The names, short enough to stand beside an axis, and still each once."""
    found: list[str] = []
    for name in names:
        cut = name if len(name) <= NAME else f"…{name[1 - NAME :]}"
        same = 1
        while cut in found:
            same += 1
            cut = f"…{name[len(str(same)) + 4 - NAME :]} ({same})"
        found.append(cut)
    return found
