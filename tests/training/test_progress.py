"""Progress in a real terminal: one bar for the run, lines that stay, and lines alone if there is no width."""

import fcntl
import os
import pty
import re
import struct
import termios
from pathlib import Path

import pytest

from stepwise_pl.common import terminal
from stepwise_pl.training.progress import fitting
from tests import background
from tests.conftest import OFFLINE, REPO, SMALL


def opened(columns: int) -> tuple[int, int]:
    """A terminal of this width: our end of it, and the program's."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    return ours, theirs


def shown(columns: int, cwd: Path, *arguments: str, **env: str) -> str:
    """All that `train <arguments>` writes to a terminal of this width."""
    ours, theirs = opened(columns)
    # Workers of pytest have COLUMNS set, which would come before the terminal's own width.
    kept = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    process = background.start(
        "-m", "stepwise_pl.train", *arguments, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**kept, **OFFLINE, "PYTHONPATH": str(REPO), **env},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # The program has closed its end.
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0, written.decode()[-3000:]
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that are left on the screen: a carriage return goes back, and later characters replace earlier ones."""
    lines, column = [""], 0
    for character in written:
        if character == "\n":
            lines.append("")
            column = 0
        elif character == "\r":
            column = 0
        else:
            lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("columns", [80, pytest.param(40, marks=pytest.mark.long)])
def test_a_terminal_shows_one_bar_and_keeps_a_line_for_each_stage(columns: int, tmp_path: Path) -> None:
    written = shown(columns, tmp_path, *SMALL, "run_dir=run")
    assert "\x1b" not in written
    drawn = [part for part in re.split("[\r\n]+", written) if part.startswith("|")]
    assert drawn and max(map(len, drawn)) == columns - 1
    assert all(re.search(r"\| \d+/120, (\d+ s left, |validating, )?[012]/2 gone", part) for part in drawn[1:])
    assert any("accuracy" in part and "train loss" in part for part in drawn) is (columns == 80)
    lines = screen(written)
    bars = [number for number, line in enumerate(lines) if line.startswith("|")]
    assert len(bars) == 1 and "| 120/120, 2/2 gone" in lines[bars[0]]
    stages = [line for line in lines if line.startswith("stage ")]
    assert [re.sub(r"[\d.]+%", "%", line) for line in stages] == [
        f"stage {stage}: % with {stage} of 2 CoT tokens gone, step {step} of 120" for stage, step in ((0, 20), (1, 40), (2, 120))
    ]  # fmt: skip
    assert lines[bars[0] - 1] == stages[-1]
    assert lines[bars[0] + 1] == "" and lines[bars[0] + 2].startswith("removed tokens ")
    assert "all 2 CoT tokens will be gone at step 41 of 120" in lines
    assert any(line.startswith("the run takes at most about ") for line in lines)
    assert any(line.startswith("test accuracy ") for line in lines)


@pytest.mark.long
@pytest.mark.parametrize("columns,env", [(0, {}), (80, {"COLUMNS": "0"})])
def test_a_terminal_without_a_width_shows_lines(columns: int, env: dict[str, str], tmp_path: Path) -> None:
    written = shown(columns, tmp_path, *SMALL, "run_dir=run", **env)
    assert "|" not in written and "\r" not in written.replace("\r\n", "\n")
    steps = re.findall(r"^step (\d+) of 120, .*: (\d) of 2 CoT tokens gone, train loss [\d.]+, accuracy", written, re.M)
    assert steps == [("20", "0"), ("40", "1"), ("60", "2"), ("80", "2"), ("100", "2"), ("120", "2")]


@pytest.mark.long
def test_the_jobs_of_a_sweep_each_have_a_bar_with_their_number(tmp_path: Path) -> None:
    written = shown(80, tmp_path, "-m", *SMALL, "trainer.duration=1epochs,2epochs", "run_dir=sweep")
    lines = screen(written)
    assert [line[:7] for line in lines if "| " in line and "/2]" in line] == ["[1/2] |", "[2/2] |"]
    assert "2 jobs to do, at most 60 steps in all" in lines
    assert next(line for line in lines if "the whole sweep takes about" in line).startswith("[1/2] ")
    assert [line[:20] for line in lines if "test accuracy" in line and line.startswith("[")] == [
        "[1/2] trainer.durati", "[2/2] trainer.durati"
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [0, 1, 80])
def test_the_width_is_that_of_the_terminal_unless_columns_says_otherwise(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = opened(columns)
    monkeypatch.delenv("COLUMNS", raising=False)
    with os.fdopen(theirs, "w") as stream:
        assert terminal.width(stream) == columns
        monkeypatch.setenv("COLUMNS", "33")
        assert terminal.width(stream) == 33
        monkeypatch.setenv("COLUMNS", "many")
        assert terminal.width(stream) == columns
    os.close(ours)


def test_a_file_and_a_closed_stream_have_no_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with (tmp_path / "file").open("w") as stream:
        assert terminal.width(stream) == 0
    assert terminal.width(stream) == 0


def test_the_parts_that_fit_are_shown_and_the_first_come_first() -> None:
    assert fitting(["600/4,000", "", "3/8 gone", "accuracy 97.2%"], 80) == "600/4,000, 3/8 gone, accuracy 97.2%"
    assert fitting(["600/4,000", "3/8 gone", "accuracy 97.2%", "x"], 24) == "600/4,000, 3/8 gone, x"
    assert fitting(["600/4,000", "3/8 gone"], 3) == ""
