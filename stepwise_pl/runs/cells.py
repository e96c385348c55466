"""Cells: runs that differ in the seed alone. Reports, comparisons and sweeps all average over cells."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, Protocol, TypeVar

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.statistics import over_seeds
from stepwise_pl.config import keys
from stepwise_pl.config.keys import flat
from stepwise_pl.config.plain import read_yaml
from stepwise_pl.config.upgrade import upgraded
from stepwise_pl.runs.records import damage_told
from stepwise_pl.runs.results import read_summary
from stepwise_pl.runs.saved_config import derived_of
from stepwise_pl.runs.stages import read_stages, removed_at
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, Job, Sweep, label

ACCURACY = 0.95  # `Result.removed_at_95` counts the tokens that are removed at this accuracy or more


class Run(Protocol):
    """A run, as far as its cell needs to know it.

    Attributes:
        config: dotted keys; empty if the run has lost its configuration.
        tested: test accuracy (0 to 1) and number of test problems; None if the run has not been tested yet.
    """

    @property
    def seed(self) -> int | str: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def tested(self) -> tuple[float, int] | None: ...


R = TypeVar("R", bound=Run)


@dataclass
class Cell(Generic[R]):
    """Runs that differ in nothing that matters but the seed.

    Attributes:
        number: place of this cell among the cells.
        config: the dotted keys that matter, which all its runs share.
        places: places of its runs among all runs.
        label: name for tables and figures.
    """

    number: int
    config: dict[str, Any]
    places: list[int]
    runs: list[R]
    label: str = ""

    @property
    def ended(self) -> list[R]:
        """The runs that have been tested."""
        return [run for run in self.runs if run.tested]

    @property
    def distinct_seeds(self) -> bool:
        """Whether the ended runs have different seeds. A run that was made twice must not count as two seeds."""
        return len({run.seed for run in self.ended}) == len(self.ended)

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each ended run."""
        return [run.tested[0] for run in self.runs if run.tested]

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy of the ended runs; None if no run has ended."""
        return fmean(self.accuracies) if self.ended else None

    @property
    def interval(self) -> tuple[float, float, str] | None:
        """95% interval of the mean, and its kind (`statistics.over_seeds`); None if no run has ended or two have the same seed."""
        examples = [run.tested[1] for run in self.runs if run.tested]
        return over_seeds(self.accuracies, examples[0]) if examples and self.distinct_seeds else None


def cells_of(runs: Sequence[R], aside: tuple[str, ...] | None = None) -> list[Cell[R]]:
    """Group runs by their configuration, in the order of the first run of each cell.

    Args:
        aside: the keys and groups that do not matter; None: those of `config.keys.aside`. A run without a configuration gets a cell of its own.
    """
    aside = keys.aside() if aside is None else aside
    cells: dict[str, Cell[R]] = {}
    for place, run in enumerate(runs):
        config = {
            key: _of_any_seed(value, run.config.get("seed")) if keys.is_among(key, keys.paths()) else value
            for key, value in run.config.items()
            if not keys.is_among(key, aside)
        }
        key = json.dumps(config, sort_keys=True, default=str) if run.config else str(place)
        cell = cells.setdefault(key, Cell(len(cells), config, [], []))
        cell.places.append(place)
        cell.runs.append(run)
    return list(cells.values())


def _of_any_seed(path: object, seed: object) -> object:
    """A path without the run's own seed: each run of a cell may build on a run of its seed (`method.teacher`)."""
    if not isinstance(path, str):
        return path
    return "/".join("seed*" if part == f"seed{seed}" else part for part in path.split("/"))


@dataclass
class Result:
    """The result of a finished job of a sweep."""

    test_accuracy: float
    test_examples: int
    removed_tokens: int  # of the checkpoint that was tested
    removed_at_95: int | None  # see `stages.removed_at`
    max_cot_tokens: int
    examples_per_token: float | None
    seconds: float
    collapsed: bool
    collapsed_at: int | None  # CoT tokens removed when accuracy collapsed for the first time
    test_accuracy_any_length: float | None = None  # None in runs from before it was measured
    stage: str = ""  # of the checkpoint that was tested, if stages have names


@dataclass
class SweepRun:
    """A job of a sweep. It has a result once it is finished."""

    job: Job
    result: Result | None
    # Keys besides the swept ones that differ between the runs of one cell, and their values here.
    more: dict[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> str:
        """The seed as it stands on the command line; empty if the seed is not swept."""
        return self.job.swept.get("seed", "")

    @property
    def config(self) -> dict[str, str]:
        """The swept keys, and others that differ: a sweep may have been resumed with a longer `trainer.duration`."""
        return {**self.job.swept, **self.more}

    @property
    def tested(self) -> tuple[float, int] | None:
        """Test accuracy and number of test problems."""
        return (self.result.test_accuracy, self.result.test_examples) if self.result else None


def read_result(run: Path) -> Result:
    """Read the result of a finished run from its files. Raise `UserError` if one of them is damaged."""
    summary = read_summary(run / "summary.json")
    if missing := [
        key
        for key in ("test_accuracy", "test_examples", "removed_tokens", "seconds", "collapsed")
        if key not in summary
    ]:
        raise UserError(f"{run / 'summary.json'}: lacks {missing[0]}")
    stages, _ = read_stages(run / "metrics.csv")
    with damage_told(run / "config.yaml"):
        derived = derived_of(run)
        max_cot_tokens, examples_per_token = derived["max_cot_tokens"], derived["examples_per_token"]
    return Result(
        summary["test_accuracy"], summary["test_examples"], summary["removed_tokens"], removed_at(stages, ACCURACY),
        max_cot_tokens, examples_per_token, summary["seconds"], summary["collapsed"],
        summary.get("collapsed_at"), summary.get("test_accuracy_any_length"), summary.get("stage", ""),
    )  # fmt: skip


def cells_of_sweep(sweep: Sweep) -> list[Cell[SweepRun]]:
    """The cells of a sweep, in the order of its jobs. A cell is called after the swept keys without the seed."""
    runs = [
        SweepRun(job, read_result(sweep.folder / job.run) if job.outcome == FINISHED else None) for job in sweep.jobs
    ]
    for cell in cells_of(runs, aside=("seed",)):
        of_run = {place: _learned(sweep.folder / run.job.run) for place, run in enumerate(cell.runs)}
        found = {place: config for place, config in of_run.items() if config}
        for key in sorted({key for config in found.values() for key in config}):
            values = {place: json.dumps(config.get(key), default=str).strip('"') for place, config in found.items()}
            if len(set(values.values())) > 1:
                for place, value in values.items():
                    cell.runs[place].more[key] = value
    cells = cells_of(runs, aside=("seed",))
    for cell in cells:
        cell.label = label(cell.config)
    return cells


def _learned(run: Path) -> dict[str, Any]:
    """The keys of a run that may change what is learned, dotted; none if it has no configuration yet."""
    path = run / "config.yaml"
    if not path.is_file():
        return {}
    saved = upgraded(read_yaml(path), path)
    saved.pop("derived", None)
    return {key: value for key, value in flat(saved).items() if not keys.is_aside(key)}


def results_of(cell: Cell[SweepRun]) -> list[Result]:
    """The results of the finished jobs, in the order of the jobs."""
    return [run.result for run in cell.runs if run.result]


def row_of(cell: Cell[SweepRun]) -> dict[str, Any]:
    """The row of a cell in sweep.json and sweep.csv. Lists have a value for each finished job."""
    results = results_of(cell)
    low, high, kind = cell.interval or (None, None, None)
    stages = [result.stage for result in results]
    return {
        "runs": len(cell.runs),
        "finished": len(results),
        "failed": sum(run.job.outcome == FAILED for run in cell.runs),
        "collapsed": sum(result.collapsed for result in results),
        "collapsed_at": [result.collapsed_at for result in results],
        "test_accuracy": cell.accuracy,
        "interval_low": low,
        "interval_high": high,
        "interval": "t over seeds" if kind == "t" else kind,
        "test_examples": results[0].test_examples if results else None,
        "test_accuracies": cell.accuracies,
        "test_accuracies_any_length": [result.test_accuracy_any_length for result in results],
        "removed_tokens": [result.removed_tokens for result in results],
        **({"stages": stages} if any(stages) else {}),
        "removed_at_95": [result.removed_at_95 for result in results],
        "max_cot_tokens": results[0].max_cot_tokens if results else None,
        "seconds": fmean(result.seconds for result in results) if results else None,
        "examples_per_token": results[0].examples_per_token if results else None,
    }


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with a header. The values of a list are separated by spaces; a value that is None is written `none`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({
            key: " ".join("none" if item is None else str(item) for item in value) if isinstance(value, list) else value
            for key, value in row.items()
        })  # fmt: skip
    return out.getvalue()
