"""The sweep around its jobs: its plan, one job of it, and its end. No model is trained."""

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from stepwise_pl.cli import multirun, workers
from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.signals import STOPS
from stepwise_pl.config.known import CONF
from stepwise_pl.config.request import SweepLength
from stepwise_pl.config.run import Config
from stepwise_pl.runs.at_work import unlock
from stepwise_pl.runs.sweep_folder import Job, Sweep, read_sweep, this_process, write_sweep


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give back the log, the signal handlers and Hydra's state, which a sweep sets for the rest of its process."""
    here = workers._Here()
    monkeypatch.setattr(workers, "here", here)
    monkeypatch.setattr(multirun, "here", here)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    taken = {number: signal.getsignal(number) for number in STOPS}
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for number, handler in taken.items():
        signal.signal(number, handler)
    GlobalHydra.instance().clear()


def composed(*arguments: str) -> DictConfig:
    """A configuration with Hydra's own part in it. Hydra stays initialised, because planning composes further ones."""
    GlobalHydra.instance().clear()
    register_schemas("train", Config)
    initialize_config_dir(str(CONF), version_base="1.3")
    return compose("train", list(arguments), return_hydra_config=True)


def begun(swept: str, *hydra: str) -> DictConfig:
    """Plan a sweep as `--multirun task=mult2x2 <swept>` does; return its configuration."""
    config = composed("task=mult2x2", *hydra)
    config.hydra.overrides.task.append(swept)
    multirun.begin(config)
    return config


def test_a_sweep_is_planned_before_its_jobs_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    try:
        config = begun("seed=1,2", f"run_dir={folder}")
    finally:
        unlock(folder)
    # 808,000 examples in batches of 32 are 25,250 steps, for 200 epochs, in two jobs.
    steps = 25_250 * 200
    said = f"sweep of 2 jobs in {folder}\n2 jobs to do, at most {2 * steps:,} steps in all\n"
    assert capsys.readouterr().out == said
    sweep = read_sweep(folder)
    assert (sweep.to_do, sweep.workers) == ({"seed1": steps, "seed2": steps}, 1)
    assert [(job.run, job.swept, job.outcome) for job in sweep.jobs] == [
        (f"seed{seed}", {"seed": str(seed)}, "waiting") for seed in (1, 2)
    ]
    assert all(job.overrides == ["task=mult2x2", job.run.replace("seed", "seed=")] for job in sweep.jobs)
    assert config.hydra.sweep.dir == str(folder) == str(workers.here.folder)
    assert all(signal.getsignal(number) is workers.stop for number in (signal.SIGINT, signal.SIGTERM))


def test_joblib_takes_its_jobs_one_by_one(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    try:
        config = begun("seed=1,2", f"run_dir={tmp_path}", "hydra/launcher=joblib")
    finally:
        unlock(tmp_path)
    assert config.hydra.launcher.batch_size == "1" and workers.here.elsewhere


@pytest.mark.parametrize(
    "swept,line",
    [
        ("run_dir=a,b", "run_dir: is one for the whole sweep; give it one value"),
        ("name=a,b", "name: is one for the whole sweep; give it one value"),
        ("resume=true,false", "resume: is one for the whole sweep; give it one value"),
        ("schedule=glob(nothing*)", "there is nothing to sweep: a glob(...) matches no choice"),
    ],
)
def test_a_sweep_over_what_is_no_setting_of_a_job_is_refused(
    swept: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        begun(swept)
    assert str(refused.value).startswith(line) and list(tmp_path.iterdir()) == []


def test_a_defect_in_the_plan_ends_the_command_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra would go on without the plan."""
    with pytest.raises(SystemExit) as ended:
        multirun.SweepStart().on_multirun_start(None)  # type: ignore[arg-type]
    assert ended.value.code == 1 and "Traceback" in capsys.readouterr().err


def test_the_first_job_knows_the_length_of_the_sweep() -> None:
    def sweep(to_do: dict[str, int | None], workers: int | None = 1) -> Sweep:
        return Sweep(Path(), "", [], [], "", to_do=to_do, workers=workers)

    assert multirun.length(sweep({"a": 100, "b": 300}), "a") == SweepLength(2, 4.0, 1)
    assert multirun.length(sweep({"a": 100, "b": 300}), "b") is None
    # If only the data tell how long a job is, all jobs count as long as the first.
    assert multirun.length(sweep({"a": None, "b": None, "c": None}, workers=2), "a") == SweepLength(3, 3, 2)
    assert multirun.length(sweep({"a": 100}, workers=8), "a") == SweepLength(1, 1.0, 1)
    assert multirun.length(sweep({"a": 100}, workers=None), "a") is None
    assert multirun.length(sweep({}), "a") is None


@pytest.mark.parametrize(
    "settings,workers",
    [
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, 1),
        ({"_target_": "joblib", "n_jobs": 3}, 3),
        ({"_target_": "joblib", "n_jobs": -1}, len(os.sched_getaffinity(0))),
        ({"_target_": "submitit", "array_parallelism": 16}, 16),
        ({"_target_": "ray"}, None),
    ],
)
def test_the_launcher_tells_how_many_jobs_run_side_by_side(settings: dict[str, Any], workers: int | None) -> None:
    assert multirun.num_workers(DictConfig(settings)) == workers


# --- one job


def done(folder: Path, *hydra: str) -> Any:
    """Do the second job of a sweep over two seeds, which a process of another machine hands out; return the objective."""
    jobs = [Job(f"seed{seed}", ["task=mult2x2", f"seed={seed}"], {"seed": str(seed)}) for seed in (0, 1)]
    write_sweep(Sweep(folder, "mine", [], ["seed"], "1 on another-machine", len(jobs), jobs))
    config = composed("task=mult2x2", "seed=1", f"hydra.sweep.dir={folder}", "hydra.job.num=1", *hydra)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        config.pop("hydra")

    def run(config: Config) -> dict[str, Any]:
        seen = [config.run_dir, config.seed, config.resume, config.logger.group]
        (folder / "seen.json").write_text(json.dumps(seen))
        return {"val_accuracy": 0.25}

    return multirun.run_job(run, config)


def test_a_worker_does_its_job_in_the_folder_of_the_job_and_returns_the_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert done(tmp_path) == 0.25
    assert json.loads((tmp_path / "seen.json").read_text()) == [str(tmp_path / "seed1"), 1, True, "mine"]
    assert capsys.readouterr().err == "[2/2] seed=1\n"
    waiting, job = (json.loads((tmp_path / "sweep.json").read_text())["jobs"][0], read_sweep(tmp_path).jobs[1])
    assert waiting["outcome"] == "waiting" and job.process == this_process()
    assert json.loads((tmp_path / "seed1/job.json").read_text())["outcome"] == "finished"
    # The first process alone takes the terminal's signals.
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is workers.leave


def test_after_a_stop_a_worker_begins_no_job_and_tells_a_sweeper_that_asks(tmp_path: Path) -> None:
    (tmp_path / workers._STOP).touch()
    assert done(tmp_path) is None
    with pytest.raises(multirun.JobFailed, match="seed=1: waiting"):
        done(tmp_path, "hydra.sweeper._target_=another.Sweeper")
    assert not (tmp_path / "seen.json").exists()
    assert [job.outcome for job in read_sweep(tmp_path).jobs] == ["waiting", "waiting"]


# --- the end


def killed() -> BaseException:
    """The error of joblib after a worker was killed."""
    pytest.importorskip("joblib")
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    return TerminatedWorkerError("a worker was killed")  # type: ignore[no-any-return]


STOPPED = "stopped; the same command with resume=true goes on\n"
KILLED = (
    "error: a process of the sweep was killed (is there enough memory?); the same command with resume=true goes on\n"
)


@pytest.mark.parametrize(
    "error,code,line",
    [(KeyboardInterrupt, 130, STOPPED), (lambda: SystemExit(143), 143, STOPPED), (killed, 2, KILLED)],
)
def test_a_sweep_ends_with_its_table_and_one_line_on_what_ended_it(
    tmp_path: Path, error: Any, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(Sweep(tmp_path, "a", ["-m"], ["seed"], this_process(), 1, [Job("seed0", [], {"seed": "0"})]))
    workers.here.folder = tmp_path
    with pytest.raises(SystemExit) as ended, multirun.closing():
        raise error()
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (code, line)
    assert "1 waiting of 1 jobs" in out and (tmp_path / "sweep.csv").is_file()


def test_a_defect_that_ends_a_sweep_is_raised_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(Sweep(tmp_path, "a", ["-m"], ["seed"], this_process(), 1, [Job("seed0", [], {"seed": "0"})]))
    workers.here.folder = tmp_path
    with pytest.raises(RuntimeError, match="a defect"), multirun.closing():
        raise RuntimeError("a defect")
    assert "1 waiting of 1 jobs" in capsys.readouterr().out
