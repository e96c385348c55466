"""Variables of launchers around a run: the run works, or one line says at once what to do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stepwise_pl.common import processes
from stepwise_pl.common.errors import UserError
from tests.conftest import REPO, SMALL, command

TINY = (*SMALL, "trainer.duration=2steps", "data.cache_dir=null")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.long
@pytest.mark.parametrize(
    "env",
    [
        {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"},  # an allocation's shell
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},  # a batch script
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "0", "PMI_SIZE": "1"},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "10.1.2.3", "MASTER_PORT": "1"},
        {"LOCAL_RANK": "", "SLURM_PROCID": ""},
    ],
)  # fmt: skip
def test_one_process_works_with_leftovers_of_launchers(tmp_path: Path, env: dict[str, str]) -> None:
    command("train", *TINY, f"run_dir={tmp_path}", **env)
    assert (tmp_path / "summary.json").is_file() and (tmp_path / "metrics.csv").is_file()


@pytest.mark.parametrize(
    "env,named",
    [
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1"),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2"}, "SLURM_PROCID=1"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4"),
        ({"PMI_RANK": "3"}, "PMI_RANK=3"),
        ({"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "2"}, "JSM_NAMESPACE_SIZE=2"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK=one"),
    ],
)
def test_one_of_several_processes_is_refused_in_one_line(
    env: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{named} is in the environment: "):
        processes.require_first()


def test_a_further_process_is_recognised_by_its_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEPWISE_PL_RUN_DIR", "")  # so that monkeypatch restores it
    monkeypatch.setenv("STEPWISE_PL_FIRST_PROCESS", "")
    processes.share_folder(tmp_path)
    code = "from stepwise_pl.common import processes as p; print(p.is_further(), p.shared_folder())"
    env = {**os.environ, "LOCAL_RANK": "1", "PYTHONPATH": str(REPO)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert out.stdout.strip() == f"True {tmp_path}", out.stderr
    assert not processes.is_further()


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")])
def test_the_refusal_comes_at_once_and_leaves_no_folder(tmp_path: Path, sweep: tuple[str, ...]) -> None:
    out = command(
        "train",
        *sweep,
        *TINY,
        cwd=tmp_path,
        check=False,
        LOCAL_RANK="1",
        RANK="1",
        WORLD_SIZE="2",
        PYTHONPATH=str(REPO),
    )
    (line,) = out.stderr.splitlines()
    assert out.returncode == 2 and line.startswith(
        "error: RANK=1 is in the environment: torchrun seems to have started"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "env,found",
    [
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
         ("torchrun", 5, 1, 8, 1, 2)),
        ({"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"},
         ("srun", 4, 0, 6, 2, 3)),
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "one"}, None),
    ],
)  # fmt: skip
def test_a_launcher_is_known_by_all_its_variables(
    env: dict[str, str], found: tuple[object, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    launched = processes.launch()
    assert launched == found and processes.is_further() == (launched is not None)
    assert launched is None or launched.per_machine == launched.processes // launched.machines
    # The first process of each machine says what goes wrong there.
    monkeypatch.setattr(processes, "_has_begun", False)
    assert processes.leaves_errors_to_another() == (launched is not None and launched.local_rank > 0)
    monkeypatch.setattr(processes, "_has_begun", True)
    assert not processes.leaves_errors_to_another()


@pytest.mark.long
def test_two_processes_work_with_a_leftover_rank_and_stop_on_a_hangup(tmp_path: Path) -> None:
    """LOCAL_RANK=0 once made the first process wait for the others for ever."""
    both = (*TINY, "trainer=ddp", "trainer.accelerator=cpu", f"run_dir={tmp_path}")
    env = {**os.environ, "LOCAL_RANK": "0", "MASTER_ADDR": "10.1.2.3", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job"}
    run = [sys.executable, "-m", "stepwise_pl.train", *both]
    out = subprocess.run(run, cwd=REPO, capture_output=True, text=True, timeout=300, env=env)
    assert out.returncode == 0, out.stderr[-2000:]
    driven = [
        sys.executable,
        "-m",
        "tests.driver",
        "--end=after the step,7,SIGHUP",
        "--",
        *both,
        "resume=true",
        "trainer.duration=40steps",
    ]
    out = subprocess.run(driven, cwd=REPO, capture_output=True, text=True, timeout=300, env=env)
    assert out.returncode == 128 + signal.SIGHUP, out.stderr[-2000:]
    assert out.stderr.count(f"stopped; the same command with run_dir={tmp_path} resume=true goes on") == 1


@pytest.mark.parametrize(
    "leftovers",
    [{"LOCAL_RANK": "", "MASTER_ADDR": "10.1.2.3", "MASTER_PORT": "1"}, {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}],
)  # fmt: skip
def test_leftovers_of_one_process_are_cleared_from_the_environment(
    leftovers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in leftovers.items():
        monkeypatch.setenv(name, value)
    processes.require_first()
    assert not leftovers.keys() & os.environ.keys()


def test_a_further_process_keeps_its_rank_and_finds_the_folder_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("STEPWISE_PL_FIRST_PROCESS", str(os.getppid()))
    monkeypatch.setenv("STEPWISE_PL_RUN_DIR", str(tmp_path))
    processes.require_first()
    assert os.environ["LOCAL_RANK"] == "1" and processes.shared_folder() == tmp_path
