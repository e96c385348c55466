"""The judgement of experiments/early_warning: areas against scikit-learn, and signals that were planted."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.early_warning.roc import (
    HIGHER_IS_WORSE,
    WHEN,
    StageOfRun,
    alarm,
    areas,
    draws_of_seeds,
    judged,
    read_stages,
)  # fmt: skip
from experiments.readme import write_rows
from stepwise_pl.common.errors import UserError


def test_areas_are_those_of_a_sample_in_which_stages_stand_as_often_as_they_count() -> None:
    """With ties, in all pairs and within strata, where an area is the mean of the strata's own by their pairs."""
    random = np.random.default_rng(3)
    lost, score = random.random(60) < 0.3, random.integers(0, 8, 60).astype(float)
    strata, counts = random.integers(0, 3, 60), random.integers(0, 3, (4, 60))
    for times, area, within in zip(counts, areas(lost, score, counts), areas(lost, score, counts, strata), strict=True):
        places = np.repeat(np.arange(60), times)
        assert area == pytest.approx(roc_auc_score(lost[places], score[places]))
        parts = [places[strata[places] == stratum] for stratum in range(3)]
        parts = [part for part in parts if 0 < lost[part].sum() < len(part)]
        pairs = [int(lost[part].sum() * (~lost[part]).sum()) for part in parts]
        wanted = np.average([roc_auc_score(lost[part], score[part]) for part in parts], weights=pairs)
        assert within == pytest.approx(wanted)
    assert np.isnan(areas(np.ones(60, bool), score, counts)).all()


def test_stages_of_one_seed_are_drawn_together() -> None:
    seeds = np.array([4, 7, 4, 9, 7, 4])
    counts = draws_of_seeds(seeds)
    assert (counts[0] == 1).all() and counts.shape[1] == 6
    for seed in (4, 7, 9):
        assert all(len(set(row)) == 1 for row in counts[:, seeds == seed].tolist())
    # Three seeds are drawn each time, each of them once in the mean.
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert counts[1:].mean(axis=0) == pytest.approx(np.ones(6), abs=0.1)


def planted(shift: float, seeds: int = 20) -> list[StageOfRun]:
    """Four stages a run at two paces; a third are lost. `loss` is `shift` higher in a lost stage, `accuracy` is noise."""
    random, found = np.random.default_rng(1), []
    for pace in (100, 200):
        for seed in range(seeds):
            for removed in range(1, 5):
                is_lost = bool(random.random() < 1 / 3)
                readings = {(signal, when): random.standard_normal() for signal in HIGHER_IS_WORSE for when in WHEN}
                readings["loss", 20] += shift * is_lost
                found.append(StageOfRun((pace, seed), removed, is_lost, readings))
    return found


def test_a_planted_signal_is_found_and_noise_is_not() -> None:
    stages = planted(shift=3)
    area, low, high = judged(stages, "loss", 20).area
    assert low < 0.983 < high and area > 0.95  # P(N(3, 1) > N(0, 1)) = Φ(3 / √2) = 0.983
    for found in (judged(stages, "accuracy", 20), judged(planted(shift=0), "loss", 20)):
        for area, low, high in (found.area, found.at_one_pace, found.at_one_place):
            assert low < area < high and low < 0.5 < high


def test_an_alarm_is_chosen_on_even_seeds_and_tried_on_odd_ones() -> None:
    stages = planted(shift=20)
    found = alarm(stages, "loss", 20)
    lost = [stage for stage in stages if stage.is_lost and stage.run[1] % 2]
    # The threshold is the lowest reading of a lost stage of an even seed. Few lost stages of odd seeds are below.
    assert found.threshold == min(
        stage.readings["loss", 20] for stage in stages if stage.is_lost and not stage.run[1] % 2
    )
    assert found.caught[1] == len(lost) and found.caught[0] > 0.8 * len(lost) and found.false[0] == 0
    # Readings of odd seeds do not move the threshold.
    for stage in lost:
        stage.readings["loss", 20] -= 40
    moved = alarm(stages, "loss", 20)
    assert (moved.threshold, moved.caught[0]) == (found.threshold, 0)


def test_a_signal_is_judged_by_lost_and_kept_stages_of_even_and_of_odd_seeds() -> None:
    stages = [
        StageOfRun((200, seed), 1, is_lost, {("loss", 10): float(is_lost), ("update_size", 10): float("nan")})
        for seed in (0, 1) for is_lost in (True, False)
    ]  # fmt: skip
    assert judged(stages, "loss", 10).area[0] == 1 and alarm(stages, "loss", 10).caught == (1, 1)
    for some, signal, words in (
        (stages[:3], "loss", "the odd seeds have 1 stage with `loss`, 1 lost"),
        (stages[2:], "loss", "the even seeds have 0 stages with `loss`, 0 lost"),
        (stages, "update_size", "the even seeds have 0 stages with `update_size`, 0 lost"),
    ):
        for judge in (judged, alarm):
            with pytest.raises(UserError, match=words):
                judge(some, signal, 10)


def test_stages_are_read_up_to_the_first_lost_one_with_the_last_readings(tmp_path: Path) -> None:
    """Pace 100, a reading every 10 steps. The reading is the step itself; the accuracy falls at two tokens gone."""
    signals = [
        {"pace": 100, "seed": 3, "step": step, "removed_tokens": (step - 1) // 100, "loss": step, "accuracy": 1.0}
        for step in range(10, 401, 10)
    ]
    write_rows(tmp_path / "signals.csv", ("pace", "seed", "step", "removed_tokens", *HIGHER_IS_WORSE), signals)
    validations = [
        {"pace": 100, "seed": 3, "removed_tokens": removed, "accuracy_any_length": accuracy, "examples": 500}
        for removed, accuracy in enumerate([1.0, 0.3, 0.1, 0.9])
    ]
    write_rows(tmp_path / "results.csv", tuple(validations[0]), validations)
    kept, lost = read_stages(tmp_path)
    assert [(stage.run, stage.removed_tokens, stage.is_lost) for stage in (kept, lost)] == [
        ((100, 3), 1, False), ((100, 3), 2, True)
    ]  # fmt: skip
    assert [kept.readings["loss", when] for when in WHEN] == [90, 110, 115, 140, 180]
    assert [lost.readings["loss", when] for when in WHEN] == [190, 210, 215, 240, 280]
    assert np.isnan(kept.readings["next_stage_loss", 10])
