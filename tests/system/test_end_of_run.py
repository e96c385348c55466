"""A failure after training costs a run neither its summary, nor its table, nor its exit status."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepwise_pl import report
from stepwise_pl.report import ReportConfig
from stepwise_pl.reporting.figures.accuracy import accuracy_chart
from stepwise_pl.reporting.history import History
from stepwise_pl.reporting.static import write_figure
from stepwise_pl.reporting.sweep import refresh
from stepwise_pl.runs.cells import row_of
from stepwise_pl.runs.stages import StageAccuracy
from tests.conftest import OFFLINE, REPO, command

# Every one of the 50 validation answers is "1", so that everything is right in seconds.
RIGHT = (
    "task=file", "task.validation_size=50", "task.test_size=20", "schedule=no_cot", "model.layers=1", "model.heads=2",
    "model.width=32", "optimizer.lr=1e-2", "trainer.duration=55steps", "data.cache_dir=null",
)  # fmt: skip

NO_FIGURES = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib.backends.backend_agg":
            raise ModuleNotFoundError("cannot draw here")

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def ones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ones") / "ones.txt"
    path.write_text("".join(f"{i // 100} {i // 10 % 10} {i % 10}||{i % 10} #### 1\n" for i in range(200)))
    return path


def train_without_figures(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, in which matplotlib cannot draw."""
    (folder / "sitecustomize.py").write_text(NO_FIGURES)
    env = {**os.environ, **OFFLINE, "PYTHONPATH": f"{folder}:{REPO}"}
    command = [sys.executable, "-m", "stepwise_pl.train", *args]
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=300)


def test_a_run_that_answers_everything_right_ends_with_a_table_and_a_figure(ones: Path, tmp_path: Path) -> None:
    out = command("train", *RIGHT, f"task.train={ones}", f"run_dir={tmp_path / 'run'}")
    assert "100.0%  [92.9%, 100.0%]  n=50" in out.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_interval"][1] == 1
    assert (tmp_path / "run" / "accuracy.png").stat().st_size > 10_000
    assert "could not be made" not in out.stderr


@pytest.mark.long
def test_a_run_without_a_figure_keeps_its_summary_table_and_status(ones: Path, tmp_path: Path) -> None:
    """The run may be alone or in a sweep; in the sweep all jobs finish, and the table is written."""
    few = (*RIGHT, f"task.train={ones}", "trainer.duration=2steps")
    out = train_without_figures(tmp_path, *few, f"run_dir={tmp_path / 'run'}")
    assert out.returncode == 0, out.stderr[-2000:]
    warnings = [line for line in out.stderr.splitlines() if "accuracy.png" in line]
    assert len(warnings) == 1 and "(ModuleNotFoundError: cannot draw here)" in warnings[0]
    assert "test accuracy" in out.stdout and "accuracy.png" not in out.stdout and "Traceback" not in out.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    out = train_without_figures(tmp_path, "-m", *few, "seed=0,1", f"run_dir={tmp_path / 'sweep'}")
    assert out.returncode == 0, out.stderr[-2000:]
    assert "2 finished of 2 jobs" in out.stdout and "Traceback" not in out.stderr
    for name in ("accuracy.png", "sweep.png"):
        assert name in out.stderr
    assert (tmp_path / "sweep" / "sweep.csv").is_file()


def test_a_figure_that_cannot_be_drawn_is_one_warning(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a report: on the page, and as a file. The page has all the rest, and says what is missing."""
    from stepwise_pl.reporting import page, static

    def fail(*args: Any) -> Any:
        raise ValueError("'yerr' must not contain negative values")

    monkeypatch.setattr(page, "loss_chart", fail)
    monkeypatch.setattr(static, "_heat_map", fail)
    with caplog.at_level(logging.WARNING, "stepwise_pl"):
        report.report(ReportConfig([str(run_dir)], out=str(tmp_path / "r.html"), figures=str(tmp_path / "figures")))
    told = [record.getMessage() for record in caplog.records if "yerr" in record.getMessage()]
    assert len(told) == 2 and "the figure of loss" in told[0] and "digits-1.png" in told[1]
    written = (tmp_path / "r.html").read_text()
    assert "the figure of loss cannot be drawn" in written and 'data-figure="accuracy"' in written
    assert (tmp_path / "figures" / "accuracy.svg").is_file() and not list((tmp_path / "figures").glob("*.tmp"))


def test_text_of_a_run_is_no_formula(tmp_path: Path) -> None:
    runs = [
        History(tmp_path, name, cell=cell, stages=[StageAccuracy(0, 1, accuracy, 50)])
        for cell, (name, accuracy) in enumerate({"a$b_{$": 1.0, "$x$": 0.5}.items())
    ]
    chart = accuracy_chart(runs, title="$\\frac$")
    assert chart is not None
    write_figure(replace(chart, slug="v1.5"), [run.label for run in runs], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"v1.5.png", "v1.5.svg"}


@pytest.mark.long
def test_a_sweep_folder_that_takes_no_figures_still_has_its_table(ones: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command("train", "-m", *RIGHT, f"task.train={ones}", "trainer.duration=2steps", "seed=0,1", f"run_dir={folder}")
    (folder / "sweep.png").unlink()
    (folder / "sweep.png").mkdir()
    (folder / "sweep.csv").unlink()
    _, cells = refresh(folder, draw=True)
    assert (folder / "sweep.csv").is_file() and row_of(cells[0])["finished"] == 2
