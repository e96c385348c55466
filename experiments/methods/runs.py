"""The runs of this experiment, read from its csv files: what tables and figures are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.methods.arms import TASKS, WAITS, in_order, task_and_arm
from experiments.readme import Row, read_rows
from stepwise_pl.common.statistics import wilson
from stepwise_pl.config.training import GuardConfig

HERE = Path(__file__).parent
# A token leaves once this accuracy is reached on validation.
KEEP = 0.95
EXPLICIT = "explicit_cot"


@dataclass(frozen=True)
class Validation:
    """A validation; `accuracy` of `examples` problems, with `removed` CoT tokens gone."""

    step: int
    tokens_read: int
    removed: int
    accuracy: float
    examples: int


@dataclass
class Run:
    """A seed of an arm.

    Attributes:
        test, tested: accuracy of the best checkpoint on the test problems, and how many these are.
        removed: CoT tokens gone at that checkpoint; the model writes the others.
        tokens: of a whole CoT.
        about: its row of runs.csv.
    """

    task: str
    arm: str
    seed: int
    test: float
    tested: int
    removed: int
    tokens: int
    about: Row
    validations: list[Validation]

    @property
    def answers_alone(self) -> bool:
        """Whether the best checkpoint answers without a CoT token, at 95% or more of the test problems."""
        return self.removed == self.tokens and self.test >= KEEP

    @property
    def waits(self) -> bool:
        """Whether tokens leave one after the other, each once accuracy is back."""
        return self.about["schedule"] == WAITS

    @property
    def read_until_last(self) -> int | None:
        """Tokens read at the last validation before the last CoT token left; None if that did not reach 95%."""
        before = [one for one in self.validations if one.removed < self.tokens]
        if not before or before[-1].removed < self.tokens - 1 or before[-1].accuracy < KEEP:
            return None
        return before[-1].tokens_read

    @property
    def fell_at(self) -> int | None:
        """CoT tokens gone when accuracy fell and did not come back until the end of the run; None if it did not fall so.

        Low is surely below the share of the best that the guard calls good. Two validations are the least, as for the guard.
        The guard's own word (runs.csv) is about a quarter of the best, which is less than chance where half of the guesses are right.
        """
        rule = GuardConfig()
        best, low = 0.0, []
        for one in self.validations:
            best = max(best, one.accuracy)
            low = [*low, one] if wilson(one.accuracy, one.examples)[1] < rule.good * best else []
        return low[0].removed if len(low) >= rule.patience else None


@dataclass
class Speed:
    """A measurement of speeds.csv. Whatever was not measured is None; times in seconds."""

    arm: str
    machine: str
    one_at_a_time: float | None
    in_batches: float | None
    first_step: float | None
    last_step: float | None
    training: float | None
    row: Row


def read_runs(folder: Path = HERE) -> dict[str, dict[str, list[Run]]]:
    """The runs of each arm of each task, in the order of the tables."""
    validations: dict[tuple[str, str], list[Validation]] = {}
    for row in read_rows(folder / "curves.csv"):
        numbers = [int(row[key]) for key in ("step", "tokens_read", "removed_tokens")]
        one = Validation(*numbers, float(row["accuracy"]), int(row["examples"]))
        validations.setdefault((row["run"], row["seed"]), []).append(one)
    abouts = {(row["run"], row["seed"]): row for row in read_rows(folder / "runs.csv")}
    found: dict[str, dict[str, list[Run]]] = {}
    for row in read_rows(folder / "results.csv"):
        if row["split"] == "test":
            key, (task, arm) = (row["run"], row["seed"]), task_and_arm(row["run"])
            run = Run(
                task, arm, int(row["seed"]), float(row["accuracy"]), int(row["examples"]), int(row["removed_tokens"]),
                int(abouts[key]["max_cot_tokens"]), abouts[key], validations[key],
            )  # fmt: skip
            found.setdefault(task, {}).setdefault(arm, []).append(run)
    return {
        task: {arm: sorted(found[task][arm], key=lambda run: run.seed) for arm in in_order(found[task])}
        for task in TASKS
        if task in found
    }


def read_speeds(task: str, folder: Path = HERE) -> list[Speed]:
    """The measurements of a task, in the order of the arms."""

    def number(text: str) -> float | None:
        return float(text) if text else None

    keys = (
        "answers_per_second",
        "answers_per_second_in_batches",
        "first_step_seconds",
        "last_step_seconds",
        "training_seconds",
    )
    rows = [row for row in read_rows(folder / "speeds.csv") if row["task"] == task]
    order = in_order(row["arm"] for row in rows)
    rows.sort(key=lambda row: order.index(row["arm"]))
    return [Speed(row["arm"], row["machine"], *(number(row[key]) for key in keys), row) for row in rows]


def relative_speeds(speeds: Sequence[Speed]) -> dict[str, list[float]]:
    """How many times as fast as explicit CoT each arm answers one problem at a time; a number for each machine that measured both."""
    base = {speed.machine: speed.one_at_a_time for speed in speeds if speed.arm == EXPLICIT}
    found: dict[str, list[float]] = {}
    for speed in speeds:
        if speed.one_at_a_time is not None and (explicit := base.get(speed.machine)):
            found.setdefault(speed.arm, []).append(speed.one_at_a_time / explicit)
    return found
