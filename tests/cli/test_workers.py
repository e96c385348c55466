"""The processes of a sweep: the signals that each takes, and its end when the first process is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepwise_pl.cli import workers
from stepwise_pl.common.signals import TERMINAL
from stepwise_pl.runs.sweep_folder import Job, Sweep, this_process, write_sweep
from tests import background

# The first process starts a worker and waits. The worker does a job, which it saves for a moment when it is told to end.
FIRST = """
import os, pathlib, signal, sys, time
from stepwise_pl.cli import workers
from stepwise_pl.runs.sweep_folder import Sweep, this_process

folder = pathlib.Path(sys.argv[1])
sweep = Sweep(folder, "a", [], [], this_process())
if os.fork():
    signal.pause()
workers.become_worker(sweep)
workers.become_worker(sweep)  # a second job of the same worker
workers.here.job = "1/1"
(folder / "worker").write_text(str(os.getpid()))
try:
    time.sleep(60)
except SystemExit as error:
    time.sleep(0.2)
    (folder / "saved").write_text(str(error.code))
    workers.here.job = ""
    time.sleep(60)
"""


def wait_for(path: Path) -> str:
    """The text of a file, once another process has written it."""
    for _ in range(400):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise TimeoutError(str(path))


def test_a_worker_saves_its_job_and_ends_after_the_first_process_was_killed(tmp_path: Path) -> None:
    first = background.start("-c", FIRST, str(tmp_path), stderr=subprocess.PIPE)
    worker = int(wait_for(tmp_path / "worker"))
    for number in TERMINAL:
        os.kill(worker, number)  # the terminal's signals are for the first process
    first.kill()
    assert wait_for(tmp_path / "saved") == str(128 + signal.SIGTERM)
    assert (tmp_path / workers._STOP).exists()  # no further job begins
    assert first.communicate(timeout=20)[1] == ""  # at the end of the worker, which has the pipe as well
    assert first.returncode == -signal.SIGKILL


def test_the_first_signal_lets_the_workers_save_and_the_second_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    on_this_machine = this_process().partition(" ")[2]
    jobs = [
        Job("a", [], {}, "running", process=f"{worker.pid} {on_this_machine}"),
        Job("b", [], {}, "running", process=this_process()),
        Job("c", [], {}, "running", process=f"{os.getpid()} on another-machine"),
        Job("d", [], {}, "waiting"),
    ]
    write_sweep(Sweep(tmp_path, "a", [], [], this_process(), len(jobs), jobs))
    monkeypatch.setattr(workers, "here", workers._Here(folder=tmp_path, elsewhere=True))
    workers.stop(signal.SIGINT, None)
    assert worker.wait(20) == -signal.SIGTERM
    assert (tmp_path / workers._STOP).exists()
    assert capsys.readouterr().err.startswith("stopping each job after its step; a second signal stops at once")
    with pytest.raises(SystemExit) as ended:
        workers.stop(signal.SIGTERM, None)
    assert ended.value.code == 128 + signal.SIGTERM
    assert workers.here.stopping == signal.SIGTERM
