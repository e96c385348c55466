"""A method that a user writes: a file in methods/ and one in conf/method/, in a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import OFFLINE, REPO, SMALL

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from stepwise_pl.common.registry import register
from stepwise_pl.methods.base import Losses, Method
from stepwise_pl.schedules.spread import Stage


@register("method")
@dataclass
class Mine(Method):
    """Two stages for each unit, a module of its own, and a further loss."""

    exports: ClassVar[bool] = False
    kind: str = "mine"

    def last_stage(self, limits):
        return 2 * limits.max_removed

    def removed(self, stage, limits):
        return stage // 2

    def extra(self, model):
        import torch

        return torch.nn.Linear(1, 1)

    def view(self, learner, batch, stage):
        each = stage.now // 2 if stage.each is None else None
        units = Stage(stage.now // 2, stage.last // 2, None if each is not None else stage.each // 2).units
        return batch.remove(units, self.side)

    def loss(self, learner, batch, stage):
        scored = learner.score(self.view(learner, batch, stage))
        import torch

        return Losses(scored, {"own": learner.extra(torch.ones(len(batch), 1)).square().sum()})
'''


@pytest.mark.long
def test_a_method_of_ones_own_trains_resumes_evaluates_and_refuses_to_export(tmp_path: Path) -> None:
    shutil.copytree(REPO / "stepwise_pl", tmp_path / "stepwise_pl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPO / "conf", tmp_path / "conf")
    (tmp_path / "stepwise_pl/methods/mine.py").write_text(METHOD)
    (tmp_path / "conf/method/mine.yaml").write_text("defaults: [_mine]\n")

    def run(entry: str, *words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **OFFLINE, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-m", f"stepwise_pl.{entry}", *words],
            cwd=tmp_path,
            env=env,
            text=True,
            capture_output=True,
        )

    folder = tmp_path / "run"
    options = (
        "method=mine",
        "schedule.delta=8",
        "guard=wait",
        "trainer.keep_every_removed=1",
        "optimizer.decay=0",
    )
    trained = run("train", *SMALL, *options, "trainer.duration=9steps", f"run_dir={folder}")
    assert trained.returncode == 0, trained.stderr
    assert run("train", f"run_dir={folder}", "resume=true", "trainer.duration=14steps").returncode == 0
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "train/own" in header
    evaluated = run("evaluate", f"run={folder}", "checkpoint=last", "split=validation", "speed_problems=0")
    assert evaluated.returncode == 0, evaluated.stderr
    (found,) = (json.loads(path.read_text()) for path in (folder / "evaluations").glob("last-*.json"))
    last = json.loads((folder / "stages.jsonl").read_text().splitlines()[-1])
    assert found["removed_tokens"] == last["removed_tokens"]
    # A number of removed tokens comes once, though two stages have it.
    levels = run("evaluate", f"run={folder}", "checkpoint=last", "removed_tokens=all", "speed_problems=0", "limit=3")
    assert [line.split()[0] for line in levels.stdout.splitlines()[3:6]] == ["0", "1", "2"], levels.stderr
    refused = run("export", f"run={folder}", f"out={tmp_path / 'out'}")
    assert refused.returncode == 2 and "method=mine" in refused.stderr
    # Without its file the run cannot be read, and the line says why.
    (tmp_path / "stepwise_pl/methods/mine.py").unlink()
    gone = run("evaluate", f"run={folder}")
    assert gone.returncode == 2 and "method.kind=mine: no method is registered as this; there are " in gone.stderr
