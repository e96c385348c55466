"""The training module under a real Lightning trainer."""

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from stepwise_pl.config.training import DataConfig, OptimizerConfig
from stepwise_pl.data.batch import CoTBatch, Part
from stepwise_pl.data.module import CoTDataModule
from stepwise_pl.data.tokenizers import build_tokenizer
from stepwise_pl.methods import Losses, Stepwise
from stepwise_pl.models.forward import Targets, target_logits
from stepwise_pl.models.learner import Learner
from stepwise_pl.schedules import Linear, Schedule
from stepwise_pl.schedules.spread import Stage
from stepwise_pl.tasks import Multiplication
from stepwise_pl.training.checkpoints import Checkpoints
from stepwise_pl.training.module import StepwiseModule
from stepwise_pl.training.validation_times import ValidationTimes
from tests.conftest import small_model

TASK = Multiplication(digits=2, min_digits=1, train_size=64, validation_size=10, test_size=10)
TOKENIZER = build_tokenizer("symbols", TASK.symbols())


class Spy(Callback):
    """Records each step."""

    def __init__(self) -> None:
        self.removed: list[int] = []
        self.had_state: list[bool] = []
        self.rates: list[float] = []
        self.validated: list[tuple[int, int]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.removed.append(module.removed_tokens)
        self.had_state.append(bool(optimizer.state))
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.validated.append((trainer.global_step, module.removed_tokens))


class Watched(Stepwise):
    """Keeps the views that it trains on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[CoTBatch] = []

    def loss(self, learner: Learner, batch: CoTBatch, stage: Stage) -> Losses:
        self.seen.append(self.view(learner, batch, stage))
        return super().loss(learner, batch, stage)


def fit(
    tmp_path, schedule: Schedule, steps: int = 16, batch_size: int = 8, micro: int = 1,
    optimizer: OptimizerConfig | None = None, callbacks: tuple[Callback, ...] = (), resume: str | None = None,
    dropout: float = 0.0, clip: float | None = 1.0, every_epochs: int = 0, every_removed: int = 0,
    build: Callable[..., StepwiseModule] = StepwiseModule, workers: int = 0, checkpoint_every: int = 10**6,
    precision: Any = "32-true", method: Stepwise | None = None, kept: int | None = None,
) -> tuple[StepwiseModule, Spy]:  # fmt: skip
    method = method or Watched()
    L.seed_everything(0, verbose=False)
    model = small_model(TOKENIZER, dropout=dropout).train()
    cfg = DataConfig(batch_size=batch_size, num_workers=workers)
    data = CoTDataModule(TASK, TOKENIZER, cfg, 0, micro, method.unit, method.side)
    module = build(model, TOKENIZER, schedule, optimizer or OptimizerConfig(lr=1e-3), 0, steps, method=method)
    spy = Spy()
    trainer = L.Trainer(
        accelerator="cpu", precision=precision, max_steps=steps, max_epochs=-1, accumulate_grad_batches=micro, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, gradient_clip_val=clip,
        callbacks=[
            spy, ValidationTimes(every_epochs, every_removed),
            Checkpoints(tmp_path, checkpoint_every, int(kept is not None), keep_at_most=kept), *callbacks,
        ],
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module, spy


def test_tokens_leave_on_schedule_and_the_last_stage_has_no_cot(tmp_path) -> None:
    # 8 steps an epoch, 8 CoT tokens at most: one token every 2 steps.
    module, spy = fit(tmp_path, Linear(delta=4, smoothing=math.inf), steps=24)
    assert spy.removed == [min(8, t // 2) for t in range(24)]
    seen = module.method.seen  # type: ignore[attr-defined]
    for t, batch in enumerate(seen):
        assert int(batch.length_of(Part.COT).max()) <= max(0, 8 - t // 2)
        assert bool(((batch.part == Part.PROMPT) & batch.is_target).any()) is False
    for batch in seen[16:]:
        assert not (batch.part == Part.COT).any()
        # The answer is left: its separator, its mark and its end.
        assert batch.is_target.sum() == (batch.part == Part.ANSWER).sum()


def test_the_optimizer_is_reset_when_a_token_leaves_and_not_when_all_are_gone(tmp_path) -> None:
    # There are no moments before the first step, nor at the first step after a token has left.
    _, spy = fit(tmp_path, Linear(delta=4), steps=24)
    assert [t for t, state in enumerate(spy.had_state) if not state] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    _, spy = fit(tmp_path, Linear(delta=4, reset_optimizer=False), steps=24)
    assert [t for t, state in enumerate(spy.had_state) if not state] == [0]
    # Right-side removal resets as well (the reference does not).
    _, spy = fit(tmp_path, Linear(delta=4), steps=6, method=Watched(side="right"))
    assert [t for t, state in enumerate(spy.had_state) if not state] == [0, 2, 4]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_gradients_are_clipped_in_every_precision(tmp_path, precision: str, matrices: str) -> None:
    """Lightning's own clipping refuses a fused optimizer under mixed precision."""
    norms: dict[float | None, list[float]] = {None: [], 0.01: []}

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
            gradients = [p.grad.float().norm() for p in module.parameters() if p.grad is not None]
            if gradients:
                norms[trainer.gradient_clip_val].append(float(torch.stack(gradients).norm()))

    optimizer = OptimizerConfig(lr=1e-3, matrices=matrices)
    for clip in norms:
        fit(
            tmp_path / str(clip), Linear(delta=4), steps=4, precision=precision, clip=clip, optimizer=optimizer,
            callbacks=(Norms(),),
        )  # fmt: skip
    assert len(norms[None]) == len(norms[0.01]) > 1
    assert min(norms[None]) > 0.1 and max(norms[0.01]) < 0.0101


def test_remove_all_beyond_resets_once(tmp_path) -> None:
    module, spy = fit(tmp_path, Linear(delta=4, remove_all_beyond=3, smoothing=math.inf), steps=14)
    assert spy.removed == [0, 0, 1, 1, 2, 2] + [8] * 8
    assert [t for t, state in enumerate(spy.had_state) if not state] == [0, 2, 4, 6]
    assert not any((batch.part == Part.COT).any() for batch in module.method.seen[6:])  # type: ignore[attr-defined]


@pytest.mark.parametrize("side,left", [("left", [8, 5, 0]), ("right", [8, 3, 0])])
def test_reasoning_steps_are_removed_whole(tmp_path, side: str, left: list[int]) -> None:
    """The longest CoT of 2x2 is `row` and `+ row`, of 3 and 5 tokens. One step leaves every 4 optimizer steps."""
    module, spy = fit(
        tmp_path, Linear(delta=2, smoothing=math.inf), steps=16, every_removed=1, method=Watched(unit="step", side=side)
    )
    assert spy.removed == [8 - left[min(t // 4, 2)] for t in range(16)]
    assert [t for t, state in enumerate(spy.had_state) if not state] == [0, 4, 8]
    assert spy.validated == [(4, 0), (8, 8 - left[1]), (16, 8)]
    full = module.data.encoded["train"]
    stream = module.data.train_dataloader().stream
    for t, batch in enumerate(module.method.seen):  # type: ignore[attr-defined]
        assert (
            batch.length_of(Part.COT).tolist() == full.cot_left(t // 4, side)[stream.rows(batch.draw.numpy())].tolist()
        )
    offsets, _ = fit(tmp_path, Linear(delta=0, smoothing=0.5), steps=8, method=Watched(unit="step", side=side))
    for batch in offsets.method.seen:  # type: ignore[attr-defined]  # an offset is a whole number of steps too
        allowed = np.stack([full.cot_left(k, side)[stream.rows(batch.draw.numpy())] for k in range(3)])
        assert (allowed == batch.length_of(Part.COT).numpy()).any(0).all()


def test_the_learning_rate_warms_up_and_falls(tmp_path) -> None:
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=4, decay=0.25)
    _, spy = fit(tmp_path, Linear(delta=1, rewarmup_steps=3), steps=20, optimizer=optimizer)
    assert spy.rates[:8] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    assert spy.rates[8:12] == pytest.approx([1 / 3, 2 / 3, 1, 1])  # after the reset at step 8
    assert spy.rates[12:16] == pytest.approx([1, 1, 1, 1])
    # The next reset, at step 16, is inside the final fall. The smaller of the two rates counts.
    assert spy.rates[16:] == pytest.approx([min(0.8, 1 / 3), min(0.6, 2 / 3), 0.4, 0.2])


def test_weight_decay_can_spare_biases_and_norms(tmp_path) -> None:
    for decay_all in (True, False):
        module, _ = fit(tmp_path, Linear(), 1, optimizer=OptimizerConfig(weight_decay=0.3, decay_all=decay_all))
        groups = module.optimizers(use_pl_optimizer=False).param_groups  # type: ignore[union-attr]
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert len(decay) == len(list(module.model.parameters()))
        for parameter in module.model.parameters():
            assert decay[id(parameter)] == (0.3 if decay_all or parameter.dim() > 1 else 0.0)


def test_baselines_are_the_same_code_with_another_schedule(tmp_path) -> None:
    explicit, spy = fit(tmp_path, Linear(delta=0, smoothing=math.inf), steps=10)
    assert set(spy.removed) == {0}
    assert sum(not state for state in spy.had_state) == 1
    full = explicit.data.encoded["train"]
    for batch in explicit.method.seen:  # type: ignore[attr-defined]
        rows = explicit.data.train_dataloader().stream.rows(batch.draw.numpy())
        assert batch.length_of(Part.COT).tolist() == full.cot_length[rows].tolist()
    no_cot, spy = fit(tmp_path, Linear(delta=0, remove_all_beyond=0, smoothing=math.inf), steps=10)
    assert set(spy.removed) == {8}
    assert sum(not state for state in spy.had_state) == 1
    assert not any((batch.part == Part.COT).any() for batch in no_cot.method.seen)  # type: ignore[attr-defined]


def weights(module: StepwiseModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.model.parameters()])


def test_accumulation_changes_nothing(tmp_path) -> None:
    """1, 2 or 4 micro-batches give the same weights, with unequal lengths, offsets and clipping."""
    # With a small eps, AdamW would blow up rounding in vanishing gradients to whole steps.
    kwargs: dict[str, Any] = {"steps": 12, "clip": 0.5, "optimizer": OptimizerConfig(lr=1e-2, eps=1e-2)}
    whole, spy = fit(tmp_path, Linear(delta=4, smoothing=0.7), **kwargs)
    for micro in (2, 4):
        parts, parts_spy = fit(tmp_path, Linear(delta=4, smoothing=0.7), micro=micro, **kwargs)
        assert parts_spy.removed == spy.removed
        assert torch.allclose(weights(parts), weights(whole), atol=1e-5)
    other, _ = fit(tmp_path, Linear(delta=4, smoothing=math.inf), **kwargs)
    assert not torch.allclose(weights(other), weights(whole), atol=1e-3)


def test_the_loss_is_the_mean_over_target_tokens(tmp_path) -> None:
    """The oracle is a step by hand: AdamW's first update is -lr · sign(gradient) with a tiny eps."""
    optimizer = OptimizerConfig(lr=1e-3, weight_decay=0, eps=1e-12)
    module, _ = fit(tmp_path, Linear(delta=0), steps=1, optimizer=optimizer, clip=None, micro=2)
    model = small_model(TOKENIZER).train()
    data = CoTDataModule(TASK, TOKENIZER, DataConfig(batch_size=8)).prepare()
    batch = next(iter(data.train_dataloader()))
    labels = batch.tokens.masked_fill(~batch.is_target, -100)
    model(input_ids=batch.tokens, attention_mask=batch.attention_mask, labels=labels).loss.backward()
    step = torch.cat(
        [-1e-3 * (p.grad / (p.grad.abs() + 1e-12)).flatten() for p in model.parameters() if p.grad is not None]
    )
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    moved = weights(module) - before
    clear = torch.cat([p.grad.flatten().abs() for p in model.parameters()]) > 1e-5
    assert torch.allclose(moved[clear], step[clear], atol=1e-5)


def test_only_training_has_offsets(tmp_path) -> None:
    module, _ = fit(tmp_path, Linear(delta=0, smoothing=0.2), steps=4)
    assert any(
        int(b.length_of(Part.COT).sum()) < module.data.encoded["train"].cot_length[
            module.data.train_dataloader().stream.rows(b.draw.numpy())].sum()
        for b in module.method.seen  # type: ignore[attr-defined]
    )  # fmt: skip
    batch = next(iter(module.data.val_dataloader()))
    view = module.method.view(module.learner, batch, Stage(module.stage, module.schedule.last))
    assert torch.equal(view.tokens, batch.tokens)


def test_validation_comes_before_the_next_token_leaves_at_epoch_ends_and_at_the_end(tmp_path) -> None:
    _, spy = fit(tmp_path, Linear(delta=4), steps=21, every_removed=2)
    assert spy.validated == [(2, 0), (6, 2), (10, 4), (14, 6), (21, 8)]
    _, spy = fit(tmp_path, Linear(delta=4), steps=21, every_epochs=1)
    assert spy.validated == [(8, 3), (16, 7), (21, 8)]
    _, spy = fit(tmp_path, Linear(delta=4), steps=24, every_epochs=2, micro=2)
    assert spy.validated == [(16, 7), (24, 8)]
    _, spy = fit(tmp_path, Linear(delta=4), steps=5)
    assert spy.validated == [(5, 2)]


def test_checkpoints_keep_the_best_at_the_most_removed_tokens(tmp_path) -> None:
    class Accuracies(StepwiseModule):
        """Replaces validation accuracies by given ones."""

        given = iter([0.9, 0.2, 0.6, 0.5])

        def _evaluated(self, split: str) -> dict[str, Any]:
            return super()._evaluated(split) | {f"{split}/answer_accuracy": torch.tensor(next(self.given))}

    fit(tmp_path, Linear(delta=8), steps=32, every_epochs=1, build=Accuracies)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    # Removed tokens after the four epochs: 7, 8, 8, 8.
    assert (best["global_step"], best["stepwise"]["removed"]) == (24, 8)
    assert last["global_step"] == 32


class Stop(Callback):
    """Fails after a step, after its first micro-batch, inside a step, or inside a validation."""

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        self.fail(trainer, "inside")

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches:
            self.fail(trainer, "between micro-batches")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.fail(trainer, "after")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.fail(trainer, "validation")

    def fail(self, trainer: L.Trainer, where: str) -> None:
        if (trainer.global_step, where) == (self.step, self.where):
            raise RuntimeError("stopped")


def test_a_run_that_removes_steps_resumes(tmp_path) -> None:
    kwargs: dict[str, Any] = {"steps": 20, "dropout": 0.2, "every_epochs": 1, "checkpoint_every": 3}
    schedule = {"delta": "8/5", "smoothing": 1.0}  # a step every fifth optimizer step
    kwargs["method"] = Stepwise(unit="step")
    whole, _ = fit(tmp_path / "whole", Linear(**schedule), **kwargs)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "cut", Linear(**schedule), callbacks=(Stop(7, "inside"),), **kwargs)
    resumed, spy = fit(tmp_path / "cut", Linear(**schedule), resume=str(tmp_path / "cut" / "last.ckpt"), **kwargs)
    assert (len(spy.removed), spy.removed[-1]) == (14, 8)
    assert torch.equal(weights(resumed), weights(whole))


STOPS = [
    (5, "after"), (6, "after"), (8, "after"), (13, "after"), (7, "inside"), (10, "between micro-batches"),
    (8, "validation"),
]  # fmt: skip


@pytest.mark.parametrize("micro,workers", [(1, 0), pytest.param(2, 2, marks=pytest.mark.long)])
@pytest.mark.parametrize("stop", STOPS)
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, stop, micro: int, workers: int) -> None:
    """With dropout. The run stops before, at or after a removal, at the end of an epoch, inside a step, or inside a validation."""
    if stop[1] == "between micro-batches" and micro == 1:
        pytest.skip("there is only one")
    schedule = {"delta": "8/3", "smoothing": 1.0, "rewarmup_steps": 2}  # a token every third step
    kwargs: dict[str, Any] = {
        "steps": 20, "dropout": 0.2, "micro": micro, "workers": workers, "every_epochs": 1, "checkpoint_every": 4,
    }  # fmt: skip
    whole, whole_spy = fit(tmp_path / "whole", Linear(**schedule), **kwargs)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "cut", Linear(**schedule), callbacks=(Stop(*stop),), **kwargs)
    resumed, spy = fit(tmp_path / "cut", Linear(**schedule), resume=str(tmp_path / "cut" / "last.ckpt"), **kwargs)
    assert torch.equal(weights(resumed), weights(whole))
    assert spy.removed == whole_spy.removed[-len(spy.removed) :]
    assert spy.validated == [v for v in whole_spy.validated if v[0] > 20 - len(spy.removed)]


def test_another_causal_lm_trains_too(tmp_path) -> None:
    from stepwise_pl.config.model import ModelConfig
    from stepwise_pl.models.build import build_model

    torch.manual_seed(0)
    cfg = ModelConfig(type="llama", layers=1, heads=2, width=16, positions=64, config={"intermediate_size": 32})
    model = build_model(cfg, TOKENIZER)
    data = CoTDataModule(TASK, TOKENIZER, DataConfig(batch_size=8))
    module = StepwiseModule(
        model, TOKENIZER, Linear(delta=4), OptimizerConfig(lr=3e-3), method=Stepwise(keep_position=True)
    )
    trainer = L.Trainer(
        accelerator="cpu", max_steps=20, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    batch = data.prepare().encoded["train"].collate(torch.arange(16).numpy())
    with torch.no_grad():
        targets = Targets.of(batch)
        before = float(torch.nn.functional.cross_entropy(target_logits(model, targets), targets.label))
    trainer.fit(module, data)
    after = float(trainer.callback_metrics["train/loss"])
    assert after < 0.9 * before


def test_a_stop_is_not_put_off_by_a_validation_after_every_step(tmp_path) -> None:
    class Ask(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                module.stop.is_asked = True

    with pytest.raises(SIGTERMException):
        fit(tmp_path, Linear(delta=8, smoothing=math.inf), steps=8, every_removed=1, callbacks=(Ask(),))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_data_module_is_freed_after_its_run() -> None:
    """A sweep has many data modules in one process."""
    data = CoTDataModule(TASK, TOKENIZER, DataConfig(batch_size=8)).prepare()
    assert len(data.whole_step(0)) == 8 and len(data.train_dataloader()) == 8
    gone = weakref.ref(data)
    del data
    gc.collect()
    assert gone() is None


def test_of_the_stages_that_are_kept_the_newest_stay(tmp_path) -> None:
    _, spy = fit(tmp_path, Linear(delta=4), steps=10, every_removed=1, kept=2)
    assert {removed for _, removed in spy.validated} == {0, 1, 2, 3, 4}
    assert {path.name for path in tmp_path.glob("removed-*.ckpt")} == {"removed-3.ckpt", "removed-4.ckpt"}
