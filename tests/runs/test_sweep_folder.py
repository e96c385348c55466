"""The sweep folder: the folder that a sweep gets, and what has become of its jobs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.runs.sweep_folder import (
    Job,
    Sweep,
    SweepNames,
    open_sweep_dir,
    process_here,
    read_sweep,
    this_process,
    write_job,
    write_sweep,
)

NAMES = SweepNames(
    now="task+steps-4", lasting="task", former=("task_long", "task_former"), former_lasting="task_lasting"
)


def made(folder: Path, *jobs: Job, lasting: str = "") -> Path:
    """A sweep folder with these jobs."""
    folder.mkdir(parents=True)
    write_sweep(Sweep(folder, folder.name, [], ["seed"], this_process(), len(jobs), list(jobs), lasting=lasting))
    return folder


def test_a_process_is_known_on_its_own_machine_only() -> None:
    assert process_here(this_process()) == os.getpid()
    assert process_here("17 on another-machine") is None
    assert process_here(None) is None


def test_a_sweep_begins_in_a_new_folder_and_goes_on_in_the_newest_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = Path("outputs/sweeps", NAMES.now)
    for folder in (base, base.with_name(f"{NAMES.now}-2")):
        assert open_sweep_dir(None, NAMES, resume=False) == folder and folder.is_dir()
        made(folder / "x").joinpath("sweep.json").rename(folder / "sweep.json")
    assert open_sweep_dir(None, NAMES, resume=True) == folder


def test_a_sweep_goes_on_in_a_folder_of_another_length_or_of_the_former_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    former = made(Path("outputs/sweeps", NAMES.former[-1]))
    assert open_sweep_dir(None, NAMES, resume=True) == former
    former = made(Path("outputs/sweeps", NAMES.former[0]))
    assert open_sweep_dir(None, NAMES, resume=True) == former
    longer = made(Path("outputs/sweeps/task+steps-8"), lasting=NAMES.lasting)
    damaged = Path("outputs/sweeps/another")
    damaged.mkdir()
    (damaged / "sweep.json").write_text("{")
    assert open_sweep_dir(None, NAMES, resume=True) == longer
    made(Path("outputs/sweeps/task+steps-9"), lasting=NAMES.former_lasting)
    with pytest.raises(UserError, match="several sweeps may be meant .*steps-8, .*steps-9"):
        open_sweep_dir(None, NAMES, resume=True)


def test_a_folder_that_a_sweep_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"run_dir={tmp_path}: nothing to resume, sweep.json is not there"):
        open_sweep_dir(str(tmp_path), NAMES, resume=True)
    sweep = made(tmp_path / "sweep")
    with pytest.raises(UserError, match="holds a sweep already; resume=true goes on with it"):
        open_sweep_dir(str(sweep), NAMES, resume=False)
    assert open_sweep_dir(str(sweep), NAMES, resume=True) == sweep
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run; choose another folder for the sweep"):
        open_sweep_dir(str(tmp_path / "run"), NAMES, resume=False)


def test_a_job_is_what_its_process_and_its_summary_say(tmp_path: Path) -> None:
    """A running job whose process is gone has stopped. A run that went on by itself has finished its job."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = this_process()
    was_here = here.replace(str(os.getpid()), str(gone.pid), 1)
    jobs = {
        "alive": (Job("alive", [], {}, "running", process=here), "running"),
        "elsewhere": (Job("elsewhere", [], {}, "running", process="1 on another-machine"), "running"),
        "killed": (Job("killed", [], {}, "running", process=was_here), "stopped"),
        "went-on": (Job("went-on", [], {}, "stopped", process=was_here), "finished"),
        "emptied": (Job("emptied", [], {}, "finished", process=was_here), "stopped"),
        "failed": (Job("failed", [], {}, "failed", process=was_here), "failed"),
    }
    folder = made(tmp_path / "sweep", *(job for job, _ in jobs.values()))
    for name in ("went-on", "failed"):
        write_job(folder, jobs[name][0])
        (folder / name / "summary.json").write_text("{}")
    assert {job.run: job.outcome for job in read_sweep(folder).jobs} == {name: now for name, (_, now) in jobs.items()}


def test_a_folder_without_a_sweep_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: no sweep.json there; give the folder of a sweep"):
        read_sweep(tmp_path)
