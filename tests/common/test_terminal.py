"""Output to terminals with few characters, to closed pipes, and to nothing; and interpreters without docstrings."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stepwise_pl.common import terminal
from tests.conftest import OFFLINE, REPO, SMALL

TRAIN = (*SMALL, "trainer.duration=4steps", "schedule.delta=1/2")
LINES = "".join(f"{i % 5} {i // 5}||{i % 5} → {i // 5} #### {i % 3}\n" for i in range(60))


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in bash, in which `train` and the other commands are words."""
    names = ("train", "evaluate", "check_data", "write_data", "compare", "report", "sweep")
    functions = "\n".join(f'{name}() {{ "{sys.executable}" -m stepwise_pl.{name} "$@"; }}' for name in names)
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail\n{functions}\n{line}"], cwd=cwd, capture_output=True, timeout=300, encoding="utf-8", errors="replace",
        env={**os.environ, **OFFLINE, "PYTHONPATH": str(REPO), **env},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_characters_shows_replacements(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "übung.txt").write_text(LINES)
    out = shell(
        "check_data task=file task.train=übung.txt task.validation_size=5 task.test_size=5",
        tmp_path,
        PYTHONIOENCODING=encoding,
    )
    assert (out.returncode, "Traceback" in out.stderr) == (0, False), out.stderr
    assert "?" in out.stdout and "Δ" not in out.stdout
    out = shell("check_data task=file task.train=nicht-→.txt", tmp_path, PYTHONIOENCODING=encoding)
    assert out.returncode == 2 and len(out.stderr.splitlines()) == 1 and "nicht-?.txt: No such file" in out.stderr


@pytest.mark.long
def test_a_closed_pipe_does_not_end_the_command(tmp_path: Path) -> None:
    words = " ".join(TRAIN)
    out = shell(f"train {words} run_dir=run | head -c 1; echo ${{PIPESTATUS[0]}} >&2", tmp_path)
    assert (
        out.stderr.splitlines()[-1] == "0" and "Traceback" not in out.stderr and "Exception ignored" not in out.stderr
    )
    assert (tmp_path / "run" / "summary.json").is_file()
    # The command goes on after its first line, though nobody reads the rest.
    out = shell("write_data task=mult2x2 task.digits=1 out=data | true; echo ${PIPESTATUS[0]} >&2", tmp_path)
    assert out.stderr.splitlines()[-1] == "0" and (tmp_path / "data" / "test.txt").is_file()
    out = shell("evaluate run=run speed_problems=0 2>&1 | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert out.stdout.splitlines()[-1] == "0" and len(list((tmp_path / "run" / "evaluations").glob("*.json"))) == 1
    out = shell("evaluate run=nowhere 2>&1 | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert out.stdout.splitlines()[-1] == "2"
    out = shell("train --help | head -1; echo ${PIPESTATUS[0]} >&2", tmp_path)
    assert out.stderr == "0\n"
    # A sweep prints a line for each of its jobs.
    out = shell(f"train -m {words} seed=0,1 run_dir=sweep 2>/dev/null | true; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert out.stdout == "0\n" and len(list((tmp_path / "sweep").rglob("summary.json"))) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    "closed", [">&- 2>&-", *(pytest.param(one, marks=pytest.mark.long) for one in (">&-", "2>&-"))]
)
def test_a_command_without_output_does_its_work(closed: str, tmp_path: Path) -> None:
    """A file that is opened later does not become the closed output."""
    out = shell(f"train {' '.join(TRAIN)} run_dir=run {closed}", tmp_path)
    assert (out.returncode, "Traceback" in out.stderr) == (0, False), out.stderr
    for file in ("metrics.csv", "config.yaml", "stages.jsonl"):
        assert "run folder" not in (tmp_path / "run" / file).read_text()
    assert (tmp_path / "run" / "summary.json").is_file()
    out = shell(f"train experiment=quikstart {closed}", tmp_path)
    assert out.returncode == 2 and ("2>&-" in closed or "Did you mean experiment=quickstart?" in out.stderr)


@pytest.mark.long
@pytest.mark.parametrize("how", ["PYTHONOPTIMIZE=2", "-OO"])
def test_without_docstrings_every_command_works(how: str, tmp_path: Path) -> None:
    """transformers reads docstrings when it builds a model."""
    flags, env = ([], {"PYTHONOPTIMIZE": "2"}) if how != "-OO" else (["-OO"], {})
    out = subprocess.run(
        [sys.executable, *flags, "-m", "stepwise_pl.train", *TRAIN, f"run_dir={tmp_path / 'run'}"], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, env={**os.environ, **OFFLINE, "PYTHONPATH": str(REPO), **env},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    assert (tmp_path / "run" / "summary.json").is_file()


def alone(code: str, *flags: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    """Run a few lines of Python in a process of their own."""
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=REPO, capture_output=True, text=True, **popen)


def test_output_is_discarded_once_nobody_reads_it() -> None:
    reader, writer = os.pipe()
    output = terminal._Output(writer, "wb", closefd=False)
    assert output.write(b"read") == 4 and os.read(reader, 9) == b"read"
    os.close(reader)
    assert output.write(b"unread") == len(b"unread")
    assert os.fstat(writer).st_rdev == Path(os.devnull).stat().st_rdev  # other writers find it open as well
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_output_that_does_not_fit_the_disk_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full, pytest.raises(OSError, match="No space left"):
        terminal._Output(full.fileno(), "wb", closefd=False).write(b"text")


def test_a_file_that_is_opened_later_does_not_become_a_closed_stream(tmp_path: Path) -> None:
    code = f"""
import os, sys
from stepwise_pl.common import terminal
terminal.prepare()
streams = sys.stdout, sys.stderr
terminal.prepare()
file = open({str(tmp_path / "file")!r}, "w")
print("for nobody", flush=True)
os.write(1, b"for nobody")
file.write(f"{{file.fileno() > 2}} {{streams == (sys.stdout, sys.stderr)}}")
"""
    out = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&-', sys.executable, code], cwd=REPO, capture_output=True)
    assert (out.returncode, out.stderr) == (0, b"")
    assert (tmp_path / "file").read_text() == "True True"


@pytest.mark.parametrize("flags,env", [(("-OOs",), {}), ((), {"PYTHONOPTIMIZE": "2"})])
def test_a_command_whose_docstrings_were_removed_starts_again_with_them(
    flags: tuple[str, ...], env: dict[str, str]
) -> None:
    code = """
import sys
from stepwise_pl.common import terminal
terminal.restore_docstrings()
print(sys.flags.optimize, terminal.restore_docstrings.__doc__ is not None, sys.flags.no_user_site)
"""
    out = alone(code, *flags, env={**os.environ, **env})
    assert out.stdout == f"1 True {len(flags)}\n", out.stderr


def test_output_is_discarded_once_the_terminal_is_gone() -> None:
    """The terminal does not control the process, so no hangup ends it."""
    code = """
import os, pty, sys
from stepwise_pl.common import signals
ours, theirs = pty.openpty()
os.dup2(theirs, 1)
os.close(theirs)
signals.leave_dead_terminal()
still_open = os.isatty(1)
os.close(ours)
os.close(0)
signals.leave_dead_terminal()
os.write(1, b"for nobody")
sys.stderr.write(f"{still_open} {os.isatty(1)}")
"""
    assert alone(code).stderr == "True False"
