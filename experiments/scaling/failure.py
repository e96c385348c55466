"""Predictors of failure: differences between sizes, rank correlations within runs, hard digits, and the tokens at which runs were stuck.

Differences are of combinations of the two other factors: of each, the mean over the seeds counts as one number. Two seeds of a
combination are no two independent pairs, because combinations differ more than seeds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.stats import spearmanr

from experiments.scaling.chains import DIGIT
from experiments.scaling.collect import STUCK
from experiments.scaling.runs import Run, Token

FACTORS = ("layers", "width", "task")
FEWEST_STAGES = 5
Combination = tuple[object, ...]


def combinations(runs: Sequence[Run], factor: str) -> dict[object, dict[Combination, dict[int, Run]]]:
    """The runs by the level of a factor, then by the combination of the other factors, then by seed.

    Depths and widths ascend; tasks stand in the order of the runs.
    """
    others = [name for name in FACTORS if name != factor]
    found: dict[object, dict[Combination, dict[int, Run]]] = {}
    for run in runs if factor == "task" else sorted(runs, key=lambda run: getattr(run, factor)):
        combination = tuple(getattr(run, name) for name in others)
        found.setdefault(getattr(run, factor), {}).setdefault(combination, {})[run.seed] = run
    return found


@dataclass
class Difference:
    """A level of a factor against another, for each combination of the other factors that has runs of both.

    Attributes:
        shares: share of tokens gone, higher level less lower level, mean over the seeds of both.
        log_ratios: logarithm of examples per token, higher by lower level, mean over the seeds; only of combinations in
            which every run of both levels is through.
    """

    shares: list[float]
    log_ratios: list[float]


def difference(runs: Sequence[Run], factor: str, low: object, high: object) -> Difference:
    """Compare two levels of a factor at equal other factors and seeds."""
    levels = combinations(runs, factor)
    found = Difference([], [])
    for combination, of_high in levels.get(high, {}).items():
        of_low = levels.get(low, {}).get(combination, {})
        pairs = [(of_high[seed], of_low[seed]) for seed in of_high if seed in of_low]
        if not pairs:
            continue
        found.shares.append(fmean(one.share - other.share for one, other in pairs))
        if all(run.is_through for pair in pairs for run in pair):
            found.log_ratios.append(
                fmean(math.log((one.examples_per_token or 0) / (other.examples_per_token or 0)) for one, other in pairs)
            )
    return found


@dataclass
class Ranks:
    """Spearman's rank correlations over the kept stages of a run; None where one of the two does not change.

    Attributes:
        position: of a stage's steps with the number of tokens gone.
        chain: of a stage's steps with the chain of the token that left when the stage began.
        chain_alone: the same, partial: the position is held.
        chain_varying: `chain` among tokens that differ between problems; None also if they are fewer than `FEWEST_STAGES`.
    """

    position: float | None
    chain: float | None = None
    chain_alone: float | None = None
    chain_varying: float | None = None


def ranks(run: Run, tokens: Sequence[Token] = ()) -> Ranks | None:
    """The correlations of a run; None if it has fewer than `FEWEST_STAGES` kept stages in which a token left.

    Args:
        tokens: of the CoT; empty: the task has no carries.
    """
    stages = [stage for stage in run.stages if stage.is_kept and stage.removed_tokens > 0]
    if len(stages) < FEWEST_STAGES:
        return None
    steps, position = [stage.steps for stage in stages], [stage.removed_tokens for stage in stages]
    found = Ranks(spearman(steps, position))
    if tokens:
        leaving = run.leaving(tokens)
        left = [leaving[stage.removed_tokens - 1] for stage in stages]
        chain = [token.chain for token in left]
        found.chain = spearman(steps, chain)
        found.chain_alone = partial(found.chain, found.position, spearman(chain, position))
        varying = [place for place, token in enumerate(left) if token.varies]
        if len(varying) >= FEWEST_STAGES:
            found.chain_varying = spearman([steps[place] for place in varying], [chain[place] for place in varying])
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None if one of the two does not change."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def partial(both: float | None, first: float | None, second: float | None) -> float | None:
    """The partial correlation of two quantities with a third held; None if it is not defined.

    Args:
        both: correlation of the two.
        first, second: of each of them with the third.
    """
    if both is None or first is None or second is None:
        return None
    rest = (1 - first**2) * (1 - second**2)
    return (both - first * second) / math.sqrt(rest) if rest > 1e-12 else None


@dataclass
class Hardest:
    """A number of the CoT, which is a row or a running sum, and the digits whose stages took the most steps.

    Attributes:
        number: `row 1` or `sum 2`.
        places: 0 is its last digit, the one with the highest place value, 1 the digit before, and so on; several if their stages
            took equally long.
    """

    number: str
    places: list[int]


def hardest(run: Run, tokens: Sequence[Token]) -> Iterator[Hardest]:
    """The hardest digits of each number of a run that has lost all its varying digits, or was stuck among them at the hardest.

    Args:
        tokens: of the CoT.
    """
    leaving = run.leaving(tokens)
    stages = {leaving[stage.removed_tokens - 1].number: stage for stage in run.stages if stage.removed_tokens}
    numbers: dict[str, list[Token]] = {}
    for token in tokens:
        if token.varies:
            numbers.setdefault(token.name.split(DIGIT)[0], []).append(token)
    for number, digits in numbers.items():
        # A number is written from its lowest place value on.
        own = {place: stages[token.number] for place, token in enumerate(reversed(digits)) if token.number in stages}
        most = max((stage.steps for stage in own.values()), default=0)
        hard = [place for place, stage in own.items() if stage.steps == most]
        is_through = len(own) == len(digits) and all(stage.is_kept for stage in own.values())
        if is_through or (run.ended == STUCK and any(not own[place].is_kept for place in hard)):
            yield Hardest(number, hard)


@dataclass
class Stop:
    """A run that was stuck.

    Attributes:
        removed_tokens: gone in its last stage.
        token: that left when this stage began; None if none has left, or if the task has no carries.
        mean_chain: of all tokens of the CoT; None if the task has no carries.
    """

    run: Run
    removed_tokens: int
    token: Token | None
    mean_chain: float | None


def stops(runs: Sequence[Run], chains: dict[str, list[Token]]) -> Iterator[Stop]:
    """The runs that were stuck, each with the token at which it stopped."""
    for run in (run for run in runs if run.ended == STUCK):
        removed, tokens = run.stages[-1].removed_tokens, chains.get(run.task)
        token = run.leaving(tokens)[removed - 1] if tokens and removed else None
        yield Stop(run, removed, token, fmean(token.chain for token in tokens) if tokens else None)
