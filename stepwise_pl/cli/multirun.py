"""`python -m stepwise_pl.train --multirun`: the sweep around its jobs, whatever sweeper and launcher Hydra uses.

The process that is started plans: it names the sweep folder, checks every job's
configuration, and writes sweep.json (`SweepStart`, called by Hydra). Each job, in this
process or in another one, finds the sweep folder in Hydra's configuration, and writes what
has become of it into its run folder (`run_job`). At the end the first process makes the
table and the figures (`closing`).
"""

import contextlib
import gc
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from stepwise_pl.cli.former_names import AMBIGUOUS, FORMER, LONG
from stepwise_pl.cli.names import NOW, canonical, keys_of, run_apart
from stepwise_pl.cli.overrides import quoted
from stepwise_pl.cli.recipes import left_out, with_recipes
from stepwise_pl.cli.words import error_line, fail, say
from stepwise_pl.cli.workers import _STOP, become_worker, here, stop
from stepwise_pl.common import plugins, processes, registry, signals, terminal
from stepwise_pl.common.disk import read_json
from stepwise_pl.common.errors import UserError, first_line
from stepwise_pl.config.plain import to_object
from stepwise_pl.config.request import SweepLength
from stepwise_pl.config.run import Config, require_folder_name
from stepwise_pl.reporting.sweep_text import of_last_command, report
from stepwise_pl.runs import sweep_folder as folders
from stepwise_pl.runs.at_work import lock, unlock
from stepwise_pl.runs.marks import holds_run
from stepwise_pl.runs.outlook import most_steps, sweep_line
from stepwise_pl.runs.resumed_config import finished, resumed_config
from stepwise_pl.runs.sweep_folder import FAILED, FINISHED, RUNNING, STOPPED, Job, Sweep, SweepNames

log = logging.getLogger("stepwise_pl")


class JobFailed(Exception):
    """For a sweeper that wants to know: the job has no result."""


class SweepStart(Callback):
    """Hydra calls it before the sweeper begins (`hydra.callbacks` in train.yaml)."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            begin(config)
        except Exception as error:
            # Hydra would turn this exception into a warning and go on.
            if (line := error_line(error)) is None:
                traceback.print_exc()
            raise SystemExit(fail(line) if line else 1) from None


def begin(config: DictConfig) -> None:
    """Plan the sweep: its folder, its jobs and their configurations; from here on signals end all of it.

    Raises:
        UserError: a job's configuration is wrong, `run_dir`, `resume` or `name` is swept, the folder cannot be used, or a launcher has started this process as
            one of several.
    """
    processes.require_first()
    arguments = list(config.hydra.overrides.task)
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(arguments)
    swept = swept_keys(config, parsed)
    if about_sweep := [key for key in ("run_dir", "resume", "name") if key in swept]:
        raise UserError(
            f"{about_sweep[0]}: is one for the whole sweep; give it one value, each job gets a folder below run_dir"
        )
    planned = plan(config, parsed, swept)
    (run_dir, resume) = (planned[0][1].run_dir, planned[0][1].resume) if planned else (config.run_dir, config.resume)
    require_folder_name(config.name)
    names = SweepNames(
        now=config.name or NOW.sweep_name(config, parsed, swept),
        lasting=config.name or NOW.sweep_name(config, parsed, swept, with_length=False),
        former=() if config.name else tuple(names.sweep_name(config, parsed, swept) for names in FORMER),
        former_lasting="" if config.name else LONG.sweep_name(config, parsed, swept, with_length=False),
    )
    folder = folders.open_sweep_dir(run_dir, names, resume)
    lock(folder)
    (folder / _STOP).unlink(missing_ok=True)
    found = [run_in(folder, job, one) for job, one in planned]
    former = {run for run, (job, _) in zip(found, planned, strict=True) if run != job.run}
    for run, (job, one) in zip(found, planned, strict=True):
        # Before names were one to one, the folder with this job's name may have become that of another job.
        job.run = run_apart(job) if run == job.run and run in former else run
        job.outcome = outcome_before(folder, job, one)
        if (run in former or job.outcome != FINISHED) and (folder / job.run / "job.json").is_file():
            folders.write_job(folder, job)  # a failed job is tried again
    total = len(planned) or config.hydra.sweeper.get("n_trials")
    jobs = [job for job, _ in planned]
    runs = [job.run for job in jobs]
    to_do = {job.run: most_steps(one) for job, one in planned if job.outcome != FINISHED}
    workers = num_workers(config.hydra.launcher)
    folders.write_sweep(
        Sweep(
            folder, names.now, here.words or sys.argv[1:], swept, folders.this_process(), total, jobs, runs, names.lasting,
            to_do, workers,
        )
    )  # fmt: skip
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(folder)
        if config.hydra.launcher.get("batch_size") == "auto":
            # joblib would make bundles of jobs after some that were short, such as finished ones.
            config.hydra.launcher.batch_size = "1"
        # A job's configuration is composed anew, from these.
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(folder))}")
    here.folder = folder
    here.elsewhere = not config.hydra.launcher._target_.endswith(".BasicLauncher")
    for number in filter(signals.is_free, signals.STOPS):
        signal.signal(number, stop)
    done, begun = (sum(job.outcome == outcome for job in jobs) for outcome in (FINISHED, STOPPED))
    new = f", {len(jobs) - done - begun} to begin" if done + begun < len(jobs) else ""
    states = f": {done} finished already, {begun} to go on with{new}" if resume and jobs else ""
    say(f"sweep of {total or 'so many'} jobs in {folder}{states}")
    if to_do:
        say(sweep_line(to_do.values(), workers))


def num_workers(launcher: DictConfig) -> int | None:
    """The number of jobs that the launcher does side by side; None if its settings do not tell."""
    if launcher._target_.endswith(".BasicLauncher"):
        return 1
    count: int | None = launcher.get("n_jobs") or launcher.get("array_parallelism")
    if count is None or count > 0:
        return count
    import joblib  # its launcher is there; negative counts are joblib's: -1 is every core that this process may use

    return int(joblib.effective_n_jobs(count))


def length(sweep: Sweep, run: str) -> SweepLength | None:
    """The length of the sweep for the first of its jobs that are to do; None for the others, or if it is not known."""
    if run != next(iter(sweep.to_do), None) or not sweep.workers:
        return None
    steps, own = [count for count in sweep.to_do.values() if count is not None], sweep.to_do[run]
    jobs = len(sweep.to_do)
    times = sum(steps) / own if own and len(steps) == jobs else jobs
    return SweepLength(jobs, times, min(sweep.workers, jobs))


def swept_keys(config: DictConfig, parsed: Sequence[Override]) -> list[str]:
    """The keys that the sweeper gives values to, in the order of the command line."""
    sweeper = config.hydra.sweeper
    keys = [one.get_key_element() for one in parsed if one.is_sweep_override()]
    found = [*keys, *(sweeper.get("params") or {}), *(sweeper.get("search_space") or {})]
    return list(dict.fromkeys(key.lstrip("+") for key in found))


def plan(config: DictConfig, parsed: Sequence[Override], swept: Sequence[str]) -> list[tuple[Job, Config]]:
    """The jobs of Hydra's own sweeper, with their checked configurations; none if another sweeper decides as it goes on.

    Prints what was left out of recipes, each line once for all jobs.

    Raises:
        UserError: a configuration is wrong.
    """
    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return []
    loader = GlobalHydra.instance().config_loader()
    params = OverridesParser.create(loader).parse_overrides(
        [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    )
    (batch,) = BasicSweeper.split_arguments([*params, *parsed], None)
    out: dict[str, tuple[Job, Config]] = {}
    lines: dict[str, None] = {}
    for overrides in batch:
        try:
            composed = loader.load_sweep_config(config, overrides)
        except UserError as error:
            raise UserError(with_recipes(str(error), swept)) from None
        lines |= dict.fromkeys(filter(None, [composed.hydra.runtime.left_out]))
        with read_write(composed), open_dict(composed):
            composed.pop("hydra")
        one = checked(composed)
        job = job_of(overrides, swept, one.seed)
        out.setdefault(job.run, (job, one))  # the same job twice is one
    if not out:
        raise UserError("there is nothing to sweep: a glob(...) matches no choice")
    for line in lines:
        say(line)
    return list(out.values())


def checked(cfg: DictConfig) -> Config:
    """The configuration of a job as its dataclass.

    Raises:
        UserError: it is wrong, or cannot be one of a sweep.
    """
    config: Config = to_object(cfg)
    if config.trainer.processes > 1:
        # Lightning starts the further processes with this very command line, sweep and all.
        raise UserError(
            f"--multirun with trainer.devices={config.trainer.devices}: sweep with one device per run, or start the runs one by one"
        )
    if config.trainer.max_time is not None:
        raise UserError(
            "trainer.max_time: is about one run; for a sweep give the limit to the launcher, and resume=true goes on"
        )
    return config


def job_of(overrides: Sequence[str], swept: Sequence[str], seed: int) -> Job:
    """The job with these overrides, without `run_dir` and `resume`, which belong to the sweep."""
    values = dict(map(canonical, overrides))
    chosen = {key: value for key in swept if (value := values.get(key)) is not None}
    own = [override for override in overrides if not override.startswith(("run_dir=", "resume="))]
    return Job(NOW.run_of(chosen, seed), own, chosen)


def run_in(folder: Path, job: Job, config: Config) -> str:
    """The run folder of a job in this sweep folder: under a former name if that holds this very job, else `Job.run`."""
    # Names that are no longer made took the values as they were written.
    places = (LONG.run_of(job.swept, config.seed), AMBIGUOUS.run_of(as_written(job), config.seed))
    return next(
        (run for former in places if (run := _run_of_former_name(folder, job, config, former)) != job.run), job.run
    )


def _run_of_former_name(folder: Path, job: Job, config: Config, former: str) -> str:
    """`former` if that folder holds this very job, else `Job.run`."""
    if former == job.run or (folder / job.run).exists() or not (folder / former / "job.json").is_file():
        return job.run
    if not (folder / former / "config.yaml").is_file():
        before = read_json(folder / former / "job.json").get("swept") or {}
        same = dict(canonical(f"{key}={value}") for key, value in before.items()) == job.swept
        return former if same else job.run
    try:
        resumed_config(folder / former, config, keys_of(job.overrides))
    except UserError:
        return job.run
    return former


def as_written(job: Job) -> dict[str, str]:
    """The swept keys and values as they stand in the job's overrides, quotes and all."""
    written = {override.partition("=")[0]: override.partition("=")[2] for override in job.overrides}
    return {key: value for key, value in written.items() if key.lstrip("+") in job.swept}


def outcome_before(folder: Path, job: Job, config: Config) -> str:
    """The outcome of a job in an earlier session, judged by the configuration that the job is to have now.

    Raises:
        UserError: its run has a configuration that may not become this one.
    """
    path = folder / job.run
    if not (path / "config.yaml").is_file():
        return job.outcome
    config = resumed_config(path, config, keys_of(job.overrides))
    if finished(path, config) is not None:
        return FINISHED
    return STOPPED if holds_run(path) else job.outcome


def run_job(run: Callable[[Config], dict[str, Any]], cfg: DictConfig) -> float | list[float] | None:
    """Do one job of the sweep, in whatever process; return the objective, None if there is none.

    Raises:
        JobFailed: there is none, and the sweeper is not Hydra's own (which would only say so once more).
        SystemExit: stopped, in the process that hands out the jobs.
    """
    terminal.prepare()  # another process may not have done it
    registry.load_all()
    settings = HydraConfig.get()
    sweep = folders.read_sweep(Path(settings.sweep.dir))
    overrides = list(settings.overrides.task)
    job = job_of(overrides, sweep.swept, cfg.seed)
    # The process that hands out the jobs may have found the job under its former name.
    known = next((one for one in sweep.jobs if one.overrides == job.overrides), job)
    job.run = known.run
    before = next((one for one in sweep.jobs if one.run == job.run), job)
    here.job, here.label = f"{settings.job.num + 1}/{sweep.total or '?'}", job.label
    here.sweep = length(sweep, job.run)
    here.cell = job.run.rpartition("/")[0]
    here.worker = sweep.process != folders.this_process()
    if here.worker:
        become_worker(sweep)
    logging.basicConfig(level=logging.INFO, format=f"[{here.job}] %(message)s", stream=sys.stderr, force=True)
    is_planned = settings.sweeper._target_.endswith(".BasicSweeper")
    if (line := left_out()) and not is_planned:
        log.info("%s", line)
    job = replace(job, outcome=RUNNING, process=folders.this_process())
    # First, so that whoever stops the sweep finds this process, or it finds the stop.
    folders.write_job(sweep.folder, job)
    result = None
    try:
        if (sweep.folder / _STOP).exists():
            job = before
        else:
            result = attempt(run, cfg, sweep, job)
    except (SystemExit, KeyboardInterrupt):
        job.outcome = STOPPED
        if not here.worker:
            raise
    finally:
        unlock(sweep.folder / job.run)
        folders.write_job(sweep.folder, job)
        here.job = ""
        gc.collect()  # Lightning leaves objects that refer to each other
    if result is None and not is_planned:
        raise JobFailed(f"{job.label}: {job.error or job.outcome}")
    return result


def attempt(
    run: Callable[[Config], dict[str, Any]], cfg: DictConfig, sweep: Sweep, job: Job
) -> float | list[float] | None:
    """Do the job; its outcome goes to `job`. Return the objective, or None if it failed."""
    path = sweep.folder / job.run
    try:
        plugins.load_installed()
        for name in cfg.plugins:
            plugins.load(name)
        config = checked(cfg)
        config.run_dir, config.resume = str(path), True
        config.logger.group = config.logger.group or sweep.name
        log.info("%s", job.label)
        result = objective(run(config), config.objective)
        job.outcome = FINISHED
        refresh(sweep.folder, job)
        return result
    except Exception as error:
        if (line := error_line(error)) is None:  # a defect
            traceback.print_exc()
            line = f"{type(error).__name__}: {first_line(error)}"
        job.outcome, job.error = FAILED, line
        log.error("error: %s", line)
        return None


def refresh(folder: Path, job: Job) -> None:
    """Bring the table up to date with a job that is over; the sweep does not fail for it."""
    from stepwise_pl.reporting.sweep import refresh

    folders.write_job(folder, job)
    with contextlib.suppress(UserError, OSError):
        refresh(folder)


def objective(summary: dict[str, Any], names: str | list[str]) -> float | list[float]:
    """The objective for the sweeper, from a run's summary."""

    def value(name: str) -> float:
        return -1.0 if summary[name] is None else float(summary[name])

    return value(names) if isinstance(names, str) else [value(name) for name in names]


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """Around a command: if it was a sweep, end it with its table and figures.

    Raises:
        SystemExit: of status 2 if a job failed, 128 and the signal's number if it was stopped.
    """
    try:
        yield
    except BaseException as error:
        if here.folder is None:
            raise
        if isinstance(error, KeyboardInterrupt):
            here.stopping = here.stopping or signal.SIGINT
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
            here.stopping = here.stopping or error.code - 128
        end(None if here.stopping or isinstance(error, JobFailed) else error)
    else:
        if here.folder is not None:
            end(None)


def end(error: BaseException | None) -> None:
    """Print the table, draw the figures, say what is to do next; raise what the command ends with.

    Args:
        error: what ended the sweep, other than a signal or a failed job.
    """
    from stepwise_pl.reporting.sweep import refresh

    assert here.folder is not None
    # Hydra has taken the handlers away after the last job.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    sweep, cells = refresh(here.folder, draw=True)
    say(report(sweep, cells))
    again = "the same command with resume=true goes on"
    if here.stopping:
        sys.stderr.write(f"stopped; {again}\n")
        raise SystemExit(128 + here.stopping)
    if error is not None:
        if type(error).__name__ == "TerminatedWorkerError":
            raise SystemExit(fail(f"a process of the sweep was killed (is there enough memory?); {again}"))
        raise error
    mine = of_last_command(sweep)
    if failed := sum(job.outcome == FAILED for job in mine):
        raise SystemExit(
            fail(f"{failed} of {len(mine)} jobs failed; the same command with resume=true tries them again")
        )
