"""The results of a sweep by cell: runs that differ in the seed alone."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stepwise_pl.common.disk import read_json_or_empty
from stepwise_pl.common.statistics import over_seeds
from stepwise_pl.runs.saved_config import derived_of
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, Job, Sweep, label

ACCURACY = 0.95  # removed tokens are counted at this accuracy or more


@dataclass
class Result:
    """What a finished job has come to."""

    test_accuracy: float
    test_examples: int
    removed_tokens: int  # of the checkpoint that was tested
    removed_at_95: int | None  # see `results.removed_at`
    max_cot_tokens: int
    examples_per_token: float | None
    seconds: float
    collapsed: bool
    collapsed_at: int | None  # CoT tokens gone when it had collapsed for the first time
    test_accuracy_any_length: float | None = None  # None in runs from before it was measured


@dataclass
class Cell:
    """The jobs that differ in nothing but the seed.

    Attributes:
        swept: the swept keys without the seed.
        results: of those jobs that are finished, in their order.
    """

    swept: dict[str, str]
    jobs: list[Job]
    results: list[Result]

    @property
    def label(self) -> str:
        """The swept keys and values, for reading."""
        return label(self.swept)

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over the finished seeds."""
        return fmean(one.test_accuracy for one in self.results) if self.results else None

    @property
    def interval(self) -> tuple[float, float, str] | None:
        """95% interval of the accuracy, and what it is (`statistics.over_seeds`)."""
        if not self.results:
            return None
        return over_seeds([one.test_accuracy for one in self.results], self.results[0].test_examples)

    def row(self) -> dict[str, Any]:
        """What sweep.json and sweep.csv hold of it; lists are over the finished seeds."""
        interval = self.interval or (None, None, None)
        return {
            "runs": len(self.jobs),
            "finished": len(self.results),
            "failed": sum(job.outcome == FAILED for job in self.jobs),
            "collapsed": sum(one.collapsed for one in self.results),
            "collapsed_at": [one.collapsed_at for one in self.results],
            "test_accuracy": self.accuracy,
            "interval_low": interval[0],
            "interval_high": interval[1],
            "interval": "t over seeds" if interval[2] == "t" else interval[2],
            "test_examples": self.results[0].test_examples if self.results else None,
            "test_accuracies": [one.test_accuracy for one in self.results],
            "test_accuracies_any_length": [one.test_accuracy_any_length for one in self.results],
            "removed_tokens": [one.removed_tokens for one in self.results],
            "removed_at_95": [one.removed_at_95 for one in self.results],
            "max_cot_tokens": self.results[0].max_cot_tokens if self.results else None,
            "seconds": fmean(one.seconds for one in self.results) if self.results else None,
            "examples_per_token": self.results[0].examples_per_token if self.results else None,
        }


def read_result(run: Path) -> Result:
    """From the files of a finished run."""
    from stepwise_pl.runs.stages import read_stages, removed_at

    summary = read_json_or_empty(run / "summary.json")
    stages, _ = read_stages(run / "metrics.csv")
    derived = derived_of(run)
    return Result(
        summary["test_accuracy"], summary["test_examples"], summary["removed_tokens"], removed_at(stages, ACCURACY),
        derived["max_cot_tokens"], derived["examples_per_token"], summary["seconds"], summary["collapsed"],
        summary.get("collapsed_at"), summary.get("test_accuracy_any_length"),
    )  # fmt: skip


def cells_of(sweep: Sweep) -> list[Cell]:
    """The cells in the order of their first jobs."""
    cells: dict[tuple[tuple[str, str], ...], Cell] = {}
    for job in sweep.jobs:
        swept = {key: value for key, value in job.swept.items() if key != "seed"}
        cell = cells.setdefault(tuple(swept.items()), Cell(swept, [], []))
        cell.jobs.append(job)
        if job.outcome == FINISHED:
            cell.results.append(read_result(sweep.folder / job.run))
    return list(cells.values())


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({
            key: " ".join("none" if one is None else str(one) for one in value) if isinstance(value, list) else value
            for key, value in row.items()
        })  # fmt: skip
    return out.getvalue()
