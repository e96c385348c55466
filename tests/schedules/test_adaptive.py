"""The adaptive schedule, compared with sums over its whole history, and under the real trainer."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.training import OptimizerConfig
from stepwise_pl.models.forward import Targets, target_logits
from stepwise_pl.schedules import Adaptive
from stepwise_pl.training.module import StepwiseModule
from tests.training.test_module import fit

MOST = 6
# For each step and number of removed units: target tokens, and the share that is right.
histories = st.lists(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=MOST + 1, max_size=MOST + 1), max_size=40
)
settings_of = st.fixed_dictionaries(
    {
        "gate": st.sampled_from([0.3, 0.5, 0.8, 1.0]),
        "memory": st.integers(1, 12),
        "min_stay": st.integers(1, 5),
        "max_stay": st.sampled_from([None, 5, 9]),
        "evidence": st.sampled_from([1, 30, 100]),
        "remove_at_most": st.sampled_from([None, 0, 4, 9]),
    }
)


def bound(**kwargs) -> Adaptive:
    schedule = Adaptive(**kwargs)
    schedule.bind(100, MOST)
    return schedule


def counts(step: list[tuple[int, float]]) -> tuple[list[int], list[int]]:
    return [n for n, _ in step], [round(n * share) for n, share in step]


def oracle(history, gate, memory, min_stay, max_stay, evidence, remove_at_most) -> list[int]:
    """Return s after each step. Every running accuracy is summed again from the whole history."""
    most = MOST if remove_at_most is None else min(MOST, remove_at_most)
    out, stays = [0], 0
    for t in range(len(history)):
        weight = [(1 - 1 / memory) ** (t - i) for i in range(t + 1)]

        def accuracy(k: int, t=t, weight=weight) -> float:
            n = sum(w * counts(history[i])[0][k] for i, w in enumerate(weight))
            c = sum(w * counts(history[i])[1][k] for i, w in enumerate(weight))
            return c / n if n >= evidence else 0.0

        s, stays = out[-1], stays + 1
        if s < most and stays >= min_stay:
            ahead = [k for k in range(s + 1, most + 1) if accuracy(k) >= gate]
            if ahead:
                s = max(ahead)
            elif accuracy(s) >= gate or (max_stay is not None and stays >= max_stay):
                s += 1
        stays = 0 if s > out[-1] else stays
        out.append(s)
    return out


def near_a_gate(history, gate: float, memory: int, evidence: int) -> bool:
    """Whether rounding could decide, because some accuracy or count is very close to its threshold."""
    schedule = bound(gate=gate, memory=memory, evidence=evidence)
    for step, one in enumerate(history):
        schedule.observe_levels(step, *counts(one))
        for right, targets in zip(schedule.right, schedule.targets, strict=True):
            if abs(targets - evidence) < 1e-6 or (targets > 0 and abs(right / targets - gate) < 1e-6):
                return True
    return False


@given(histories, settings_of, st.integers(0, 40))
def test_it_decides_by_its_formula_and_the_same_after_a_resume(history, settings, stop) -> None:
    if near_a_gate(history, settings["gate"], settings["memory"], settings["evidence"]):
        return
    schedule = bound(**settings)
    found = [schedule.removed(0)]
    for step, one in enumerate(history):
        if step == stop:
            resumed = bound(**settings)
            resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict(step))))
            schedule = resumed
        schedule.observe_levels(step, *counts(one))
        found.append(schedule.removed(step + 1))
    assert found == oracle(history, **settings)
    assert found == sorted(found)


def stays(schedule: Adaptive, start: int, steps: int, right: float = 1.0) -> list[int]:
    """Return s at each step from `start` on, with 100 targets a step, all at s."""
    out = []
    for step in range(start, start + steps):
        out.append(schedule.removed(step))
        at = [100 if k == schedule.removed(step) else 0 for k in range(MOST + 1)]
        schedule.observe_levels(step, at, [round(right * n) for n in at])
    return out


def test_a_ready_model_loses_a_token_every_min_stay_and_an_unready_one_none() -> None:
    assert stays(bound(min_stay=3, evidence=10), 0, 14) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 2
    assert set(stays(bound(min_stay=3), 0, 500, right=0.94)) == {0}
    assert stays(bound(min_stay=1, max_stay=4), 0, 9, right=0.0) == [0] * 4 + [1] * 4 + [2]


def test_the_guard_slows_it_down() -> None:
    schedule = bound(min_stay=3, evidence=10)
    stays(schedule, 0, 14)
    schedule.slow_down(7, 2, Fraction(1, 2), 5)
    again = bound(min_stay=3, evidence=10)
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict(7))))
    assert stays(again, 7, 20) == [2] * (5 + 6) + [3] * 6 + [4] * 3


@pytest.mark.parametrize(
    "bad",
    [{"gate": 0}, {"gate": 1.5}, {"memory": 0}, {"min_stay": 0}, {"max_stay": 5}, {"evidence": 0},
     {"remove_at_most": -1}],
)  # fmt: skip
def test_bad_values_are_named(bad: dict) -> None:
    with pytest.raises(UserError, match=f"schedule.{next(iter(bad))}="):
        Adaptive(**bad)


class Recounting(StepwiseModule):
    """Counts again, example by example, the numbers that the schedule observes."""

    told: list[tuple[list[int], list[int]]]
    counted: list[tuple[list[int], list[int]]]

    def on_train_start(self) -> None:
        super().on_train_start()
        self.told, self.counted = [], []
        observe = self.schedule.observe_levels

        def spy(step, targets, right) -> None:
            self.told.append((list(targets), list(right)))
            observe(step, targets, right)

        self.schedule.observe_levels = spy  # type: ignore[method-assign]

    def training_step(self, batch, batch_idx):
        levels = self.data.limits.max_removed + 1
        targets, right = [0] * levels, [0] * levels
        stage = self.schedule.spread(batch.draw.numpy(), self.trainer.global_step, self.seed)
        with torch.no_grad():
            for row, units in enumerate(stage.each.tolist()):
                one = Targets.of(batch.row(row).remove(units))
                hits = target_logits(self.model, one).argmax(-1) == one.label
                level = min(units, levels - 1)
                targets[level] += len(hits)
                right[level] += int(hits.sum())
        self.counted.append((targets, right))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("micro", [1, 2])
def test_the_schedule_observes_the_counts_of_each_level(tmp_path, micro: int) -> None:
    schedule = Adaptive(smoothing=0.3, gate=0.01, min_stay=3, evidence=1, reset_optimizer=False)
    module, spy = fit(tmp_path, schedule, steps=12, micro=micro, build=Recounting)
    assert isinstance(module, Recounting)
    # The counts are summed over the micro-batches of a step.
    steps = np.array(module.counted).reshape(-1, micro, 2, module.data.limits.max_removed + 1).sum(1)
    assert np.array_equal(np.array(module.told), steps)
    assert len(set(spy.removed)) > 1 and np.count_nonzero(steps[0][0]) > 2


def test_it_resumes_exactly_with_muon(tmp_path) -> None:
    def schedule() -> Adaptive:
        return Adaptive(gate=0.05, memory=5, min_stay=4, evidence=20, reset_optimizer=False)

    optimizer = OptimizerConfig(lr=1e-3, matrices="muon", warmup_steps=3)
    whole, spy = fit(tmp_path / "whole", schedule(), steps=30, optimizer=optimizer, dropout=0.1)
    assert len(set(spy.removed)) > 2
    fit(tmp_path / "first", schedule(), steps=17, optimizer=optimizer, dropout=0.1)
    second, after = fit(
        tmp_path / "second", schedule(), steps=30, optimizer=optimizer, dropout=0.1, resume=str(tmp_path / "first" / "last.ckpt")
    )  # fmt: skip
    assert spy.removed[17:] == after.removed
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_reset_follows_its_steps(tmp_path) -> None:
    schedule = Adaptive(max_stay=4, min_stay=1, gate=1.0, smoothing=math.inf)
    _, spy = fit(tmp_path, schedule, steps=14, every_removed=1)
    assert spy.removed == [t // 4 for t in range(14)]
    assert [t for t, state in enumerate(spy.had_state) if not state] == [0, 4, 8, 12]
    assert spy.validated == [(4, 0), (8, 1), (12, 2), (14, 3)]
