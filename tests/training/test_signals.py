"""Signals of a collapse: each against a plain computation, and a run that is not changed by them."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.data.batch import Part
from stepwise_pl.models.checkpoint import read_checkpoint
from stepwise_pl.runs.records import read_metrics
from stepwise_pl.schedules import Linear
from stepwise_pl.training.signals import PROBLEMS, Signals
from tests.conftest import SMALL, command
from tests.training.test_module import TASK, fit


class Kept(Callback):
    """Keeps weights and gradients around each step, and what the signals log."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.rows: dict[int, dict[str, float]] = {}
        self.average: list[dict[str, torch.Tensor]] = []
        self.stages: list[int] = []

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.keep(module)
        log_row = module.log_row

        def logged(step: int, metrics: dict[str, Any], write: bool = True) -> None:
            found = {key.removeprefix("signals/"): float(value) for key, value in metrics.items() if "signals/" in key}
            if found:
                self.rows[step] = found
            log_row(step, metrics, write)

        module.log_row = logged

    def keep(self, module: Any) -> None:
        self.weights.append({name: weight.detach().clone() for name, weight in module.model.named_parameters()})
        self.average.append({k: v.clone() for k, v in module.average.weights.items()} if module.average else {})
        self.stages.append(module.stage)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.norms.append(math.sqrt(sum(float(weight.grad.square().sum()) for weight in module.model.parameters())))

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self.keep(module)


def test_each_signal_is_what_its_name_says(tmp_path: Path) -> None:
    kept = Kept()
    module, _ = fit(
        tmp_path, Linear(delta=4, smoothing=math.inf), steps=10, optimizer=OptimizerConfig(lr=1e-2, average=0.5),
        callbacks=(kept, Signals(3)), dropout=0.1,
    )  # fmt: skip
    assert sorted(kept.rows) == [3, 6, 9]
    model = module.model.eval()
    problems = module.data.encoded["validation"].collate(np.arange(min(PROBLEMS, TASK.validation_size)))
    assert len({kept.stages[step] for step in kept.rows}) > 1
    for step, row in kept.rows.items():
        before, after = kept.weights[step - 1], kept.weights[step]
        change = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in after))
        size = math.sqrt(sum(float(weight.square().sum()) for weight in before.values()))
        assert row["gradient_norm"] == pytest.approx(kept.norms[step - 1], rel=1e-4)
        assert row["update_size"] == pytest.approx(change / size, rel=1e-3)
        stage = kept.stages[step]
        model.load_state_dict(after, strict=False)
        losses, firsts, right = plain(model, problems, stage)
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert row["first_token_loss"] == pytest.approx(np.mean(firsts), rel=1e-4)
        assert row["accuracy"] == pytest.approx(right)
        if stage < module.schedule.last:
            assert row["next_stage_loss"] == pytest.approx(np.mean(plain(model, problems, stage + 1)[0]), rel=1e-4)
        else:
            assert "next_stage_loss" not in row
        model.load_state_dict(
            {name.removeprefix("model."): mean for name, mean in kept.average[step].items()}, strict=False
        )
        assert row["averaged_accuracy"] == pytest.approx(plain(model, problems, stage)[2])


def plain(model: Any, problems: Any, stage: int) -> tuple[list[float], list[float], float]:
    """Loss of each target, loss of the first target of each row, and the share of rows with every answer token right: row by row."""
    losses, firsts, right = [], [], 0
    for number in range(len(problems)):
        row = problems.row(number)
        part, ids = row.part[0].tolist(), row.tokens[0].tolist()
        cot = [place for place, kind in enumerate(part) if kind == Part.COT]
        left = [place for place in range(len(ids)) if place not in cot[:stage]]
        with torch.no_grad():
            logits = model(torch.tensor([[ids[place] for place in left]])).logits[0]
        own, good = [], True
        for column, place in enumerate(left):
            if part[place] in (Part.COT, Part.ANSWER):
                own.append(float(F.cross_entropy(logits[column - 1], torch.tensor(ids[place]))))
                good &= part[place] == Part.COT or int(logits[column - 1].argmax()) == ids[place]
        losses, firsts, right = losses + own, [*firsts, own[0]], right + good
    return losses, firsts, right / len(problems)


def test_a_run_learns_the_same_with_signals_and_without(tmp_path: Path) -> None:
    words = (
        *SMALL,
        "model.dropout=0.1",
        "optimizer.average=0.9",
        "trainer.duration=30steps",
        "trainer.accumulate_grad_batches=2",
    )
    for name, every in (("without", 0), ("with", 4)):
        command("train", *words, f"trainer.log_signals_every_n_steps={every}", f"run_dir={tmp_path / name}")
    states = [
        read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("without", "with")
    ]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    rows = [row for row in read_metrics(tmp_path / "with" / "metrics.csv") if row.get("signals/loss")]
    assert [int(row["step"]) for row in rows] == [4, 8, 12, 16, 20, 24, 28]
