"""Averaged weights: against a plain sum, in every checkpoint, and without any effect on training itself."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.models.checkpoint import kept_weights, read_checkpoint
from stepwise_pl.schedules import Linear
from stepwise_pl.training.averaging import WeightAverage
from tests import forked
from tests.conftest import REPO, SMALL, command
from tests.system.test_resume import RUN
from tests.training.test_module import fit

DECAY = 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_the_weighted_sum_of_all_steps(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(3, dtype=dtype))
    average = WeightAverage({"weight": weight}, DECAY)
    history = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    for values in history:
        weight.data.copy_(values)
        average.follow()
    shares = torch.tensor([DECAY ** (11 - t) * (1 - DECAY if t else 1) for t in range(12)])
    expected = shares @ history.float()
    assert torch.allclose(average.weights["weight"], expected, atol=1e-6)
    with average.in_place():
        assert weight.dtype == dtype and torch.equal(weight.data, average.weights["weight"].to(dtype))
    assert torch.equal(weight.data, history[-1])


def test_training_is_the_same_with_and_without_an_average(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain", Linear(delta=4), dropout=0.1, every_removed=1)
    averaged, _ = fit(
        tmp_path / "averaged",
        Linear(delta=4),
        dropout=0.1,
        every_removed=1,
        optimizer=OptimizerConfig(lr=1e-3, average=DECAY),
    )
    for a, b in zip(plain.model.parameters(), averaged.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_checkpoint_holds_the_average_that_was_validated(tmp_path: Path) -> None:
    """The checkpoint of weights alone holds nothing but the average, the last one both. Input and output layer are tied."""
    module, _ = fit(tmp_path, Linear(delta=4), every_removed=1, optimizer=OptimizerConfig(lr=1e-2, average=DECAY))
    assert module.average is not None
    last, best = (read_checkpoint(tmp_path / f"{name}.ckpt") for name in ("last", "best"))
    assert last["global_step"] == best["global_step"]
    assert "average" not in best["stepwise"]
    kept = kept_weights(last)
    assert kept.keys() == best["state_dict"].keys() and {"model.lm_head.weight"} <= kept.keys()
    for name, weight in kept.items():
        assert torch.equal(weight, best["state_dict"][name]), name
    for name, weight in module.average.weights.items():
        assert torch.equal(weight, kept[name])
        assert not torch.equal(last["state_dict"][name], kept[name])


@pytest.mark.long
def test_evaluation_and_export_of_a_run_use_the_average(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command("train", *SMALL, "optimizer.average=0.9", "trainer.duration=40steps", f"run_dir={folder}")
    answers = {}
    for name in ("best", "last"):
        command("evaluate", f"run={folder}", f"checkpoint={name}", "speed_problems=0")
        (file,) = (folder / "evaluations").glob(f"{name}-*.jsonl")
        answers[name] = file.read_text()
        command("export", f"run={folder}", f"checkpoint={name}", f"out={tmp_path / name}")
    # The last validation of the run was the best one. Both checkpoints then hold the same average.
    assert answers["best"] == answers["last"]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("best", "last"))
    assert one == other


def test_an_average_over_shared_out_weights_is_refused(tmp_path: Path) -> None:
    out = command(
        "train", *SMALL, "optimizer.average=0.9", "trainer.devices=2", "trainer.strategy=fsdp2", f"run_dir={tmp_path / 'run'}",
        check=False,
    )  # fmt: skip
    assert out.returncode == 2
    assert "optimizer.average=0.9 with trainer.strategy=fsdp2" in out.stderr.splitlines()[-1]


def test_a_resumed_run_ends_with_the_same_average(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(lr=1e-3, average=DECAY)
    whole, _ = fit(tmp_path / "whole", Linear(delta=4), steps=16, optimizer=optimizer, dropout=0.1, micro=2)
    fit(tmp_path / "first", Linear(delta=4), steps=9, optimizer=optimizer, dropout=0.1, micro=2)
    resume = str(tmp_path / "first" / "last.ckpt")
    second, _ = fit(
        tmp_path / "second", Linear(delta=4), steps=16, optimizer=optimizer, dropout=0.1, micro=2, resume=resume
    )
    assert whole.average is not None and second.average is not None
    for name, mean in whole.average.weights.items():
        assert torch.equal(mean, second.average.weights[name])


def test_a_rollback_of_the_guard_goes_back_to_the_average_of_the_checkpoint(tmp_path: Path) -> None:
    """The weights are no numbers from step 33 on. The average after the rollback is one of numbers."""
    out = forked.run(
        "tests.driver",
        ["--weights=nan,0,33", "--", *RUN, "optimizer.average=0.9", "guard=halve", f"run_dir={tmp_path / 'run'}"],
        REPO, {**os.environ, "OMP_NUM_THREADS": "1"}, 300,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text())["rollbacks"]) == 1
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert all(bool(weight.isfinite().all()) for weight in last["stepwise"]["average"].values())


@pytest.mark.long
def test_adapters_are_averaged_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command("train", *SMALL, "schedule=explicit_cot", "trainer.duration=20steps", f"run_dir={tmp_path / 'base'}")
    command(
        "train", *SMALL, "optimizer.average=0.9", "model.lora.rank=2", f"model.init_from={tmp_path / 'base'}", "trainer.duration=40steps",
        f"run_dir={folder}",
    )  # fmt: skip
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert last["stepwise"]["average"].keys() == last["state_dict"].keys()
    command("evaluate", f"run={folder}", "checkpoint=last", "speed_problems=0")
