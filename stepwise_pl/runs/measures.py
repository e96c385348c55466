"""Measures of a finished run of a sweep: one number for each run, for maps over swept keys and for laws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.runs.cells import ACCURACY, Cell, Result, SweepRun
from stepwise_pl.runs.records import attempt_of, damage_told, read_attempts
from stepwise_pl.runs.results import read_summary
from stepwise_pl.runs.stages import place_of
from stepwise_pl.runs.sweep_folder import FINISHED


class Validation(NamedTuple):
    """A validation that counts: the guard did not go back before it.

    Attributes:
        place: removed tokens, and number of the stage (`stages.place_of`).
        accuracy: of the answers, 0 to 1.
        examples: those trained on until then, with those that the guard threw away.
    """

    place: tuple[int, int]
    accuracy: float
    examples: int


@dataclass
class LearningRecord:
    """The numbers in the files of a finished run, from which measures are made.

    Attributes:
        validations: in the order of training.
        tokens_read: of all forward passes of training; None if they were not counted.
    """

    result: Result
    validations: list[Validation]
    tokens_read: int | None

    def first_right(self, removed_tokens: int) -> Validation | None:
        """The first validation of at least 95% with so many tokens removed; None if there is none.

        If several stages have this number of removed tokens, the last of them counts, as in `stages.removed_at`.
        """
        there = [validation for validation in self.validations if validation.place[0] == removed_tokens]
        last = max((validation.place for validation in there), default=None)
        right = (validation for validation in there if validation.place == last and validation.accuracy >= ACCURACY)
        return next(right, None)


@dataclass(frozen=True)
class Measure:
    """A number of a finished run.

    Attributes:
        label: a few words, for figures and errors.
        meaning: the whole meaning, for help and documents.
        of: the number of a run; None if the run has none.
        is_share: the number is a share, written as a percentage.
        marks: a run that never reached 95% is marked, because its number is 0 for want of another.
    """

    label: str
    meaning: str
    of: Callable[[LearningRecord], float | None]
    is_share: bool = False
    marks: bool = False


def _removed_at_95(run: LearningRecord) -> float:
    return run.result.removed_at_95 or 0


def _removed_share(run: LearningRecord) -> float | None:
    return _removed_at_95(run) / run.result.max_cot_tokens if run.result.max_cot_tokens else None


def _examples(run: LearningRecord) -> float | None:
    found = run.first_right(run.result.max_cot_tokens)
    return None if found is None else found.examples


def _examples_per_token(run: LearningRecord) -> float | None:
    # The first validation counts. A run that has removed all tokens trains on, and its last validation is the end of its training.
    removed = run.result.removed_at_95
    if removed is None or (found := run.first_right(removed)) is None:
        return None
    return found.examples / (removed + 1)


MEASURES: dict[str, Measure] = {
    "removed_at_95": Measure(
        "CoT tokens gone at 95%",
        "the most CoT tokens gone whose last validation was at least 95% right; a run that never reached 95% counts 0 and is marked",
        _removed_at_95, marks=True,
    ),
    "removed_share": Measure(
        "share of CoT tokens gone at 95%", "removed_at_95 as a share of the CoT's tokens", _removed_share, is_share=True, marks=True
    ),
    "examples": Measure(
        "examples until all tokens are gone at 95%",
        "examples trained on up to the first validation with all tokens gone and at least 95% right; none if the run did not come there",
        _examples,
    ),
    "examples_per_token": Measure(
        "examples per token gone at 95%",
        "examples trained on up to the first validation of at least 95% with removed_at_95 tokens gone, divided by that number "
        "plus one, because stage 0 is learned too; none if the run never reached 95%",
        _examples_per_token,
    ),
    "tokens_read": Measure(
        "tokens read", "tokens of all forward passes of training; none if they were not counted", lambda run: run.tokens_read
    ),
    "test_accuracy": Measure(
        "test accuracy", "share of right answers on the test set", lambda run: run.result.test_accuracy, is_share=True
    ),
    "seconds": Measure("seconds", "seconds of training", lambda run: run.result.seconds),
}  # fmt: skip


def require_measure(value: str) -> None:
    """Raise `UserError` unless there is a measure of this name; the message lists all."""
    if value not in MEASURES:
        listed = ", ".join(f"{name} ({measure.label})" for name, measure in MEASURES.items())
        raise UserError(f"value={value}: must be one of {listed}")


@dataclass
class MeasuredRun:
    """A job of a sweep with its number.

    Attributes:
        config: the swept keys without the seed, and others that differ (`Cell.config`).
        seed: empty if a job has not begun and its seed is not swept.
        run: the run folder, relative to the sweep folder.
        outcome: of the job; only a finished job has a number.
        value: the number; None if there is none.
        never_at_95: no validation was 95% right, so that the number is 0 for want of another.
    """

    config: dict[str, str]
    seed: str
    run: str
    outcome: str
    value: float | None = None
    never_at_95: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether the job is finished."""
        return self.outcome == FINISHED


def measured(folder: Path, cells: Sequence[Cell[SweepRun]], measure: Measure) -> list[MeasuredRun]:
    """Every job of the sweep with its number, in the order of the cells.

    Args:
        folder: of the sweep.

    Raises:
        UserError: a file of a finished run is damaged.
    """
    return [_measured(folder, run, cell.config, measure) for cell in cells for run in cell.runs]


def _measured(folder: Path, run: SweepRun, config: dict[str, str], measure: Measure) -> MeasuredRun:
    # In the configuration of the cell, a path that differs with the seed alone is one value.
    found = MeasuredRun(config, run.seed, run.job.run, run.job.outcome)
    if run.result is not None:
        place = folder / run.job.run
        saved = read_yaml(place / "config.yaml")
        found.seed = found.seed or str(saved.get("seed", ""))
        found.value = measure.of(read_learning(place, run.result, saved))
        found.never_at_95 = measure.marks and run.result.removed_at_95 is None
    return found


def read_learning(run: Path, result: Result, saved: dict[str, Any]) -> LearningRecord:
    """Read a finished run.

    Args:
        saved: its config.yaml.

    Raises:
        UserError: a file is damaged.
    """
    summary = read_summary(run / "summary.json")
    data = saved.get("data")
    size = data.get("batch_size") if isinstance(data, dict) else None
    if not isinstance(size, int):
        raise UserError(f"{run / 'config.yaml'}: lacks data.batch_size")
    with damage_told(run / "summary.json"):
        # Steps that each return of the guard has thrown away.
        thrown_away = [back["at_step"] - back["to_step"] for back in summary.get("rollbacks") or ()]
    metrics = run / "metrics.csv"
    if not metrics.is_file():
        # A run that lacks its validations would count as one that never reached 95%.
        raise UserError(f"{metrics}: is missing; a map and a law need the validations of each finished run")
    with damage_told(metrics):
        validations = [
            Validation(
                place_of(row),
                float(row["val/answer_accuracy"]),
                size * (int(row["step"]) + sum(thrown_away[: attempt_of(row)])),
            )
            for row in _whole_rows(metrics)
            if row["val/answer_accuracy"]
        ]
    return LearningRecord(result, validations, summary.get("tokens_read"))


def _whole_rows(metrics: Path) -> list[dict[str, str]]:
    """The rows that count. Raise `ValueError` if there is none, or if one is cut off."""
    rows, _ = read_attempts(metrics)
    if not rows:
        raise ValueError("no row")
    for row in rows:
        if None in row.values():
            raise ValueError(f"the row {','.join(filter(None, row.values()))[:40]} is cut off")
    return rows
