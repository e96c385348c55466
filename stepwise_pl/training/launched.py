"""Processes that torchrun or srun has started find each other, and wait until the first has prepared the run folder."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from stepwise_pl.common import processes
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.processes import Launch
from stepwise_pl.config.training import TrainerConfig
from stepwise_pl.models.devices import accelerator_of

# The others wait for as long as the first needs for downloads and for tokenising.
PATIENCE = timedelta(hours=6)
CPU = torch.device("cpu")


class Launched(ClusterEnvironment):
    """The processes of a launcher, for Lightning. Lightning's own classes obey further variables, such as the name of a Slurm job."""

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self.launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    def detect() -> bool:
        return processes.launch() is not None

    def world_size(self) -> int:
        return self.launch.processes

    def global_rank(self) -> int:
        return self.launch.rank

    def local_rank(self) -> int:
        return self.launch.local_rank

    def node_rank(self) -> int:
        return self.launch.machine

    def set_world_size(self, size: int) -> None:
        """Do nothing: the launcher has set it."""

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the launcher has set it."""


def require_fitting(cfg: TrainerConfig, launch: Launch) -> None:
    """Raise `UserError` if the launcher has started other processes than the configuration asks for."""
    if (cfg.devices, cfg.num_nodes) != (launch.per_machine, launch.machines):
        raise UserError(
            f"trainer.devices={cfg.devices} trainer.num_nodes={cfg.num_nodes}: {launch.launcher} has started {launch.processes} processes on "
            f"{launch.machines} machine{'s' * (launch.machines > 1)}; write trainer.devices={launch.per_machine} "
            f"trainer.num_nodes={launch.machines}, with trainer=ddp or trainer=fsdp2"
        )


class Gathered:
    """The processes of a run that have found each other (`gathered`)."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._has_spoken = False
        # Training keeps torch's own patience: a process that hangs there is noticed after minutes.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def tell(self, run_dir: Path | None) -> None:
        """In the first process: let the others begin, in the run folder; None: tell them that the run cannot begin. Only the first call counts."""
        if self.launch.rank == 0 and not self._has_spoken:
            self._has_spoken = True
            dist.broadcast_object_list(
                [None if run_dir is None else str(run_dir.absolute())], src=0, group=self._group, device=CPU
            )

    def wait(self) -> None:
        """In a further process: wait for the first, and take its run folder.

        Raises:
            SystemExit: the first has told its user why the run cannot begin.
        """
        told: list[Any] = [None]
        dist.broadcast_object_list(told, src=0, group=self._group, device=CPU)
        if told[0] is None:
            raise SystemExit(2)
        processes.share_folder(Path(told[0]))


@contextlib.contextmanager
def gathered(cfg: TrainerConfig, launch: Launch) -> Iterator[Gathered]:
    """Bring the processes together. An error in the first one, before it has told the others to begin, ends these as well.

    Lightning finds the connection and uses it.

    Raises:
        UserError: there are other processes than the configuration asks for, or they do not find each other.
    """
    require_fitting(cfg, launch)
    if launch.launcher == "srun":
        _meet_by_slurm()
    has_gpus = accelerator_of(cfg.accelerator, "trainer.accelerator") == "gpu"
    if has_gpus:
        torch.cuda.set_device(launch.local_rank)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
            rank=launch.rank,
            world_size=launch.processes,
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"{launch.launcher}: the processes do not find each other at {where} ({error})") from None
    rank_zero_only.rank = launch.rank  # type: ignore[attr-defined]  # srun sets no variable that Lightning reads on every machine
    others = Gathered(launch)
    try:
        if launch.rank:
            others.wait()
        yield others
    except BaseException:
        with contextlib.suppress(RuntimeError):
            others.tell(None)
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _meet_by_slurm() -> None:
    """Choose the machine of the first process, and a port by the numbers of job and step, unless the user has."""
    names = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(names))
    job, step = (int(os.environ.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    # Two jobs of one machine get two ports, unless their numbers lie 16,384 apart. From 32,768 on Linux gives ports to connections.
    os.environ.setdefault("MASTER_PORT", str(15_000 + (job + step) % 16_384))
