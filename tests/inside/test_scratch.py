"""The folder of hidden states: it is gone, however the command ends."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepwise_pl.common.errors import UserError
from stepwise_pl.inside.scratch import temporary_folder


def test_the_folder_is_gone_after_a_signal_that_ends_the_process(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as error, temporary_folder(tmp_path / "inside") as folder:
        (folder / "states").write_text("many")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert error.value.code == 143 and not (tmp_path / "inside").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_folder_is_gone_afterwards_and_so_is_that_of_a_process_that_was_killed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path / "inside") as folder:
        (folder / "states").write_text("many")
        raise KeyboardInterrupt
    assert not (tmp_path / "inside").exists()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with temporary_folder(tmp_path / "inside") as mine:
        left = mine.with_name(mine.name.replace(str(os.getpid()), str(dead.pid)))
        left.mkdir()
        with temporary_folder(tmp_path / "inside") as other:
            assert mine.is_dir() and other.is_dir() and not left.is_dir()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))

    (tmp_path / "inside").touch()
    with pytest.raises(UserError, match="inside is a file, no folder"), temporary_folder(tmp_path / "inside"):
        pass
    monkeypatch.setattr("os.mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)"), temporary_folder(tmp_path):
        pass
