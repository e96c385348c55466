"""How surely each signal tells that a stage will be lost: its ROC over the runs of signals.csv and results.csv.

A stage is lost if accuracy at its end is surely (95% Wilson) below a quarter of the run's best so far: the guard calls two of these
in a row a collapse. A run is looked at up to its first lost stage, because later stages begin from a model that is broken already.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

from experiments.readme import Row, read_rows
from stepwise_pl.common.errors import UserError
from stepwise_pl.common.statistics import wilson
from stepwise_pl.common.text import counted

HERE = Path(__file__).resolve().parent
LOW = 0.25  # guard.collapsed
# The direction in which a signal should go when a stage will be lost.
HIGHER_IS_WORSE = {
    "gradient_norm": True, "update_size": True, "loss": True, "first_token_loss": True, "next_stage_loss": True,
    "accuracy": False, "averaged_accuracy": False,
}  # fmt: skip
# Optimizer steps after the token has left at which a signal is read; 0: the last reading before it leaves. Every stage lasts longer.
WHEN = (0, 10, 20, 50, 90)
SMOOTHED = 3  # readings of which the mean is taken, within the stage
DRAWS = 2000
Scores = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass
class StageOfRun:
    """A stage of a run, from the step at which its token left.

    Attributes:
        run: pace (steps for each token) and seed.
        removed_tokens: CoT tokens gone in this stage.
        is_lost: see the top of this file.
        readings: by signal and `WHEN`; nan where a signal is not there.
    """

    run: tuple[int, int]
    removed_tokens: int
    is_lost: bool
    readings: dict[tuple[str, int], float]


def read_stages(folder: Path = HERE) -> list[StageOfRun]:
    """The stages from one removed token on, of every run up to its first lost stage."""
    signals, validations = by_run(read_rows(folder / "signals.csv")), by_run(read_rows(folder / "results.csv"))
    found = []
    for run, rows in validations.items():
        best = 0.0
        for row in rows:
            accuracy, examples = float(row["accuracy_any_length"]), int(row["examples"])
            best = max(best, accuracy)
            removed, is_lost = int(row["removed_tokens"]), wilson(accuracy, examples)[1] < LOW * best
            if removed:
                found.append(StageOfRun(run, removed, is_lost, _readings(signals[run], removed)))
            if is_lost:
                break
    return found


def known(stages: Sequence[StageOfRun], signal: str, when: int) -> list[StageOfRun]:
    """The stages that have a reading of the signal: the next stage's loss is missing at the last stage.

    Raises:
        UserError: they are not lost and kept ones, both of even seeds, which choose a threshold, and of odd ones, which try it.
    """
    found = [stage for stage in stages if not np.isnan(stage.readings[signal, when])]
    for parity, name in enumerate(("even", "odd")):
        is_lost = [stage.is_lost for stage in found if stage.run[1] % 2 == parity]
        if all(is_lost) or not any(is_lost):
            raise UserError(
                f"signals.csv, results.csv: the {name} seeds have {counted(len(is_lost), 'stage')} with `{signal}`, {sum(is_lost)} lost; "
                "a signal is judged by lost and kept stages of even and of odd seeds, so collect more runs"
            )
    return found


def by_run(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    out: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        out.setdefault((int(row["pace"]), int(row["seed"])), []).append(row)
    return out


def _readings(rows: Sequence[Row], removed: int) -> dict[tuple[str, int], float]:
    """The mean of the last readings up to each of `WHEN`, within the stage (0: within the stage before)."""
    own = [row for row in rows if int(row["removed_tokens"]) == removed]
    before = [row for row in rows if int(row["removed_tokens"]) == removed - 1]
    # The token leaves right after this reading, because a stage lasts a multiple of the steps between readings.
    begins = int(before[-1]["step"])
    out = {}
    for when in WHEN:
        seen = before if when == 0 else [row for row in own if int(row["step"]) <= begins + when]
        for signal in HIGHER_IS_WORSE:
            values = [float(row[signal]) for row in seen[-SMOOTHED:] if row[signal]]
            out[signal, when] = float(np.mean(values)) if values else float("nan")
    return out


def scores(stages: Sequence[StageOfRun], signal: str, when: int) -> Scores:
    """The signal of each stage, so that more is worse, [stages]."""
    values = np.array([stage.readings[signal, when] for stage in stages])
    return values if HIGHER_IS_WORSE[signal] else -values


def draws_of_seeds(seeds: npt.NDArray[np.int64]) -> Counts:
    """How often each stage is in each draw of whole seeds, with replacement, [1 + DRAWS, stages]. The first row is the stages as they are.

    Runs of one seed begin with the same weights, so that their stages are not independent. Runs of different seeds are.
    """
    names, place = np.unique(seeds, return_inverse=True)
    chances = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(0).multinomial(len(names), chances, DRAWS)  # [draws, seeds]
    return np.concatenate([np.ones((1, len(names)), np.int64), drawn])[:, place]


def areas(
    lost: npt.NDArray[np.bool_], score: Scores, counts: Counts, strata: npt.NDArray[np.int64] | None = None
) -> Scores:
    """The chance that a lost stage has a worse score than a kept one, in each draw; ties count half. [draws]

    Args:
        lost: whether each stage is lost, [stages].
        score: more is worse, [stages].
        counts: how often each stage is in each draw, [draws, stages].
        strata: pairs of a lost and a kept stage count only within a stratum, [stages]; None: all pairs. nan if there is no pair.
    """
    worse, better = score[lost, None], score[~lost]
    is_right = (worse > better) + 0.5 * (worse == better)  # [lost, kept]
    is_pair = np.ones(is_right.shape) if strata is None else (strata[lost, None] == strata[~lost]).astype(float)
    of_lost, of_kept = counts[:, lost], counts[:, ~lost]
    pairs = (of_lost @ is_pair * of_kept).sum(axis=1)  # [draws]
    right = (of_lost @ (is_pair * is_right) * of_kept).sum(axis=1)  # [draws]
    return np.divide(right, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


@dataclass
class Judged:
    """How well a signal tells lost stages from kept ones.

    Attributes:
        area: area under the ROC curve, with its 95% interval from draws of whole seeds (percentile bootstrap).
        at_one_pace: the same over pairs of stages at the same pace, so that the pace itself tells nothing.
        at_one_place: the same over pairs at the same pace with as many tokens gone, so that neither tells anything.
        stages: how many there were, and how many of them lost.
    """

    signal: str
    when: int
    area: tuple[float, float, float]
    at_one_pace: tuple[float, float, float]
    at_one_place: tuple[float, float, float]
    stages: tuple[int, int]


def judged(stages: Sequence[StageOfRun], signal: str, when: int) -> Judged:
    """Judge a signal at a moment, by the stages that have it (`known`)."""
    there = known(stages, signal, when)
    lost = np.array([stage.is_lost for stage in there])
    paces, seeds = np.array([stage.run for stage in there]).T
    places = np.array([1000 * stage.run[0] + stage.removed_tokens for stage in there])
    score, counts = scores(there, signal, when), draws_of_seeds(seeds)
    found = (_with_interval(areas(lost, score, counts, strata)) for strata in (None, paces, places))
    return Judged(signal, when, *found, (len(there), int(lost.sum())))


def _with_interval(found: Scores) -> tuple[float, float, float]:
    """The area of the stages as they are, and the middle 95% of the draws."""
    low, high = np.nanpercentile(found[1:], [2.5, 97.5])
    return float(found[0]), float(low), float(high)


@dataclass
class Alarm:
    """A threshold that was chosen on some seeds, and what it does on the others.

    Attributes:
        threshold: of the signal itself.
        caught, false: of the lost and of the kept stages, how many it calls; each with its count.
    """

    threshold: float
    caught: tuple[int, int]
    false: tuple[int, int]


def alarm(stages: Sequence[StageOfRun], signal: str, when: int, most_false: float = 0.1) -> Alarm:
    """Choose the threshold on the even seeds, with false alarms at most at `most_false` of the kept stages, and try it on the odd ones."""
    there = known(stages, signal, when)
    lost, score = np.array([stage.is_lost for stage in there]), scores(there, signal, when)
    chosen_on = np.array([stage.run[1] % 2 == 0 for stage in there])
    # Without `drop_intermediate=False` a threshold in the middle of a straight piece of the curve could not be chosen.
    false, caught, thresholds = roc_curve(lost[chosen_on], score[chosen_on], drop_intermediate=False)
    best = int(np.argmax(np.where(false <= most_false, caught, -1)))
    called = score[~chosen_on] >= thresholds[best]
    others = lost[~chosen_on]
    sign = 1 if HIGHER_IS_WORSE[signal] else -1
    return Alarm(
        sign * float(thresholds[best]), (int((called & others).sum()), int(others.sum())),
        (int((called & ~others).sum()), int((~others).sum())),
    )  # fmt: skip
