"""Run folders and checkpoints of earlier versions are read, or the line says which version reads them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.duration import Duration
from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.config.upgrade import ANY, RETIRED, upgraded, upgraded_state
from stepwise_pl.runs.saved_config import comparable_config, saved_config
from stepwise_pl.schedules import Adaptive
from tests.conftest import SMALL, command

# As commit 5940397 wrote it, without what is left at its default.
OLD = """\
task: {kind: mult, digits: 1}
schedule: {kind: linear, delta: 1, lookahead: 0.0}
model: {layers: 1, heads: 2, width: 64}
trainer: {accelerator: cpu, precision: 32-true, max_epochs: 3}
seed: 0
derived: {name: old}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "config.yaml").write_text(text)
    return folder


def test_a_key_that_is_gone_is_dropped_where_it_changed_nothing(tmp_path: Path) -> None:
    plain = yaml.safe_load(OLD)
    assert "lookahead" not in upgraded(plain, "here")["schedule"]
    assert "lookahead" in plain["schedule"]  # the argument is left as it was


def test_a_key_that_is_gone_is_told_with_the_version_that_reads_it(tmp_path: Path) -> None:
    plain = {"schedule": {"lookahead": 0.25}}
    with pytest.raises(UserError, match=r"^x/config.yaml: schedule.lookahead=0.25 is gone since; .* commit 5940397"):
        upgraded(plain, "x/config.yaml")
    with pytest.raises(UserError, match="commit d241d4b"):
        upgraded({"trainer": {"precision": "16-mixed"}}, "x")


def test_other_names_of_before_are_known() -> None:
    assert upgraded({"task": {"kind": "lines", "train": "a.txt"}}, "x")["task"] == {"kind": "file", "train": "a.txt"}
    assert upgraded({}, "x") == {} and upgraded({"schedule": None}, "x") == {"schedule": None}


def test_an_adaptive_schedule_of_before_is_read_and_not_resumed() -> None:
    before = {"kind": "adaptive", "gate": 0.9, "memory": 10, "min_stay": 20, "max_stay": 40, "evidence": 300}
    after = upgraded({"schedule": before, "method": {}}, "x")["schedule"]
    assert after == {"kind": "adaptive", "max_stay": 40, "check_every": 20}
    Adaptive(**{key: value for key, value in after.items() if key != "kind"})
    schedule = Adaptive()
    schedule.bind(10, 4)
    with pytest.raises(
        UserError, match="follows token accuracy; the last version that goes on with it is commit 462c60e"
    ):
        schedule.load_state_dict({"now": 2, "since": 30, "longer": "1", "targets": [0.0], "right": [0.0]})


def test_runs_that_differ_in_a_key_that_is_gone_are_not_alike(tmp_path: Path) -> None:
    old = "schedule: {kind: adaptive, gate: 0.9, memory: %d, min_stay: 50, max_stay: null, evidence: 300}\n"
    folders = [tmp_path / name for name in ("a", "b", "new")]
    for folder, text in zip(folders, (old % 10, old % 5, "schedule: {kind: adaptive}\n"), strict=True):
        folder.mkdir()
        write(folder, text)
    one, other, new = map(comparable_config, folders)
    assert one != other and one != new and {key for key in one if one[key] != other[key]} == {"schedule.memory"}


def test_lengths_of_a_checkpoint_before_reasoning_steps() -> None:
    found = upgraded_state({"removed_tokens": 2, "limits": {"max_cot": 2, "longest_cot": 3, "longest_answer": 4}}, "x")
    assert found == {"removed": 2, "limits": {"train_left": [2, 1, 0], "left": [3, 2, 0], "longest_answer": 4}}


def length_of(derived: dict[str, Any] | None = None, decay_steps: int = 0, **trainer: int) -> tuple[str, float]:
    """The duration and the decay that come of a trainer's former keys."""
    plain: dict[str, Any] = {"trainer": trainer, "optimizer": {"decay_steps": decay_steps}, "derived": derived}
    after = upgraded(plain, "x")
    assert upgraded(after, "x") == after
    assert not {"max_steps", "max_epochs", "decay_steps"} & (after["trainer"].keys() | after["optimizer"].keys())
    return after["trainer"]["duration"], after["optimizer"]["decay"]


def test_two_lengths_of_before_become_the_one_that_ended_the_run() -> None:
    known = {"steps_per_epoch": 400}
    assert length_of(max_epochs=3, max_steps=-1) == ("3epochs", 0)
    assert length_of(max_epochs=3) == ("3epochs", 0)
    assert length_of(max_steps=50) == ("50steps", 0)
    assert length_of(max_epochs=200, max_steps=4000, derived=known, decay_steps=1000) == ("4000steps", 0.25)
    assert length_of(max_epochs=14, max_steps=20_000, derived=known) == ("14epochs", 0)
    # The fall of a run that ended by epochs begins where it began, and ends with the run; it may never have begun.
    assert length_of(max_epochs=10, max_steps=4400, derived=known, decay_steps=1000) == ("10epochs", 600 / 4000)
    assert length_of(max_epochs=1, max_steps=4400, derived=known, decay_steps=1000) == ("1epochs", 0)
    # A run that never read its data does not know T, unless its configuration says the size of an epoch.
    data = {"epoch_size": 640, "batch_size": 32}
    for asked, duration in ((data, "2epochs"), ({**data, "epoch_size": None}, "50steps"), ({}, "50steps")):
        after = upgraded({"trainer": {"max_epochs": 2, "max_steps": 50}, "data": asked}, "x")
        assert after["trainer"] == {"duration": duration}


@pytest.mark.parametrize("trainer", [{"max_steps": "x"}, {"max_epochs": [3]}, {"max_steps": -1}])
def test_a_length_of_before_that_cannot_be_read_is_one_line(trainer: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"^x: (trainer|optimizer)\.\w+=.*: (must be a whole number|the length of the run)"
    ):
        upgraded({"trainer": trainer, "optimizer": {"decay_steps": 5}, "derived": []}, "x")


@given(st.integers(1, 10**6), st.data())
def test_a_fall_of_before_keeps_its_number_of_steps(steps: int, data: st.DataObject) -> None:
    fall = data.draw(st.integers(0, steps))
    duration, decay = length_of(max_epochs=200, max_steps=steps, decay_steps=fall)
    assert Duration.parse(duration).steps(7, 3) == steps
    assert OptimizerConfig(decay=decay).decay_steps(steps) == fall


@pytest.mark.parametrize("line", ["hi: 1", "schedule: {kind: linear, hi: 1}"])
def test_a_key_that_no_version_knew_is_refused_with_its_file(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/config.yaml: .*hi: no such key"):
        saved_config(write(tmp_path, line))


@pytest.fixture
def old_run(run_dir: Path, tmp_path: Path) -> Path:
    """A run folder and its checkpoints with the key that an earlier version wrote."""
    folder = Path(shutil.copytree(run_dir, tmp_path / "old"))

    def aged(plain: dict[str, Any]) -> None:
        for key in RETIRED:
            group, name = key.split(".")
            if RETIRED[key].neutral is not ANY:
                plain[group][name] = RETIRED[key].neutral

    plain = yaml.safe_load((folder / "config.yaml").read_text())
    aged(plain)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    for path in (folder / "checkpoints").iterdir():
        state = torch.load(path, weights_only=True)
        aged(state["stepwise"]["config"])
        torch.save(state, path)
    return folder


@pytest.mark.long
def test_every_command_reads_an_old_run(old_run: Path, run_dir: Path, tmp_path: Path) -> None:
    command("evaluate", f"run={run_dir}", "speed_problems=0")
    command("evaluate", f"run={old_run}", "speed_problems=0")
    assert "seeds" in command("compare", str(old_run), str(run_dir)).stdout
    assert comparable_config(old_run) == comparable_config(run_dir)
    command("export", f"run={old_run}")
    command("report", str(old_run), f"out={tmp_path / 'page.html'}")
    command("train", *SMALL, f"model.init_from={old_run}", "trainer.duration=1steps", f"run_dir={tmp_path / 'from'}")
    command("train", f"run_dir={old_run}", "resume=true", "trainer.duration=7epochs")
    assert "lookahead" not in (old_run / "config.yaml").read_text()


def test_a_checkpoint_that_cannot_be_read_names_the_commit_that_can(old_run: Path) -> None:
    path = old_run / "checkpoints/best.ckpt"
    state = torch.load(path, weights_only=True)
    del state["stepwise"]["limits"]
    torch.save(state, path)
    (old_run / "environment.json").write_text('{"sessions": [{"git": {"commit": "a9d4577aaaa"}}]}')
    out = command("evaluate", f"run={old_run}", check=False)
    assert out.returncode == 2
    assert "best.ckpt: was written by another version of stepwise_pl, commit a9d4577, which can read it" in out.stderr


def test_going_on_from_an_optimizer_of_before_names_the_commit_that_can(old_run: Path) -> None:
    path = old_run / "checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)
    for group in state["optimizer_states"][0]["param_groups"]:
        del group["full_lr"]
    torch.save(state, path)
    (old_run / "environment.json").write_text('{"sessions": [{"git": {"commit": "3348870aaaa"}}]}')
    out = command("train", f"run_dir={old_run}", "resume=true", "trainer.duration=7epochs", check=False)
    assert (out.returncode, "Traceback" in out.stderr) == (2, False)
    assert "it was written by another version of stepwise_pl, commit 3348870, which can read it" in out.stderr
    assert "from its weights with model.init_from=" in out.stderr


def test_what_a_schedule_said_of_removal_belongs_to_the_method() -> None:
    before = {"schedule": {"kind": "linear", "unit": "step", "side": "right", "keep_position": True, "delta": 4}}
    after = upgraded(before, "x")
    assert after == {
        "schedule": {"kind": "linear", "delta": 4},
        "method": {"kind": "stepwise", "unit": "step", "side": "right", "keep_position": True},
    }
    assert upgraded(after, "x") == after and "method" not in before
