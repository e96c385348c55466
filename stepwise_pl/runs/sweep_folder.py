"""The sweep folder: what lies where, which folder a sweep gets, and what has become of each job.

sweep.json            the command, the swept keys; run folder, overrides and outcome of every job; the results
sweep.csv             the results, a row per cell: what is the same in every swept key but the seed
sweep.png/svg         the results as a figure; sweep-grid.png/svg as a heat map, where two keys are swept
map-<value>-<x>-<y>   a map over two swept keys as png, svg and csv, and fits.csv, as `sweep x= y= fit=` asks for them
<cell>/seed<seed>/    the run folders, each with a job.json: what its job is, written by the process that does it
"""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stepwise_pl.common.disk import make_folder, read_json, write_json
from stepwise_pl.common.errors import UserError, printable
from stepwise_pl.common.processes import is_alive
from stepwise_pl.runs.marks import is_taken
from stepwise_pl.runs.numbering import first_free, newest

WAITING, RUNNING, STOPPED, FINISHED, FAILED = "waiting", "running", "stopped", "finished", "failed"
OUTCOMES = (FINISHED, FAILED, RUNNING, STOPPED, WAITING)


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        run: its run folder, relative to the sweep folder.
        overrides: its command line, without what is for Hydra or about the sweep.
        swept: the swept keys with this job's values, as they stand on the command line.
        outcome: `waiting`, `running`, `stopped` (to be gone on with), `finished` or `failed`.
        error: why it failed, in one line.
        process: the last process that did it.
    """

    run: str
    overrides: list[str]
    swept: dict[str, str]
    outcome: str = WAITING
    error: str | None = None
    process: str | None = None

    @property
    def label(self) -> str:
        """The swept keys and values, for reading."""
        return label(self.swept)


@dataclass
class Sweep:
    """A sweep, as sweep.json and the job.json files have it.

    Attributes:
        command: the arguments of `stepwise_pl.train` that began it, or went on with it the last time.
        swept: the swept keys, in the order given.
        process: the process that hands out the jobs.
        total: how many jobs there will be; None if the sweeper decides while it goes on.
        jobs: those known so far.
        planned: the run folders of that command's jobs; empty if the sweeper decides while it goes on.
        lasting: its name without how long the runs train, which a sweep that goes on may change.
        to_do: the run folders of that command's jobs that were not finished when it began, with the most optimizer steps
            of each; None where only the data tell.
        workers: how many jobs the launcher does side by side; None if that is not known.
    """

    folder: Path
    name: str
    command: list[str]
    swept: list[str]
    process: str
    total: int | None = None
    jobs: list[Job] = field(default_factory=list)
    planned: list[str] = field(default_factory=list)
    lasting: str = ""
    to_do: dict[str, int | None] = field(default_factory=dict)
    workers: int | None = None

    def count(self, *outcomes: str) -> int:
        """The number of jobs with one of these outcomes."""
        return sum(job.outcome in outcomes for job in self.jobs)


class SweepNames(NamedTuple):
    """The names of a sweep's folder.

    Attributes:
        now: its name as this version makes it.
        lasting: `now` without how long the runs train.
        former: its names as earlier versions made them, the newest first.
        former_lasting: `lasting` as the version before made it.
    """

    now: str
    lasting: str
    former: tuple[str, ...] = ()
    former_lasting: str = ""


def label(swept: dict[str, str]) -> str:
    """Keys and values, for reading."""
    return printable(" ".join(f"{key.lstrip('+')}={value}" for key, value in swept.items())) or "all"


def this_process() -> str:
    """The process and its machine."""
    return f"{os.getpid()} on {platform.node()}"


def process_here(process: str | None) -> int | None:
    """The process number, if that is a process of this machine."""
    number, _, host = (process or "").partition(" on ")
    return int(number) if host == platform.node() else None


def holds_sweep(path: Path) -> bool:
    """Whether a sweep has begun in the folder."""
    return (path / "sweep.json").is_file()


def open_sweep_dir(run_dir: str | None, names: SweepNames, resume: bool) -> Path:
    """The sweep's folder, made if need be: `run_dir`, or else the first of `outputs/sweeps/<name>`, `<name>-2`, ... that
    holds no sweep; with `resume`, the newest that holds one.

    With `resume`, if no folder has the name, a sweep that differs in nothing but how long its runs train goes on, or
    else one of the former name.

    Raises:
        UserError: `run_dir` holds a sweep or a run, there is nothing to resume, or the folder cannot be written.
    """
    base = Path(run_dir) if run_dir else Path("outputs", "sweeps", names.now)
    if run_dir:
        path = base
    elif resume:
        path = newest(base, holds_sweep)
        if not holds_sweep(path):
            former = (newest(base.with_name(name), holds_sweep) for name in names.former)
            path = _of_other_length(base.parent, {names.lasting, names.former_lasting}) or next(
                filter(holds_sweep, former), path
            )
    else:
        path = first_free(base, holds_sweep)
    if resume and not holds_sweep(path):
        raise UserError(f"run_dir={path}: nothing to resume, sweep.json is not there; leave resume=true out")
    if not resume and holds_sweep(path):
        raise UserError(
            f"run_dir={path}: holds a sweep already; resume=true goes on with it, another run_dir starts anew"
        )
    if is_taken(path):
        raise UserError(f"run_dir={path}: holds a run; choose another folder for the sweep")
    make_folder(path, "run_dir")
    return path


def _of_other_length(folder: Path, lasting: Set[str]) -> Path | None:
    """The sweep below the folder that differs in nothing but how long its runs train; None if there is none.

    Raises:
        UserError: there are several.
    """
    found = []
    for path in sorted(folder.glob("*/sweep.json")):
        with contextlib.suppress(UserError):  # A damaged folder of another sweep is in nobody's way.
            if read_sweep(path.parent).lasting in lasting - {""}:
                found.append(path.parent)
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise UserError(f"resume=true: several sweeps may be meant ({listed}); name one with run_dir=<folder>")
    return found[0] if found else None


def write_job(folder: Path, job: Job) -> None:
    """Write down what a job is and what has become of it."""
    (folder / job.run).mkdir(parents=True, exist_ok=True)
    write_json(folder / job.run / "job.json", asdict(job))


def write_sweep(sweep: Sweep, **more: Any) -> None:
    """Write sweep.json, with `more` in it."""
    data = {**asdict(sweep), **more}
    data.pop("folder")
    write_json(sweep.folder / "sweep.json", data)


def read_sweep(folder: Path) -> Sweep:
    """The sweep with what has become of its jobs by now.

    Raises:
        UserError: it is no sweep folder, or a file in it is damaged.
    """
    if not holds_sweep(folder):
        raise UserError(f"{folder}: no sweep.json there; give the folder of a sweep (outputs/sweeps/<name>)")
    sweep: Sweep = _read(folder / "sweep.json", Sweep, folder=folder)
    jobs = {job["run"]: Job(**job) for job in sweep.jobs}  # type: ignore
    for path in sorted([*folder.glob("*/job.json"), *folder.glob("*/*/job.json")]):
        job = _read(path, Job)
        jobs[job.run] = job
    sweep.jobs = [_now(job, (folder / job.run / "summary.json").is_file()) for job in jobs.values()]
    return sweep


def _now(job: Job, has_summary: bool) -> Job:
    """The job as it is: its process may have been killed, or its run gone on with by itself."""
    if job.outcome == RUNNING and ((process := process_here(job.process)) is None or is_alive(process)):
        return job
    if job.outcome != FAILED and has_summary:
        job.outcome = FINISHED
    elif job.outcome in (RUNNING, FINISHED):
        job.outcome = STOPPED
    return job


def _read(path: Path, schema: type[Job] | type[Sweep], **more: Any) -> Any:
    try:
        data = {**read_json(path), **more}
        return schema(**{name: data[name] for name in schema.__dataclass_fields__ if name in data})
    except (UserError, TypeError):
        raise UserError(f"{path}: damaged; remove it, and the sweep with resume=true goes on") from None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: the others wait."""
    with (folder / ".writing").open("a") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
