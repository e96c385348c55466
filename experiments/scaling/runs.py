"""The runs and the carry chains, as the csv files beside this file have them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from experiments.readme import Row, read_rows
from experiments.scaling.chains import COT
from experiments.scaling.collect import KEY, THROUGH
from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.measures import MeasuredRun
from stepwise_pl.runs.sweep_folder import FINISHED

HERE = Path(__file__).resolve().parent
PARITY = "parity"
LEFT, RIGHT = "left", "right"


class Stage(NamedTuple):
    """A stage of a run.

    Attributes:
        removed_tokens: tokens gone; the last of them left when the stage began.
        steps: until 95% was reached, or else so far.
    """

    removed_tokens: int
    steps: int
    is_kept: bool


@dataclass
class Run:
    """A run.

    Attributes:
        side: from which tokens leave, `left` or `right`.
        removed_at_95: 0 also if 95% was never reached.
        examples: until all tokens were gone at 95%; None if they never were.
        examples_per_token: None if 95% was never reached.
        ended: `through`, `stuck` or `steps over`.
    """

    task: str
    layers: int
    width: int
    seed: int
    side: str
    cot_tokens: int
    removed_at_95: int
    examples: float | None
    examples_per_token: float | None
    ended: str
    stages: list[Stage] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of the CoT's tokens gone at 95%."""
        return self.removed_at_95 / self.cot_tokens

    @property
    def is_parity(self) -> bool:
        """Whether the task is parity, which has no carries."""
        return self.task.startswith(PARITY)

    @property
    def is_through(self) -> bool:
        """Whether all tokens have gone at 95%."""
        return self.ended == THROUGH

    def leaving(self, tokens: Sequence["Token"]) -> Sequence["Token"]:
        """The tokens of the CoT in the order in which they leave: the stage with n tokens gone begins as the n-th leaves."""
        return tokens if self.side == LEFT else tokens[::-1]

    def measured(self, value: str, *, with_bits: bool = False) -> MeasuredRun:
        """The run as maps and laws take it.

        Args:
            value: `removed_share` or `examples_per_token`, measures of stepwise_pl/runs/measures.py.
            with_bits: the task of parity is given as the number of its bits.
        """
        number = {"removed_share": self.share, "examples_per_token": self.examples_per_token}[value]
        task = {"bits": self.task.removeprefix(PARITY).strip()} if with_bits else {"task": self.task}
        config = {**task, "layers": str(self.layers), "width": str(self.width)}
        never = value == "removed_share" and self.examples_per_token is None
        return MeasuredRun(config, str(self.seed), "", FINISHED, number, never)


class Token(NamedTuple):
    """A token of a multiplication's CoT.

    Attributes:
        number: from 1 on, in the order in which the CoT is written.
        varies: false for signs, brackets and zeros that shift a row.
        chain: mean length of the carry chain into it.
    """

    number: int
    name: str
    varies: bool
    chain: float


def read_runs(folder: Path = HERE) -> list[Run]:
    """The runs: multiplication first, short CoTs first, then by depth, width and seed.

    Raises:
        UserError: tokens leave from one side in some runs of a task, and from the other in others, or a side is neither.
    """
    stages: dict[tuple[str, ...], list[Stage]] = {}
    for row in read_rows(folder / "stages.csv"):
        stage = Stage(int(row["removed_tokens"]), int(row["steps"]), row["kept"] == "yes")
        stages.setdefault(_key(row), []).append(stage)
    runs = [
        Run(
            row["task"], int(row["layers"]), int(row["width"]), int(row["seed"]), row["side"],
            int(row["cot_tokens"]), int(row["removed_at_95"]), _number(row["examples"]), _number(row["examples_per_token"]), row["ended"],
            stages.get(_key(row), []),
        )
        for row in read_rows(folder / "results.csv")
    ]  # fmt: skip
    sides: dict[str, set[str]] = {}
    for run in runs:
        sides.setdefault(run.task, set()).add(run.side)
    for task, of_task in sides.items():
        if of_task not in ({LEFT}, {RIGHT}):
            raise UserError(
                f"{folder / 'results.csv'}: the column side of {task} has {', '.join(map(repr, sorted(of_task)))}; "
                f"a task needs one side, {LEFT} or {RIGHT}"
            )
    return sorted(runs, key=lambda run: (run.is_parity, run.cot_tokens, run.task, run.layers, run.width, run.seed))


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def _number(text: str) -> float | None:
    return float(text) if text else None


def read_chains(folder: Path = HERE, part: str = COT) -> dict[str, list[Token]]:
    """The tokens of the CoT (or of the answer) of each multiplication, by the task."""
    found: dict[str, list[Token]] = {}
    for row in read_rows(folder / "chains.csv"):
        if row["part"] == part:
            token = Token(int(row["number"]), row["name"], row["varies"] == "yes", float(row["mean_chain"]))
            found.setdefault(row["task"], []).append(token)
    return found
