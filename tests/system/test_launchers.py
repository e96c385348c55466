"""Runs whose processes torchrun or srun has started, on one machine, and on two that are one."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import OFFLINE, REPO, SMALL, command

pytestmark = pytest.mark.long

SHORT = (*SMALL, "trainer.duration=8steps", "trainer=ddp", "trainer.accelerator=cpu")
LEFTOVERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK")


def environment(**more: str) -> dict[str, str]:
    """The environment without launchers, and then some variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    return {**{name: value for name, value in clean.items() if name not in LEFTOVERS}, **OFFLINE, **more}


def torchrun(*launch: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "stepwise_pl.train"]


def ended(running: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for processes that wait for each other; their status, output and errors."""
    try:
        said = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(running, said, strict=True)]


def started(words: Sequence[str], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, cwd=REPO, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def require_whole(run: Path, said: Sequence[tuple[int, str, str]]) -> None:
    """The run has ended, and each line was printed once, by whichever process."""
    assert [status for status, _, _ in said] == [0] * len(said), [errors[-2000:] for _, _, errors in said]
    assert json.loads((run / "summary.json").read_text())["steps"] == 8
    together = "\n".join(text for _, *texts in said for text in texts)
    for line in (f"run folder: {run}", "length: 8 steps", "step 8 of 8", "test accuracy"):
        assert together.count(line) == 1, together


def test_torchrun_gives_the_weights_of_a_run_that_starts_its_processes_itself(tmp_path: Path) -> None:
    command("train", *SHORT, f"run_dir={tmp_path / 'own'}")
    run = tmp_path / "run"
    words = [*torchrun("--nproc_per_node", "2"), *SHORT, f"run_dir={run}"]
    require_whole(run, ended([started(words, environment())]))
    own, launched = weights(tmp_path / "own"), weights(run)
    assert own.keys() == launched.keys() and all(torch.equal(own[name], launched[name]) for name in own)
    ((status, _, errors),) = ended([started([*words, "resume=true", "trainer.duration=12steps"], environment())])
    assert status == 0, errors[-2000:]
    assert json.loads((run / "summary.json").read_text())["steps"] == 12


def test_two_machines_of_two_processes_train_as_one_process_does(tmp_path: Path) -> None:
    command("train", *SHORT, "trainer.devices=1", f"run_dir={tmp_path / 'alone'}")
    run = tmp_path / "run"
    meeting = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}", "--rdzv_id", "7")
    words = [
        *torchrun("--nnodes", "2", "--nproc_per_node", "2", *meeting),
        *SHORT,
        "trainer.num_nodes=2",
        f"run_dir={run}",
    ]
    said = ended([started(words, environment()) for _ in range(2)])
    require_whole(run, said)
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


def slurm(rank: int, job: int) -> dict[str, str]:
    """The variables that srun gives to each of two processes on one machine. The allocation's own count says nothing."""
    return {
        "SLURM_JOB_ID": str(job), "SLURM_JOB_NAME": "bash", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "localhost", "SLURM_NODELIST": "localhost",
    }  # fmt: skip


def test_srun_gives_one_run(tmp_path: Path) -> None:
    run, job = tmp_path / "run", free_port()
    words = [sys.executable, "-m", "stepwise_pl.train", *SHORT, f"run_dir={run}"]
    require_whole(run, ended([started(words, environment(**slurm(rank, job))) for rank in range(2)]))
    # The folder is taken now. The first process says so, and the second, which would wait for it, ends.
    said = ended([started(words, environment(**slurm(rank, job))) for rank in range(2)])
    assert [status for status, _, _ in said] == [2, 2]
    assert "".join(errors for _, _, errors in said).count("error: ") == 1
    assert f"run_dir={run}: holds a run already" in said[0][2]


@pytest.mark.parametrize(
    "words,message",
    [
        (("trainer.devices=1",), "torchrun has started 2 processes on 1 machine; write trainer.devices=2 trainer.num_nodes=1"),
        (("trainer.num_nodes=2",), "torchrun has started 2 processes on 1 machine; write trainer.devices=2 trainer.num_nodes=1"),
        (("trainer.devices=0",), "trainer.devices=0: must be at least 1"),
        (("-m", "seed=0,1"), "A training run takes torchrun and srun (docs/gpus.md), a sweep takes none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_processes_is_refused_in_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    run = [*torchrun("--nproc_per_node", "2"), *SHORT, *words, f"run_dir={tmp_path / 'run'}"]
    ((status, _, errors),) = ended([started(run, environment())])
    assert status != 0 and message in errors and not (tmp_path / "run").exists()
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1


def test_torchrun_with_one_process_does_not_start_more_on_the_quiet(tmp_path: Path) -> None:
    run = [*torchrun("--nproc_per_node", "1"), *SHORT, f"run_dir={tmp_path / 'run'}"]
    ((status, _, errors),) = ended([started(run, environment())])
    assert status != 0 and "torchrun has started one process; give it --nproc_per_node" in errors
    assert not (tmp_path / "run").exists()


def test_a_signal_to_one_process_stops_all_after_the_step(tmp_path: Path) -> None:
    """torchrun and srun send it to all; one is enough, and the run goes on later."""
    run, job = tmp_path / "run", free_port()
    long = [sys.executable, "-m", "stepwise_pl.train", *SHORT, "trainer.duration=100000steps", f"run_dir={run}"]
    both = [started(long, environment(**slurm(rank, job))) for rank in range(2)]
    for line in both[0].stderr or ():
        if line.startswith("checkpoints take"):
            break
    for line in both[0].stderr or ():
        if line.startswith(("step ", "the run takes")):
            break
    both[0].send_signal(signal.SIGTERM)
    said = ended(both)
    assert [status for status, _, _ in said] == [128 + signal.SIGTERM] * 2, said
    assert (run / "checkpoints" / "last.ckpt").is_file()
