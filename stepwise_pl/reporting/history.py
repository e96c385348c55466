"""Runs as their folders tell them, whatever is there: also those that are still running, or have lost files."""

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from stepwise_pl.common.disk import read_json
from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.keys import same_but_seed
from stepwise_pl.runs.predictions import why_stale
from stepwise_pl.runs.records import StageRecord, attempt_of, read_attempts, read_stage_records
from stepwise_pl.runs.saved_config import comparable_config, derived_of
from stepwise_pl.runs.stages import StageAccuracy, stages_of
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, OUTCOMES, read_sweep

T = TypeVar("T")
Row = dict[str, float]  # of metrics.csv, without empty cells


@dataclass
class History:
    """One run. What its folder lacks is empty here, and said in `notes`.

    Attributes:
        cell: a number that it shares with runs that differ in nothing but the seed.
        config: dotted keys.
        derived: what followed from the configuration.
        summary: empty as long as the run has not ended.
        rows, stages, records: metrics, validations and lines of stages.jsonl that count;
            of stages the last at each number of removed tokens, ascending.
        given_up, stages_given_up: the same of each attempt that the guard gave up.
        evaluations: what `evaluate` wrote of the checkpoints that the run has now, with their own removed tokens.
        sessions: every start.
        turn: its place among the runs of its cell.
        error: why it failed, if it is one of a sweep that did.
    """

    path: Path
    label: str = ""
    cell: int = 0
    turn: int = 0
    error: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    given_up: list[list[Row]] = field(default_factory=list)
    stages: list[StageAccuracy] = field(default_factory=list)
    stages_given_up: list[list[StageAccuracy]] = field(default_factory=list)
    records: list[StageRecord] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", self.summary.get("seed", 0)))

    @property
    def rollbacks(self) -> list[dict[str, Any]]:
        """The guard's decisions, as far as they were summed up."""
        found: list[dict[str, Any]] = self.summary.get("rollbacks") or []
        return found

    @property
    def baseline(self) -> str | None:
        """`explicit CoT` or `no CoT`, if the schedule is that."""
        if self.config.get("schedule.remove_all_beyond") == 0:
            return "no CoT"
        return "explicit CoT" if self.config.get("schedule.remove_at_most") == 0 else None

    @property
    def max_cot_tokens(self) -> int | None:
        """Tokens in the longest CoT of the training set."""
        found = self.summary.get("max_cot_tokens", self.derived.get("max_cot_tokens"))
        return None if found is None else int(found)

    @property
    def last_records(self) -> list[StageRecord]:
        """Of `records` the last at each number of removed tokens, ascending."""
        last = {one["removed_tokens"]: one for one in self.records}
        return [last[removed] for removed in sorted(last)]

    @property
    def resets(self) -> list[Row]:
        """The first row after each growth of s at which the optimizer was reset, as far as the rows are dense enough to tell."""
        if not self.config.get("schedule.reset_optimizer"):
            return []
        key = "schedule/removed_tokens"
        training = [row for row in self.rows if key in row and "test/loss" not in row]
        return [row for before, row in pairwise(training) if row[key] > before[key]]


def find_runs(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The run folders among `given` and below, each once; and what is to be said of folders without any, and of sweeps.

    Those of a sweep come in the order of its cells, others in that of their names.
    """
    found: dict[Path, Path] = {}
    notes: list[str] = []
    for name in given:
        below = list(_runs_below(name, notes))
        if not below:
            what = "no run in this folder or below" if Path(name).is_dir() else "no such folder"
            notes.append(f"{name}: {what}")
        for path in below:
            found.setdefault(path.resolve(), path)
    return list(found.values()), notes


def _runs_below(folder: str, notes: list[str]) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        there = {*folders, *files}
        configured = "config.yaml" in there and bool(there & {"checkpoints", "metrics.csv"})
        if configured or {"summary.json", "metrics.csv"} <= there:
            yield Path(name)
            folders.clear()  # a run holds no other run
        folders[:] = sorted((one for one in folders if not one.startswith(".")), key=_natural)
        if "sweep.json" in there:
            cells = _cells_in_order(Path(name), notes)
            folders.sort(key=lambda one: cells.index(one) if one in cells else len(cells))


def _cells_in_order(folder: Path, notes: list[str]) -> list[str]:
    """The folders of a sweep's cells, as its jobs come; notes what has become of the jobs, unless all are finished."""
    try:
        sweep = read_sweep(folder)
    except UserError as error:
        notes.append(first_line(error))
        return []
    counts = {outcome: sweep.count(outcome) for outcome in OUTCOMES}
    if counts[FINISHED] < len(sweep.jobs):
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        notes.append(f"{folder}: of {len(sweep.jobs)} jobs of the sweep {told}")
    # A job that failed early has no run folder that could say so itself.
    early = [job for job in sweep.jobs if job.outcome == FAILED and not (folder / job.run / "config.yaml").is_file()]
    notes += [f"{folder}: {job.label} failed: {job.error}" for job in early]
    return list(dict.fromkeys(Path(job.run).parts[0] for job in sweep.jobs))


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts `delta-4` before `delta-16`."""
    return [(int(digits or 0), other) for other, digits in re.findall(r"(\D*)(\d*)", text)]


def read_runs(paths: Sequence[Path]) -> list[History]:
    """The runs, labelled by what sets their folders apart."""
    runs = [read_run(path) for path in paths]
    for number, places in enumerate(same_but_seed(run.config for run in runs)):
        for turn, place in enumerate(places):
            runs[place].cell, runs[place].turn = number, turn
    if len(runs) == 1:
        runs[0].label = str(runs[0].path)
        return runs
    for run, label in zip(runs, labels([run.path.resolve() for run in runs]), strict=True):
        run.label = label
    return runs


@dataclass
class Cell:
    """The runs that differ in nothing but the seed.

    Attributes:
        number: its own, among the cells.
        places: of its runs, among all runs.
    """

    number: int
    label: str
    places: list[int]
    runs: list[History]

    @property
    def ended(self) -> list[History]:
        """Those of its runs that have been tested."""
        return [run for run in self.runs if {"test_accuracy", "test_examples"} <= run.summary.keys()]

    @property
    def distinct_seeds(self) -> bool:
        """Whether its ended runs tell of different seeds: a run that was made twice would count twice."""
        return len({run.seed for run in self.ended}) == len(self.ended)


def cells_of(runs: Sequence[History]) -> list[Cell]:
    """Every cell, by its number; called after the folder of its runs if no other run lies there, as in a sweep."""
    cells: list[Cell] = []
    folders = [run.label.rpartition("/")[0] for run in runs]
    for number in sorted({run.cell for run in runs}):
        places = [place for place, run in enumerate(runs) if run.cell == number]
        folder = folders[places[0]]
        own = len(places) > 1 and folder and [place for place, one in enumerate(folders) if one == folder] == places
        label = folder if own else ", ".join(runs[place].label for place in places)
        cells.append(Cell(number, label, places, [runs[place] for place in places]))
    return cells


def labels(paths: Sequence[Path]) -> list[str]:
    """Names of folders, as short as sets them apart: without the folder above all, and without the overrides all siblings have.

    Folders of a sweep are named `<key>-<value>+<key>-<value>`.
    """
    common = os.path.commonpath(paths) if paths else ""
    parts = [path.relative_to(common).parts for path in paths]
    siblings: dict[tuple[str, ...], set[str]] = {}
    for one in parts:
        for depth, name in enumerate(one):
            siblings.setdefault(one[:depth], set()).add(name)
    short = {above: _short_names(names) for above, names in siblings.items()}
    return ["/".join(short[one[:depth]][name] for depth, name in enumerate(one)) for one in parts]


def _short_names(names: set[str]) -> dict[str, str]:
    shared = set.intersection(*(set(name.split("+")) for name in names)) if len(names) > 1 else set()
    short = {name: "+".join(part for part in name.split("+") if part not in shared) or name for name in names}
    # The name of an experiment says enough.
    short = {name: one.removeprefix("experiment-") for name, one in short.items()}
    return short if len(set(short.values())) == len(names) else {name: name for name in names}


def read_run(path: Path) -> History:
    """Whatever the folder holds; does not raise for what is missing or damaged."""
    run = History(path)

    def read(name: str, how: Callable[[Path], T], otherwise: T, missing: str) -> T:
        if not (path / name).is_file():
            if missing:
                run.notes.append(missing)
            return otherwise
        try:
            return how(path / name)
        except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            run.notes.append(f"{name} cannot be read ({first_line(error).removeprefix(f'{path / name}: ')})")
            return otherwise

    run.config = read("config.yaml", lambda file: comparable_config(file.parent), {}, "no config.yaml")
    if run.config:
        run.derived = derived_of(path)
    run.sessions = read("environment.json", lambda file: list(read_json(file)["sessions"]), [], "no environment.json")
    metrics = read("metrics.csv", read_numbers, None, "no metrics.csv")
    if metrics is not None:
        run.rows, run.given_up, run.stages, run.stages_given_up = metrics
    counts = {(attempt_of(row), int(row["step"])) for row in run.rows}
    records: list[StageRecord] = read(
        "stages.jsonl", read_stage_records, [], "no stages.jsonl: no accuracy of digits, no answers"
    )
    run.records = [one for one in records if (one["attempt"], one["step"]) in counts]
    at = f", at step {run.rows[-1]['step']:.0f}" if run.rows else ""
    job: dict[str, Any] = read("job.json", read_json, {}, "")
    run.error = str(job.get("error")) if job.get("outcome") == FAILED else ""
    why = f"it failed: {run.error}" if run.error else f"it is still running, or was stopped{at}"
    run.summary = read("summary.json", read_json, {}, f"no summary yet: {why}")
    for file in sorted((path / "evaluations").glob("*.json"), key=lambda file: _natural(file.stem)):
        found: dict[str, Any] = read(f"evaluations/{file.name}", read_json, {}, "")
        why = why_stale(path, file, found)
        if why:
            run.notes.append(f"evaluations/{file.name} {why}: it is left out; evaluate it again")
        elif found and not found.get("as_trained"):
            run.notes.append(
                f"evaluations/{file.name} is about targets with {found.get('removed_tokens')} CoT tokens removed, which is not "
                "what its checkpoint was trained on: it is left out"
            )
        else:
            run.evaluations.append(found)
    return run


def read_numbers(path: Path) -> tuple[list[Row], list[list[Row]], list[StageAccuracy], list[list[StageAccuracy]]]:
    """Of a metrics.csv: rows and stages that count, and those of each attempt given up. Raises `ValueError` where a cell is no number."""
    kept, given_up = read_attempts(path)

    def numbers(rows: list[dict[str, str]]) -> list[Row]:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in rows]

    return (
        numbers(kept), [numbers(rows) for rows in given_up], stages_of(kept), [stages_of(rows) for rows in given_up],
    )  # fmt: skip
