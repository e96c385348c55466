"""Tasks, schedules and callbacks from a module or file of the user."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stepwise_pl.config.plain import read_yaml
from tests.conftest import OFFLINE, REPO, SMALL, command

HEAD = """
from dataclasses import dataclass

from stepwise_pl.common.registry import register
from stepwise_pl.common.settings import setting
from stepwise_pl.schedules import Schedule
"""
STAIRS = f"""{HEAD}

@register("schedule")
@dataclass
class Stairs(Schedule):
    kind: str = "stairs"
    every: int = setting(5, changeable=True)

    def removed(self, step: int) -> int:
        return step // self.every
"""
SHORT = (*(word for word in SMALL if not word.startswith("schedule.")), "trainer.duration=6steps")

BAD = {
    "raises.py": ("x = 1\nx.y\n", "cannot be imported, AttributeError: 'int' object has no attribute 'y' ({file} line 2)"),
    "syntax.py": ("x = 1\ndef f(:\n", "cannot be imported, SyntaxError: invalid syntax ({file} line 2)"),
    "exits.py": ("raise SystemExit('no')\n", "cannot be imported, SystemExit: no ({file} line 1)"),
    "needs.py": ("import nowhere_to_be_found\n", "cannot be imported, ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    "twin.py": (STAIRS.replace('"stairs"', '"linear"'), "kind linear is that of stepwise_pl.schedules.linear.Linear already"),
    "empty.py": ("x = 1\n", "{file} registers no task, schedule or method"),
    "json.py": (STAIRS, "has the name of another module"),
    "kindless.py": (STAIRS.replace('    kind: str = "stairs"\n', ""), "kindless.Stairs: is registered as a schedule without a kind"),
    "text.txt": ("", "is not a Python file (.py)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plugin_is_one_line_with_its_file_and_the_reason(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_text(content)
    out = command("write_data", f"plugins=./{name}", "out=data", cwd=tmp_path, check=False)
    assert out.returncode == 2 and len(out.stderr.splitlines()) == 1, out.stderr
    assert out.stderr.startswith(f"error: plugins=./{name}: ")
    assert message.format(file=tmp_path / name) in out.stderr


@pytest.mark.parametrize(
    "word,message",
    [
        ("plugins=./gone.py", "plugins=./gone.py: no such file; name a file, ./my_task.py, or a module"),
        ("plugins=gone.there", "plugins=gone.there: no module gone in the current folder or among the installed packages"),
        ("plugins=[1]", "plugins=[1]: must be a list of names"),
        ("plugins=null", "plugins=null: must be a list of names"),
        ("plugins=a,b", "plugins=a,b: is one for all jobs; a list is written plugins=[<first>,<second>]"),
        ("hydra.searchpath=[gone]", "hydra.searchpath=gone: no such folder"),
    ],
)  # fmt: skip
def test_a_plugin_that_is_not_there_is_one_line(word: str, message: str, tmp_path: Path) -> None:
    out = command("write_data", word, "out=data", cwd=tmp_path, check=False)
    assert out.returncode == 2 and message in out.stderr and len(out.stderr.splitlines()) == 1, out.stderr


def test_a_run_keeps_its_plugin_and_finds_it_by_itself(tmp_path: Path) -> None:
    file, run = tmp_path / "stairs.py", tmp_path / "run"
    file.write_text(STAIRS)
    train = ("train", *SHORT, "schedule=stairs", "schedule.every=3")
    command(*train, "plugins=./stairs.py", "run_dir=run", cwd=tmp_path)
    assert read_yaml(run / "config.yaml")["plugins"] == [str(file)]
    # The mark of the class's own field counts: the key may change.
    resumed = command("train", f"run_dir={run}", "resume=true", "schedule.every=2", "trainer.duration=8steps")
    assert "resuming at step 6 with schedule.every=2 (was 3), trainer.duration=8steps (was 6steps)" in resumed.stderr
    evaluate = ("evaluate", f"run={run}", "speed_problems=0")
    command(*evaluate)
    shutil.copytree(run, tmp_path / "copy")
    compared = command("compare", f"{run}", f"{tmp_path / 'copy'}")
    assert "McNemar" in compared.stdout
    shutil.rmtree(tmp_path / "copy")

    moved = tmp_path / "elsewhere" / "stairs.py"
    moved.parent.mkdir()
    file.rename(moved)
    gone = command(*evaluate, check=False)
    assert gone.returncode == 2 and len(gone.stderr.splitlines()) == 1, gone.stderr
    assert f"{run}/config.yaml: plugins={file}: no such file" in gone.stderr
    assert "put it back, or name its new place with plugins=[<file>]" in gone.stderr
    command("report", f"{run}", f"out={tmp_path / 'page.html'}")
    assert "at step 6: schedule.every=2 (was 3)" in (tmp_path / "page.html").read_text()
    command(*evaluate, f"plugins={moved}")
    command("train", f"run_dir={run}", "resume=true", f"plugins={moved}", "trainer.duration=9steps")
    assert read_yaml(run / "config.yaml")["plugins"] == [str(moved)]
    command(*evaluate)


def test_a_folder_of_choices_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "task" / "tiny_products.yaml").write_text(
        "defaults: [_multiplication]\ndigits: 1\ntrain_size: 20\nvalidation_size: 3\ntest_size: 2\n"
    )
    for place in ("mine", "[mine]", f"[file://{tmp_path}/mine]"):
        words = (f"hydra.searchpath={place}", "task=tiny_products")
        out = command("write_data", *words, f"out=data{len(place)}", cwd=tmp_path)
        assert "20 examples" in out.stdout
    assert "tiny_products" in command("write_data", "--help", "hydra.searchpath=mine", cwd=tmp_path).stdout
    wrong = command("write_data", "hydra.searchpath=mine", "task=tiny_product", cwd=tmp_path, check=False)
    assert "Did you mean task=tiny_products?" in wrong.stderr


def test_a_package_may_be_named_by_its_first_file(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from package import parts\n")
    (tmp_path / "package" / "parts.py").write_text(STAIRS)
    out = command("train", "--help", f"plugins={tmp_path}/package/__init__.py", cwd=tmp_path.parent)
    assert "no_cot, stairs, stepwise" in out.stdout
    # A sweep loads a plugin for each of its jobs.
    twice = "from stepwise_pl.common import plugins; [plugins.load('package') for _ in range(2)]"
    subprocess.run([sys.executable, "-c", twice], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPO)}, check=True)
    slip = ("train", f"plugins={tmp_path}/package/__init__.py", "schedule=stairs", "schedule.evry=3")
    refused = command(*slip, cwd=tmp_path, check=False)
    assert refused.returncode == 2 and "schedule.evry: no such key. Did you mean schedule.every?" in refused.stderr


def test_an_installed_package_is_loaded_by_its_entry_point(tmp_path: Path) -> None:
    (tmp_path / "stairs_package.py").write_text(STAIRS)
    about = tmp_path / "stairs_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stairs-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[stepwise_pl.plugins]\nstairs = stairs_package\n")
    env = {**os.environ, **OFFLINE, "PYTHONPATH": f"{REPO}:{tmp_path}"}

    def run() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "stepwise_pl.train", "--help"]
        return subprocess.run(words, cwd=about, env=env, capture_output=True, text=True)

    assert "no_cot, stairs, stepwise" in run().stdout
    (tmp_path / "stairs_package.py").write_text("1 / 0\n")
    broken = run()
    assert broken.returncode == 2 and len(broken.stderr.splitlines()) == 1
    assert (
        "error: plugin stairs of the installed package stairs-package: cannot be imported, ZeroDivisionError"
        in broken.stderr
    )


CALLBACK = """
from lightning.pytorch.callbacks import Callback


class Count(Callback):
    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, *args):
        self.batches += 1

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


class Needs(Callback):
    def __init__(self, what):
        self.what = what


class Other:
    pass
"""


def test_the_state_of_a_callback_is_resumed_and_a_wrong_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(CALLBACK)
    words = ("train", *SHORT, "plugins=./counting.py")
    command(*words, "callbacks=[counting.Count]", "run_dir=run", cwd=tmp_path)
    command("train", "run_dir=run", "resume=true", "trainer.duration=9steps", cwd=tmp_path)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["callbacks"]["Count"] == {"batches": 9}
    for name, message in {
        "counting.Needs": "callbacks=counting.Needs: cannot be made without arguments",
        "counting.Other": "callbacks=counting.Other: is no lightning.pytorch.callbacks.Callback",
        "counting.Gone": "counting.py defines no Gone",
        "Count": "callbacks=Count: is written <module>.<class>",
        "counting.Count,counting.Count": "callbacks=counting.Count: is named twice",
    }.items():
        out = command(*words, f"callbacks=[{name}]", "run_dir=bad", cwd=tmp_path, check=False)
        assert out.returncode == 2 and message in out.stderr.splitlines()[-1], out.stderr
        assert "Traceback" not in out.stderr
    changed = command("train", "run_dir=run", "resume=true", "callbacks=[]", cwd=tmp_path, check=False)
    assert "callbacks was ['counting.Count'], is []" in changed.stderr


@pytest.mark.long
def test_the_workers_of_a_sweep_load_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "stairs.py").write_text(STAIRS)
    words = ("plugins=./stairs.py", "schedule=stairs", "schedule.every=2,3", "run_dir=sweep", *SHORT)
    more = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    env = {**os.environ, **OFFLINE, "PYTHONPATH": str(REPO)}
    made = [sys.executable, "-m", "stepwise_pl.train", "-m", *words, *more]
    out = subprocess.run(made, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-3000:]
    assert len(list((tmp_path / "sweep").rglob("summary.json"))) == 2
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["command"] == made[3:]
    shutil.rmtree(tmp_path / "sweep" / "schedule.every-3")
    command("train", "-m", *words, "resume=true", cwd=tmp_path)
    assert len(list((tmp_path / "sweep").rglob("summary.json"))) == 2


def test_a_resumed_run_keeps_the_plugins_it_needs_and_says_that_one_was_edited(tmp_path: Path) -> None:
    (tmp_path / "stairs.py").write_text(STAIRS)
    (tmp_path / "more.py").write_text("from lightning.pytorch.callbacks import Callback\nclass More(Callback): pass\n")
    words = ("train", *SHORT, "schedule=stairs", "run_dir=run")
    command(*words, "plugins=./stairs.py", "plugins=./more.py", cwd=tmp_path)
    both = [str(tmp_path / "stairs.py"), str(tmp_path / "more.py")]
    assert read_yaml(tmp_path / "run" / "config.yaml")["plugins"] == both
    (tmp_path / "other.py").write_text(
        "from lightning.pytorch.callbacks import Callback\nclass Other(Callback): pass\n"
    )
    (tmp_path / "stairs.py").write_text(STAIRS + "\n# edited\n")
    again = ("train", "run_dir=run", "resume=true", "plugins=./other.py", "trainer.duration=8steps")
    said = command(*again, cwd=tmp_path).stderr
    assert f"plugins={both[0]}: has been edited since the run was saved" in said
    assert read_yaml(tmp_path / "run" / "config.yaml")["plugins"] == [*both, str(tmp_path / "other.py")]
    less = command("train", "run_dir=run", "resume=true", "trainer.duration=4steps", cwd=tmp_path, check=False)
    assert less.returncode == 2 and "the run is at step 8 already" in less.stderr


NAMESAKE = """
from lightning.pytorch.callbacks import Callback


class Guard(Callback):
    def state_dict(self):
        return {"mine": 1}


class Broken(Callback):
    def __init__(self):
        raise ValueError("no disk")
"""


@pytest.mark.parametrize(
    "name,message",
    [
        ("Guard", "callbacks: there are two of the name Guard, which share one place in a checkpoint"),
        ("Broken", "callbacks=namesake.Broken: cannot be made, ValueError: no disk ("),
    ],
)
def test_a_callback_that_cannot_be_used_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "namesake.py").write_text(NAMESAKE)
    out = command("train", *SHORT, f"callbacks=[namesake.{name}]", "run_dir=run", cwd=tmp_path, check=False)
    assert out.returncode == 2 and message in out.stderr and "Traceback" not in out.stderr, out.stderr


CLOSED = """
from dataclasses import dataclass

from stepwise_pl.common.registry import register
from stepwise_pl.schedules import Schedule


@register("schedule")
@dataclass
class Patient(Schedule):
    kind: str = "patient"

    def __post_init__(self) -> None:
        pass

    def removed(self, step):
        return 0

    def observe(self, SIGNATURE):
        pass
"""


@pytest.mark.parametrize(
    "signature,more,message",
    [
        ("metrics", (), "Patient: observe must take (step, metrics)"),
        ("step, metrics", ("schedule.smoothing=-1",), "schedule.smoothing=-1.0: must be at least 0.01"),
    ],
)
def test_a_schedule_of_ones_own_is_checked_before_training(
    signature: str, more: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "patient.py").write_text(CLOSED.replace("SIGNATURE", signature))
    words = ("train", *SHORT, "plugins=./patient.py", "schedule=patient", *more, "run_dir=run")
    out = command(*words, cwd=tmp_path, check=False)
    assert out.returncode == 2 and message in out.stderr and len(out.stderr.splitlines()) == 1, out.stderr
