"""A resumed run is composed over its own groups."""

import json
from pathlib import Path

import pytest
import yaml

from stepwise_pl.cli import resumed_groups
from stepwise_pl.cli.resumed_groups import with_saved_groups, written
from tests.conftest import SMALL, command

SAVED = {
    "schedule": {"kind": "adaptive", "keep": 0.9, "check_every": 4, "max_stay": None, "smoothing": float("inf")},
    "task": {"kind": "file", "train": ["a b.txt", "it's ${x}.txt"], "split": "ordered"},
    "method": {"kind": "stepwise", "side": "right"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SAVED, sort_keys=False))
    return tmp_path


def test_the_group_of_a_key_comes_first_as_the_run_has_it(folder: Path) -> None:
    words = ["schedule.keep=0.5", f"run_dir={folder}", "resume=true"]
    before = [
        "schedule=_adaptive", "schedule.keep=0.9", "schedule.check_every=4", "schedule.max_stay=null", "schedule.smoothing=inf",
    ]  # fmt: skip
    assert with_saved_groups(words) == [*before, *words] and resumed_groups.added == before


@pytest.mark.parametrize(
    "words",
    [
        ["schedule.keep=0.5"],
        ["schedule.keep=0.5", "resume=true", "run_dir=nowhere"],
        ["schedule.keep=0.5", "resume=false", "run_dir={folder}"],
        ["trainer.duration=5steps", "resume=true", "run_dir={folder}"],
        ["schedule=stepwise", "schedule.delta=2", "resume=true", "run_dir={folder}"],
        ["experiment=quickstart", "schedule.keep=0.5", "resume=true", "run_dir={folder}"],
    ],
    ids=" ".join,
)
def test_other_command_lines_stay_as_they_are(words: list[str], folder: Path) -> None:
    words = [word.replace("{folder}", str(folder)) for word in words]
    assert with_saved_groups(words) == words


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.5, float("inf"), "it's", "a b", "${x}", 'say "hi"', ["a", "b,c"], "null", "1"]
)
def test_values_are_written_so_that_hydra_reads_them(value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    override = OverridesParser.create().parse_override(f"key={written(value)}")
    assert OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True) == {"key": value}


@pytest.mark.long
def test_a_key_of_another_schedule_than_the_default_can_be_changed_at_a_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    adaptive = ("schedule=adaptive", "schedule.keep=1", "schedule.check_every=3", "schedule.smoothing=inf")
    small = (word for word in SMALL if not word.startswith("schedule."))
    command("train", *small, *adaptive, "trainer.duration=7steps", f"run_dir={run}", "optimizer.decay=0")
    command("train", f"run_dir={run}", "resume=true", "schedule.keep=1e-9", "trainer.duration=11steps")
    schedule = yaml.safe_load((run / "config.yaml").read_text())["schedule"]
    assert (schedule["keep"], schedule["check_every"], schedule["kind"]) == (1e-9, 3, "adaptive")
    rows = (run / "stages.jsonl").read_text().splitlines()
    assert '"removed_tokens": 0' in rows[0] and '"removed_tokens": 1' in rows[-1]
    # The run folder says what the user typed, and what that changed at which step.
    first, second = json.loads((run / "environment.json").read_text())["sessions"]
    typed = [f"run_dir={run}", "resume=true", "schedule.keep=1e-9", "trainer.duration=11steps"]
    assert second["command"][1:] == typed
    assert second["changed"] == {"schedule.keep": [1.0, 1e-9], "trainer.duration": ["7steps", "11steps"]}
    assert second["from_step"] == 7 and "changed" not in first
    refused = command("train", f"run_dir={run}", "resume=true", "schedule.chunk=double", check=False)
    assert refused.returncode == 2 and "schedule.chunk was one, is double" in refused.stderr
