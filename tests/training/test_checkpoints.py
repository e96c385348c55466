"""Checkpoints on the disk: those kept, and a run that goes on from one of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.plain import to_plain
from stepwise_pl.config.run import Config
from stepwise_pl.methods import Stepwise
from stepwise_pl.runs.records import all_rows
from stepwise_pl.schedules import Linear
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training.checkpoints import Checkpoints
from stepwise_pl.training.loggers import MetricsFile
from stepwise_pl.training.resume import resume


def test_the_newest_stage_is_that_with_the_largest_number_and_other_files_stay(tmp_path: Path) -> None:
    names = ("removed-2.ckpt", "removed-10.ckpt", "removed-9.ckpt", "best.ckpt", "last.ckpt", "removed-mine.ckpt")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    Checkpoints(folder, every_n_steps=1)._drop_oldest(2)
    assert {path.name for path in folder.iterdir()} == {*names} - {"removed-2.ckpt"}


def plain(**derived: Any) -> dict[str, Any]:
    """A configuration in plain containers."""
    return {
        **to_plain(Config(task=Multiplication(), schedule=Linear(), method=Stepwise())),
        "derived": {"data": "d", **derived},
    }


def save(run_dir: Path, config: dict[str, Any], **changes: Any) -> Path:
    """Write the last checkpoint of a run at step 7; `changes`: other parts of it, None to leave a part out."""
    parts = {
        "global_step": 7, "epoch": 0, "state_dict": {}, "optimizer_states": [{"param_groups": [{"full_lr": 1.0}]}],
        "loops": {}, "callbacks": {}, "stepwise": {"config": config, "rollbacks": [], "schedule": {}}, **changes,
    }  # fmt: skip
    path = run_dir / "checkpoints/last.ckpt"
    path.parent.mkdir(exist_ok=True)
    torch.save({key: value for key, value in parts.items() if value is not None}, path)
    return path


def test_a_run_goes_on_from_its_checkpoint_and_drops_what_was_measured_later(tmp_path: Path) -> None:
    save(tmp_path, plain())
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in (5, 7, 9):
        metrics.log_metrics({"attempt": 0, "train/loss": 0.5}, step)
    with metrics.path.open("a") as file:
        file.write("1")  # killed while writing a row
    empty: dict[str, Any] = {"removed_tokens": 0, "examples": 1, "accuracy": 0.0, "digits": [], "samples": []}
    lines = [{"step": step, "attempt": 0, **empty} for step in (7, 9)]
    (tmp_path / "stages.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert resume(tmp_path, plain(), {}) == 7
    assert [row["step"] for row in all_rows(metrics.path)] == ["5", "7"]
    assert [json.loads(line) for line in (tmp_path / "stages.jsonl").read_text().splitlines()] == lines[:1]


def test_a_run_without_its_metrics_goes_on_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, plain())
    assert resume(tmp_path, plain(), {}) == 7
    assert "metrics.csv is missing: the new one begins at step 7" in caplog.text
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize(
    "now,why",
    [
        ({"optimizer": {"lr": 0.5}}, "optimizer.lr is 5e-05 there, 0.5 in config.yaml"),
        ({"derived": {"data": "e"}}, r"it was trained on other data \(digest d, now e; has a file changed\?\)"),
        ({"derived": {"frozen": "f"}}, r"the weights that LoRA leaves as they are have changed \(digest None, now f\)"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, now: dict[str, dict[str, Any]], why: str) -> None:
    config = plain()
    config["optimizer"]["lr"] = 5e-5
    save(tmp_path, config)
    changed = {**config, **{group: {**config[group], **values} for group, values in now.items()}}
    with pytest.raises(UserError, match=f"last.ckpt: is of another run: {why}. Restore its configuration and data"):
        resume(tmp_path, changed, {})


@pytest.mark.parametrize(
    "changes,why",
    [
        ({"optimizer_states": None}, "best.ckpt, removed-<k>.ckpt and stage-<k>.ckpt hold weights only"),
        ({"optimizer_states": [{"param_groups": [{"lr": 1.0}]}]}, "it was written by "),
        ({"loops": None}, "it was written by "),
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    save(tmp_path, plain(), **changes)
    with pytest.raises(UserError, match=f"is not a checkpoint that this version of stepwise_pl can go on from .{why}"):
        resume(tmp_path, plain(), {})


@pytest.mark.parametrize("has_best", [True, False])
def test_a_damaged_checkpoint_is_refused_with_the_way_out(tmp_path: Path, has_best: bool) -> None:
    path = save(tmp_path, plain(), state_dict={"model.weight": torch.arange(1000.0)})
    if has_best:
        path.with_name("best.ckpt").touch()
    data = bytearray(path.read_bytes())
    place = data.find(torch.arange(1000.0).numpy().tobytes())
    data[place + 100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="last.ckpt: damaged: its checksum is wrong; start another run") as refused:
        resume(tmp_path, plain(), {})
    assert str(refused.value).endswith(f"init_from={tmp_path}") is has_best
