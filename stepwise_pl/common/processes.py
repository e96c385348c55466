"""The place of this process among those of a run. A run starts its further processes itself (through Lightning). Free of torch."""

import os
from pathlib import Path

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


def is_further() -> bool:
    """Whether the first process of a run has started this one to share the work."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and os.environ.get(_FIRST) == str(os.getppid())


def shared_folder() -> Path:
    """The run folder that the first process has put into the environment (`share_folder`)."""
    return Path(os.environ[_FOLDER])


def share_folder(path: Path) -> None:
    """Put the run folder into the environment, which the further processes inherit."""
    os.environ[_FOLDER], os.environ[_FIRST] = str(path.absolute()), str(os.getpid())


def require_first() -> None:
    """Make sure that this is the only process of its run so far, and clear a launcher's leftovers from the environment.

    An interactive shell or a batch script of Slurm is no launcher: a command there is one process, whatever SLURM_NTASKS
    says. In a further process the function does nothing.

    Raises:
        UserError: a launcher has started this process as one of several.
    """
    if is_further():
        return
    for launcher, names in _LAUNCHERS.items():
        for name in names:
            value = os.environ.get(name)
            if value == "":
                del os.environ[name]  # Lightning would read the empty text as a number
            elif value not in (None, "1" if name.endswith(_COUNTS) else "0"):
                raise UserError(
                    f"{name}={value} is in the environment: {launcher} seems to have started this process as one of "
                    "several, but a run starts its processes itself: give the command once, without a launcher, with "
                    f"trainer=ddp and trainer.devices=<processes>; if {name} was only left behind, unset it"
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
