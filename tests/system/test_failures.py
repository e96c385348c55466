"""Failures that a user may run into give one clear line, and lose nothing."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import REPO, SMALL, command


def test_keep_position_is_refused_in_an_export(tmp_path) -> None:
    folder = tmp_path / "kept"
    command("train", *SMALL, "trainer.duration=1epochs", "method.keep_position=true", f"run_dir={folder}")
    out = command("export", f"run={folder}", check=False)
    assert (out.returncode, "keep_position" in out.stderr) == (2, True)


@pytest.mark.long
def test_a_failed_start_can_be_repeated(tmp_path) -> None:
    folder = tmp_path / "run"
    out = command("train", *SMALL, f"run_dir={folder}", "model.layers=2", "model.init_from=/", check=False)
    assert "neither state_dict.bin nor" in out.stderr
    out = command("train", *SMALL, f"run_dir={folder}", "resume=true", check=False)
    assert "nothing to resume" in out.stderr
    command("train", *SMALL, f"run_dir={folder}", "trainer.duration=2steps")


def limited(bytes_: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


@pytest.mark.long
def test_a_full_disk_is_one_line(tmp_path) -> None:
    """No file may grow beyond 100 kB, as if the disk were full by the time of the checkpoint."""
    out = subprocess.run(
        [sys.executable, "-m", "stepwise_pl.train", *SMALL, f"run_dir={tmp_path / 'run'}"],
        capture_output=True, text=True, cwd=REPO, preexec_fn=limited(100_000), timeout=300,
    )  # fmt: skip
    assert out.returncode == 2, out.stderr[-2000:]
    assert "Traceback" not in out.stderr
    assert out.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "free space" in out.stderr.strip().splitlines()[-1]


@pytest.mark.long
def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_older_one(run_dir: Path, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    out = subprocess.run(
        [sys.executable, "-m", "stepwise_pl.train", *SMALL, f"run_dir={folder}", "resume=true", "trainer.duration=8epochs"],
        capture_output=True, text=True, cwd=REPO, preexec_fn=limited(100_000), timeout=300,
    )  # fmt: skip
    assert out.returncode == 2, out.stderr[-2000:]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 120


def test_an_unwritable_run_folder_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    out = command("train", *SMALL, f"run_dir={tmp_path / 'file' / 'run'}", check=False)
    assert out.returncode == 2
    assert "cannot be written" in out.stderr.strip().splitlines()[-1]


def test_damaged_and_foreign_checkpoints_are_one_line(run_dir: Path, tmp_path) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    out = command("evaluate", f"run={run_dir}", f"checkpoint={tmp_path / 'bad.ckpt'}", check=False)
    assert (out.returncode, "damaged, or not a checkpoint" in out.stderr) == (2, True)
    out = command("evaluate", f"run={run_dir}", "checkpoint=/nowhere.ckpt", check=False)
    assert (out.returncode, "no such checkpoint; give best, last or a file" in out.stderr) == (2, True)
