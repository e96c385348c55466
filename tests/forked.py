"""Run commands in real processes of their own, without the seconds that every start spends on imports.

A server process imports the modules once, and is forked for each command. Each command has a
fresh interpreter state, with its own arguments, folder, environment, output and exit status.
Tests of the start itself (imports, the wheel, processes started by Lightning) use `subprocess`.
"""

import atexit
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when the server imports torch
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preload"])


def _run(module: str, arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for name, number in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(open(n, "wb", 0, closefd=False), write_through=True) for n in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    multiprocessing.set_start_method("fork", force=True)  # the default in a process that was not forked
    from wandb.sdk.data_types._private import MEDIA_TMP

    Path(MEDIA_TMP.name).mkdir(exist_ok=True)  # the server's folder: an earlier fork removed it at its end
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", 1)))
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    os._exit(status)


def start(
    module: str, arguments: list[str], cwd: Path, env: Mapping[str, str], folder: Path
) -> multiprocessing.Process:
    """Start `python -m <module> <arguments>` with this environment; output goes to files. Imports have read the old environment."""
    for name in ("out", "err"):
        (folder / name).write_text("")
    process = _CONTEXT.Process(
        target=_run, args=(module, arguments, str(cwd), dict(env), str(folder / "out"), str(folder / "err"))
    )
    process.start()
    return process  # type: ignore[return-value]


def run(
    module: str, arguments: list[str], cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Start a command as `start` does, and wait for its end.

    Raises:
        TimeoutError: the command takes too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = start(module, arguments, cwd, env, Path(folder))
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutError(f"{module} {arguments}: {(Path(folder) / 'err').read_text()[-2000:]}")
        out, err = ((Path(folder) / name).read_text(errors="replace") for name in ("out", "err"))
        assert process.exitcode is not None
        return subprocess.CompletedProcess([module, *arguments], process.exitcode, out, err)
