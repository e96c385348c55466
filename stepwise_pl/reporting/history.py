"""Runs as a report sees them. A run may still be running, and its folder may lack files."""

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
from stepwise_pl.common.registry import SCHEMAS
from stepwise_pl.reporting.inside_tables import Inside, read_inside
from stepwise_pl.runs.cells import Cell, cells_of
from stepwise_pl.runs.predictions import why_stale
from stepwise_pl.runs.records import StageRecord, attempt_of, read_attempts, read_stage_records
from stepwise_pl.runs.results import read_summary
from stepwise_pl.runs.saved_config import comparable_config, derived_of
from stepwise_pl.runs.stages import StageAccuracy, stage_name, stages_of
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, OUTCOMES, read_sweep

T = TypeVar("T")
Row = dict[str, float]  # a line of metrics.csv without its empty cells


@dataclass
class History:
    """One run. An attribute is empty if its file is missing; `notes` then says so.

    Attributes:
        label: name of the run on the page; a long one is shortened.
        full_label: the same name, not shortened.
        cell: number of its cell (`runs.cells`).
        turn: place of the run in its cell.
        error: why the run failed, if it is a failed job of a sweep.
        config: dotted keys.
        derived: values that followed from the configuration.
        summary: empty until the run has ended.
        rows: lines of metrics.csv, without those of attempts that the guard gave up.
        given_up: the other lines of metrics.csv, a list for each attempt that the guard gave up.
        stages: the last validation of each stage, ascending.
        stages_given_up: the same for each attempt that the guard gave up.
        records: lines of stages.jsonl that belong to `rows`.
        evaluations: results of `evaluate` for the checkpoints that the run has now, each with as many tokens
            removed as the checkpoint was trained with.
        sessions: an entry for every start of the run.
        inside: the tables of a look inside.
        notes: sentences about missing and damaged files.
    """

    path: Path
    label: str = ""
    full_label: str = ""
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
    inside: Inside = field(default_factory=Inside)
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", self.summary.get("seed", 0)))

    @property
    def tested(self) -> tuple[float, int] | None:
        """Test accuracy and number of test problems; None if the summary lacks one of them."""
        if not {"test_accuracy", "test_examples"} <= self.summary.keys():
            return None
        return float(self.summary["test_accuracy"]), int(self.summary["test_examples"])

    @property
    def rollbacks(self) -> list[dict[str, Any]]:
        """The decisions of the guard, as the summary lists them."""
        found: list[dict[str, Any]] = self.summary.get("rollbacks") or []
        return found

    @property
    def baseline(self) -> str | None:
        """`explicit CoT` or `no CoT` if the run is one of these baselines, else None."""
        kind = SCHEMAS.get(("method", self.method))
        return self.fixed_schedule if getattr(kind, "has_baselines", False) else None

    @property
    def fixed_schedule(self) -> str | None:
        """`explicit CoT` or `no CoT` if the schedule removes nothing, or all at once; else None."""
        if self.config.get("schedule.remove_all_beyond") == 0:
            return "no CoT"
        return "explicit CoT" if self.config.get("schedule.remove_at_most") == 0 else None

    @property
    def band(self) -> tuple[float, float] | None:
        """The band of test accuracy that the run's recipe states; None if it states none, or if the command line has made another run of it."""
        judged = self.summary.get("expected")
        if judged is None:
            # The run has not ended yet. Its test counts whole answers, and no other band is about them.
            is_about_answers = self.config.get("expected.counts", "answer") == "answer"
            unchanged = is_about_answers and self.derived.get("changed") == []
            found = self.config.get("expected.accuracy") if unchanged else None
        else:
            found = None if judged.get("changed") else judged.get("accuracy")
        return None if found is None else (float(found[0]), float(found[1]))

    @property
    def method(self) -> str:
        """Kind of the method. Runs of older versions had no other than `stepwise`."""
        return str(self.config.get("method.kind", "stepwise"))

    @property
    def tokens_read(self) -> float | None:
        """Tokens of all forward passes of training so far; None if they were not counted."""
        found = self.rows[-1].get("tokens_read") if self.rows else None
        return self.summary.get("tokens_read", found)

    @property
    def max_cot_tokens(self) -> int | None:
        """Tokens in the longest CoT of the training set."""
        found = self.summary.get("max_cot_tokens", self.derived.get("max_cot_tokens"))
        return None if found is None else int(found)

    def stage_of(self, row: Row) -> str:
        """The name of the stage in a row of metrics.csv; empty if the stages of the method have no names."""
        return stage_name(self.derived.get("stage_names") or (), row.get("schedule/stage"))

    @property
    def last_records(self) -> list[StageRecord]:
        """The last record of each stage, ascending."""
        last = {(record["removed_tokens"], record.get("stage")): record for record in self.records}
        return sorted(last.values(), key=lambda record: (record["removed_tokens"], record["step"]))

    @property
    def resets(self) -> list[Row]:
        """The first row after each growth of s(t), if the run resets its optimizer there. Several growths between two rows count as one."""
        if not self.config.get("schedule.reset_optimizer"):
            return []
        key = "schedule/stage" if any("schedule/stage" in row for row in self.rows) else "schedule/removed_tokens"
        training = [row for row in self.rows if key in row and "test/loss" not in row]
        return [row for before, row in pairwise(training) if row[key] > before[key]]


def find_runs(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Find the run folders among the given folders and below them.

    Returns:
        The run folders, each once: those of a sweep in the order of its cells, others in the order of their names.
        Notes on folders without a run, and on sweeps with unfinished jobs.
    """
    found: dict[Path, Path] = {}
    notes: list[str] = []
    for name in given:
        below = list(_runs_below(name, notes))
        if not below:
            problem = "no run in this folder or below" if Path(name).is_dir() else "no such folder"
            notes.append(f"{name}: {problem}")
        for path in below:
            found.setdefault(path.resolve(), path)
    return list(found.values()), notes


def _runs_below(top: str, notes: list[str]) -> Iterator[Path]:
    for name, folders, files in os.walk(top):
        there = {*folders, *files}
        configured = "config.yaml" in there and bool(there & {"checkpoints", "metrics.csv"})
        if configured or {"summary.json", "metrics.csv"} <= there:
            yield Path(name)
            folders.clear()  # No run lies inside another run.
        folders[:] = sorted((folder for folder in folders if not folder.startswith(".")), key=_natural)
        if "sweep.json" in there:
            cells = _cells_in_order(Path(name), notes)
            folders.sort(key=lambda folder: cells.index(folder) if folder in cells else len(cells))


def _cells_in_order(folder: Path, notes: list[str]) -> list[str]:
    """The folders of a sweep's cells, in the order of its jobs. Adds notes on jobs that are not finished."""
    try:
        sweep = read_sweep(folder)
    except UserError as error:
        notes.append(first_line(error))
        return []
    counts = {outcome: sweep.count(outcome) for outcome in OUTCOMES}
    if counts[FINISHED] < len(sweep.jobs):
        listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        notes.append(f"{folder}: of {len(sweep.jobs)} jobs of the sweep {listed}")
    # A job that failed early has no run folder. Nothing else would mention it.
    early = [job for job in sweep.jobs if job.outcome == FAILED and not (folder / job.run / "config.yaml").is_file()]
    notes += [f"{folder}: {job.label} failed: {job.error}" for job in early]
    return list(dict.fromkeys(Path(job.run).parts[0] for job in sweep.jobs))


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts `delta-4` before `delta-16`."""
    return [(int(digits or 0), other) for other, digits in re.findall(r"(\D*)(\d*)", text)]


def read_runs(paths: Sequence[Path]) -> list[History]:
    """Read the runs. Each is labelled by the parts of its path that the others do not share."""
    runs = [read_run(path) for path in paths]
    for cell in cells_of(runs):
        for turn, run in enumerate(cell.runs):
            run.cell, run.turn = cell.number, turn
    full = labels([run.path.resolve() for run in runs]) if len(runs) > 1 else [str(run.path) for run in runs]
    for run, label, short in zip(runs, full, shortened(full), strict=True):
        run.full_label, run.label = label, short
    return runs


def labelled_cells(runs: Sequence[History]) -> list[Cell[History]]:
    """The cells of the runs. A cell is called after the folder of its runs if no other run lies in that folder, as in a sweep."""
    cells = cells_of(runs)
    folders = [run.label.rpartition("/")[0] for run in runs]
    for cell in cells:
        folder = folders[cell.places[0]]
        in_folder = [place for place, other in enumerate(folders) if other == folder]
        is_own = bool(folder) and len(cell.runs) > 1 and in_folder == cell.places
        cell.label = folder if is_own else ", ".join(run.label for run in cell.runs)
    return cells


def labels(paths: Sequence[Path]) -> list[str]:
    """Short names of folders: without the folder above all of them, and without the overrides that all siblings share.

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


def shortened(names: Sequence[str], part: int = 48, whole: int = 96) -> list[str]:
    """The names, with the middle of long ones left out: a name of 200 characters would make a row of a table 20 lines high.

    Args:
        part: characters of a folder's name, at most.
        whole: characters of a name, at most; folders in its middle are left out.

    Returns:
        Names that differ where the given ones do: all of them are longer if they would not.
    """

    def of_part(text: str) -> str:
        # The end of a folder's name has the key that was swept last.
        return text if len(text) <= part else f"{text[: part // 2]}…{text[-(part // 2 - 1) :]}"

    def of_name(name: str) -> str:
        parts = [of_part(text) for text in name.split("/")]
        if len("/".join(parts)) <= whole or len(parts) <= 3:
            return "/".join(parts)
        last = 2
        while len("/".join([parts[0], "…", *parts[-last - 1 :]])) <= whole:
            last += 1
        return "/".join([parts[0], "…", *parts[-last:]])

    short = [of_name(name) for name in names]
    if len(set(short)) == len(set(names)):
        return short
    return shortened(names, 2 * part, 2 * whole)


def read_run(path: Path) -> History:
    """Read a run folder. A missing or damaged file does not raise, but adds a note."""
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
    names = run.derived.get("stage_names") or ()
    metrics = read("metrics.csv", lambda file: read_numbers(file, names), None, "no metrics.csv")
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
    run.summary = read("summary.json", read_summary, {}, f"no summary yet: {why}")
    elsewhere: list[str] = []
    for file in sorted((path / "evaluations").glob("*.json"), key=lambda file: _natural(file.stem)):
        found: dict[str, Any] = read(f"evaluations/{file.name}", read_summary, {}, "")
        why = why_stale(path, file, found)
        if why:
            run.notes.append(f"evaluations/{file.name} {why}: it is left out; evaluate it again")
        elif found and not found.get("as_trained"):
            elsewhere.append(file.name)
        else:
            run.evaluations.append(found)
    if elsewhere:
        more = f" and {len(elsewhere) - 1} more" if len(elsewhere) > 1 else ""
        run.notes.append(
            f"evaluations/{elsewhere[0]}{more} left out: about targets with more or fewer CoT tokens removed than at the stage "
            "of the checkpoint"
        )
    run.inside, notes = read_inside(path)
    run.notes += notes
    return run


def read_numbers(
    path: Path, names: Sequence[str]
) -> tuple[list[Row], list[list[Row]], list[StageAccuracy], list[list[StageAccuracy]]]:
    """Read a metrics.csv: `rows`, `given_up`, `stages` and `stages_given_up` of a `History`; `names`: of its stages.

    Raises:
        ValueError: a cell is no number, or a row has no step.
    """
    kept, given_up = read_attempts(path)
    if not all((row.get("step") or "").isdecimal() for rows in (kept, *given_up) for row in rows):
        raise ValueError("a row has no step")

    def numbers(rows: list[dict[str, str]]) -> list[Row]:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in rows]

    return (
        numbers(kept), [numbers(rows) for rows in given_up],
        stages_of(kept, names), [stages_of(rows, names) for rows in given_up],
    )  # fmt: skip
