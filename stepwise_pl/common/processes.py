"""The place of this process among those of a run. Free of torch.

A run has its processes in one of two ways. Either it starts the further ones itself, through Lightning. Or a launcher, torchrun or
srun, has started all of them, on one machine or several; then they find each other in `training.launched`.
"""

import os
from pathlib import Path
from typing import NamedTuple

from stepwise_pl.common.errors import UserError

_FOLDER, _FIRST = "STEPWISE_PL_RUN_DIR", "STEPWISE_PL_FIRST_PROCESS"  # for the further processes of a run
# Variables by which a launcher gives each process its number, and the number of processes.
_LAUNCHERS = {
    "torchrun": ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK",
        "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
    ),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"),
}  # fmt: skip
_COUNTS = ("SIZE", "NUM_TASKS")
# Variables that make torch and Lightning believe that a launcher is at work.
_MISLEADING = (*_LAUNCHERS["torchrun"], "MASTER_ADDR", "MASTER_PORT")

_has_begun = False  # whether this process knows its run folder


class Launch(NamedTuple):
    """One process of several, as its launcher describes it.

    Attributes:
        rank: the number of this process among all, from 0.
        local_rank: the same among those of its machine.
        processes: those of the run, on all machines.
        machine: the number of this machine, from 0.
        machines: their number.
    """

    launcher: str
    rank: int
    local_rank: int
    processes: int
    machine: int
    machines: int

    @property
    def per_machine(self) -> int:
        """Processes on each machine."""
        return self.processes // self.machines


def launch() -> Launch | None:
    """Return what torchrun or srun says of this process; None if it is not one of several.

    A shell or a batch script in an allocation of Slurm is no step of it: SLURM_NTASKS is there, the variables of a step are not.
    """
    of = os.environ.get
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ and (processes := int(of("WORLD_SIZE", "1"))) > 1:
            machines = processes // int(os.environ["LOCAL_WORLD_SIZE"])
            machine, rank, local = (int(os.environ[name]) for name in ("GROUP_RANK", "RANK", "LOCAL_RANK"))
            return Launch("torchrun", rank, local, processes, machine, machines)
        if (processes := int(of("SLURM_STEP_NUM_TASKS", "1"))) > 1:
            machines = int(of("SLURM_STEP_NUM_NODES") or of("SLURM_NNODES") or 1)
            rank, local, machine = (int(os.environ[name]) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"))
            return Launch("srun", rank, local, processes, machine, machines)
    except (KeyError, ValueError):
        pass  # These are leftovers: a launcher sets all of its variables, to numbers.
    return None


def is_alone_under_torchrun() -> bool:
    """Whether torchrun has started this process, and no other."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") == "1"


def is_further() -> bool:
    """Whether this process shares the work of a run, and another one is the first."""
    if (launched := launch()) is not None:
        return launched.rank > 0
    return os.environ.get("LOCAL_RANK", "0") != "0" and os.environ.get(_FIRST) == str(os.getppid())


def leaves_errors_to_another() -> bool:
    """Whether another process meets the errors that this one meets, and says them.

    So it is for all processes of a machine but its first, until the run begins. Another machine may lack a file or a package, so the
    first process of each machine speaks.
    """
    launched = launch()
    return launched is not None and launched.local_rank > 0 and not _has_begun


def shared_folder() -> Path:
    """The run folder that the first process has put into the environment (`share_folder`)."""
    return Path(os.environ[_FOLDER])


def share_folder(path: Path) -> None:
    """Put the run folder into the environment, which the further processes inherit."""
    global _has_begun
    os.environ[_FOLDER], os.environ[_FIRST] = str(path.absolute()), str(os.getpid())
    _has_begun = True


def require_first() -> None:
    """Make sure that this is the only process of its run so far, and clear a launcher's leftovers from the environment.

    An interactive shell or a batch script of Slurm is no launcher: a command there is one process, whatever SLURM_NTASKS
    says. In a further process the function does nothing.

    Raises:
        UserError: a launcher has started this process as one of several.
    """
    if launch() is None and is_further():
        return
    for launcher, names in _LAUNCHERS.items():
        for name in names:
            value = os.environ.get(name)
            if value == "":
                del os.environ[name]  # Lightning would read the empty text as a number
            elif value not in (None, "1" if name.endswith(_COUNTS) else "0"):
                raise UserError(
                    f"{name}={value} is in the environment: {launcher} seems to have started this process as one of "
                    "several. A training run takes torchrun and srun (docs/gpus.md), a sweep takes none: give the command once, "
                    f"without a launcher, with trainer=ddp and trainer.devices=<processes>; if {name} was only left behind, unset it"
                )
    for name in [name for name in os.environ if name in _MISLEADING or name.startswith("TORCHELASTIC_")]:
        del os.environ[name]


def is_alive(process: int) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
