"""`debug=true` makes a smoke test of any recipe: all of its parts in seconds, and never mistaken for a real run."""

import csv
import json
from pathlib import Path

import pytest

from stepwise_pl.cli.entry import register_schemas
from stepwise_pl.cli.names import NOW
from stepwise_pl.config.keys import may_change
from stepwise_pl.config.known import CONF
from stepwise_pl.config.plain import config_from, to_plain
from stepwise_pl.config.run import Config
from tests.config.test_config import composed
from tests.conftest import command

EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))


def removed_tokens(run: Path) -> list[int]:
    """The removed tokens at each logged training step."""
    with (run / "metrics.csv").open() as file:
        return [int(float(row["schedule/removed_tokens"])) for row in csv.DictReader(file) if row["train/loss"]]


def assert_went_through_everything(
    run: Path, from_the_whole_cot: bool = True, at_most: int | None = None, stops_when_done: bool = False
) -> None:
    """Every stage was trained, from the first one to the last one that the recipe has.

    Args:
        at_most: the tokens that the recipe removes at most; None for all.
        stops_when_done: the recipe ends a run once its tokens are gone, before all steps are done.
    """
    summary = json.loads((run / "summary.json").read_text())
    removed = removed_tokens(run)
    assert len(removed) == summary["steps"] and (summary["steps"] < 12 if stops_when_done else summary["steps"] == 12)
    last = summary["max_cot_tokens"] if at_most is None else min(at_most, summary["max_cot_tokens"])
    assert (removed[0] == 0) is from_the_whole_cot and removed[-1] == summary["removed_tokens"] == last
    assert len(set(removed)) > 1 + from_the_whole_cot  # stages between explicit CoT and none
    assert summary["expected"] is None and summary["test_examples"] <= 8
    assert (run / "checkpoints" / "best.ckpt").is_file()


def test_the_quickstart_in_seconds(tmp_path: Path) -> None:
    out = command("train", "experiment=quickstart", "debug=true", cwd=tmp_path, PYTHONPATH=str(CONF.parent))
    (run,) = (path.parent for path in tmp_path.rglob("summary.json"))
    assert run == tmp_path / "outputs" / "quickstart" / "debug-true" / "seed0"
    assert_went_through_everything(run)
    assert (
        sum(line.startswith("debug=true: a smoke test and no result. 12 steps") for line in out.stderr.splitlines())
        == 1
    )
    # The folder is read as the small run that it holds, and goes on.
    command("evaluate", f"run={run}", "speed_problems=0")
    command("train", f"run_dir={run}", "resume=true", "debug=true", "experiment=quickstart")
    refused = command("train", f"run_dir={run}", "resume=true", "debug=false", check=False)
    assert refused.returncode == 2 and "debug was True, is False" in refused.stderr


def test_debug_is_part_of_the_name_and_cannot_change_on_the_way() -> None:
    register_schemas("train", Config)
    assert NOW.names_a_run("debug=true", has_experiment=True) and not may_change("debug")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_small_recipe_stays_as_it_is_when_it_is_read_again(experiment: str) -> None:
    config = composed(f"experiment={experiment}", "debug=true")
    whole = composed(f"experiment={experiment}")
    assert config_from(to_plain(config), Config) == config
    assert (config.model.type, config.model.tokenizer) == (whole.model.type, whole.model.tokenizer)
    assert (config.schedule.kind, config.optimizer.matrices, config.method) == (
        whole.schedule.kind, whole.optimizer.matrices, whole.method.hurried(),
    )  # fmt: skip
    assert config.data.batch_size % (config.trainer.devices * config.trainer.accumulate_grad_batches) == 0


@pytest.mark.parametrize("more", [(), ("trainer.devices=3", "trainer.accumulate_grad_batches=2", "data.batch_size=48")])
def test_a_batch_is_shared_out_over_devices_and_micro_batches(more: tuple[str, ...]) -> None:
    config = composed(*more, "debug=true")
    assert config.data.batch_size == (6 if more else 4) and config.data.epoch_size == 4 * config.data.batch_size


# Of recipes that differ in their size or in a number alone, one stands for the others.
ALIKE = (
    "ablation_gpu_",
    "mult5x5",
    "mult7x7",
    "mult9x9",
    "gsm8k_gpt2_medium",
    "quickstart_smoothing4",
    "quickstart_no_average",
)
DIFFERENT = [experiment for experiment in EXPERIMENTS if not experiment.startswith(ALIKE)]


@pytest.mark.long
@pytest.mark.parametrize("experiment", DIFFERENT)
def test_every_experiment_goes_through_everything(experiment: str, tmp_path: Path) -> None:
    """A tokenizer of the Hub is refused in one line; `model.tokenizer=symbols model.pretrained=false` and a file of one's own go offline."""
    record = {"answer": "He has <<1+2=3>>3. Then <<3*4=12>>12. Then <<12*2=24>>24.\n#### 24"}
    lines = [json.dumps({"question": f"He has {number // 10} and {number % 10} .", **record}) for number in range(100)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    config = composed(f"experiment={experiment}")
    words = ["train", f"experiment={experiment}", "debug=true", f"run_dir={tmp_path / 'run'}"]
    if config.task.kind == "gsm8k":
        words += [f"task.train={tmp_path / 'train.jsonl'}", "task.test=null", "task.test_size=20"]
    if config.model.tokenizer != "symbols":
        refused = command(*words, check=False)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert "model.tokenizer=" in refused.stderr.splitlines()[-1]
        words += [
            "model.tokenizer=symbols",
            "model.pretrained=false",
            *["model.lora.rank=0"] * (config.model.lora.rank > 0),
        ]
    command(*words)
    is_baseline = config.schedule.remove_at_most == 0 or getattr(config.schedule, "remove_all_beyond", None) == 0
    if is_baseline or config.method.stage_names or experiment == "mult11x11_gpt2":
        # The baselines stay what they are, methods with named stages write no CoT, and the paper's 11x11 run keeps the last tokens.
        removed = set(removed_tokens(tmp_path / "run"))
        assert (len(removed) == 1) is (experiment != "mult11x11_gpt2")
    else:
        begins = getattr(config.schedule, "remove_start_from", 0)
        assert_went_through_everything(
            tmp_path / "run",
            from_the_whole_cot=begins == 0,
            at_most=config.schedule.remove_at_most,
            stops_when_done=getattr(config.schedule, "stop_when_done", False),
        )
    if len(config.method.stage_names) > 1:
        with (tmp_path / "run" / "metrics.csv").open() as file:
            trained = [
                (bool(row["train/loss"]), bool(row["train/emulation"]))
                for row in csv.DictReader(file)
                if row["train/lr"]
            ]
        assert list(dict.fromkeys(trained)) == [(True, False), (False, True)] and trained[-1] == (True, False)


@pytest.mark.long
def test_a_sweep_over_schedules(tmp_path: Path) -> None:
    command(
        "train", "-m", "task=mult2x2", "model=tiny", "schedule=stepwise,no_cot,explicit_cot", "debug=true",
        f"run_dir={tmp_path}",
    )  # fmt: skip
    removed = {path.parent.parent.name: removed_tokens(path.parent) for path in tmp_path.rglob("summary.json")}
    assert set(removed["schedule-explicit_cot"]) == {0}
    assert len(set(removed["schedule-no_cot"])) == 1 and removed["schedule-no_cot"][0] > 0
    assert removed["schedule-stepwise"][0] == 0 and removed["schedule-stepwise"][-1] == removed["schedule-no_cot"][0]
