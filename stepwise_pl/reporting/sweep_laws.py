"""Power laws of a measure over a swept key of a sweep, and the reasons why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepwise_pl.common.errors import UserError
from stepwise_pl.common.laws import PowerFit, fit_power
from stepwise_pl.common.text import counted
from stepwise_pl.reporting.figures.sweeps import unit_and_number
from stepwise_pl.runs.measures import MeasuredRun
from stepwise_pl.runs.sweep_folder import FAILED, label

# A curvature with a smaller p means that there is no power law.
SIGNIFICANT = 0.05
POOLED = "pooled"


@dataclass
class Law:
    """The fit of a combination of the other swept keys, or of all combinations together.

    Attributes:
        combination: the other swept keys with their values; empty if there are none, or if the fit is pooled.
        pooled: whether the fit has one exponent for all combinations, and a factor for each.
        runs: runs with a number above 0, which are those fitted.
        key_values: distinct values of the key among them.
        at_zero, without, failed: runs that are missing: their number is 0, they have none, or their job has failed.
        not_ended: jobs that have yet to end. They do not count as missing.
        left_out: combinations that a pooled fit leaves out, because they miss too many runs to be fitted alone.
        fit: None if the numbers allow none.
        no_law: why there is no law; empty if there is one.
    """

    combination: dict[str, str]
    pooled: bool
    runs: int
    key_values: int
    at_zero: int
    without: int
    failed: int
    not_ended: int
    left_out: int = 0
    fit: PowerFit | None = None
    no_law: str = ""

    @property
    def missing(self) -> int:
        """The runs that have ended, or failed, without a number above 0."""
        return self.at_zero + self.without + self.failed

    @property
    def misses_too_many(self) -> bool:
        """Whether a third or more are missing. They would be missing for a reason, such as being the hardest."""
        return self.missing > 0 and 3 * self.missing >= self.runs + self.missing

    @property
    def missing_words(self) -> str:
        """`2 of 8 runs have no number above 0 (1 with 0, 1 failed)`; empty if none is missing."""
        kinds = [(self.at_zero, "with 0"), (self.without, "with none"), (self.failed, "failed")]
        words = ", ".join(f"{count} {kind}" for count, kind in kinds if count)
        return f"{self.missing} of {self.missing + self.runs} runs have no number above 0 ({words})" if words else ""


def require_numbers(runs: Sequence[MeasuredRun], key: str) -> None:
    """Raise `UserError` unless all values of a swept key are finite numbers above 0, in one unit."""
    units, named = set(), f"fit={key.lstrip('+')}"
    for text in dict.fromkeys(run.config[key] for run in runs if key in run.config):
        try:
            unit, number = unit_and_number(text)
        except (ValueError, ZeroDivisionError):
            raise UserError(f"{named}: {text} is no number; a power law needs a key whose values are numbers") from None
        if not 0 < number < float("inf"):
            raise UserError(f"{named}: has the value {text}; a power law needs finite numbers above 0")
        units.add(unit)
    if len(units) > 1:
        raise UserError(f"{named}: its values have several units ({', '.join(sorted(units))}); a power law needs one")


def laws_of(runs: Sequence[MeasuredRun], key: str) -> list[Law]:
    """The fit of each combination of the other swept keys but the seed, and last, if there are several, the pooled one.

    Args:
        runs: those without the key are left out.
        key: its values are numbers (`require_numbers`).
    """
    groups: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        if key in run.config:
            groups.setdefault(label(_rest(run, key)), []).append(run)
    laws = [_law(group, key) for group in groups.values()]
    return [*laws, _pooled(laws, list(groups.values()), key)] if len(groups) > 1 else laws


def _pooled(laws: Sequence[Law], groups: Sequence[Sequence[MeasuredRun]], key: str) -> Law:
    """One exponent for all combinations, less those that miss too many runs.

    Args:
        laws, groups: the fit and the runs of each combination.
    """
    kept = [group for law, group in zip(laws, groups, strict=True) if not law.misses_too_many]
    law = _law([run for group in kept for run in group], key, pooled=True)
    law.left_out = len(groups) - len(kept)
    return law


def _rest(run: MeasuredRun, key: str) -> dict[str, str]:
    return {name: text for name, text in run.config.items() if name != key}


def _law(runs: Sequence[MeasuredRun], key: str, *, pooled: bool = False) -> Law:
    ended = [run for run in runs if run.has_ended]
    used = [run for run in ended if run.value is not None and run.value > 0]
    without, failed = sum(run.value is None for run in ended), sum(run.outcome == FAILED for run in runs)
    numbers = [unit_and_number(run.config[key])[1] for run in used]
    law = Law(
        {} if pooled else _rest(runs[0], key), pooled, len(used), len(set(numbers)), len(ended) - len(used) - without,
        without, failed, len(runs) - len(ended) - failed,
    )  # fmt: skip
    groups = [label(_rest(run, key)) for run in used]
    law.no_law = _not_to_be_fitted(law, groups, numbers)
    if law.no_law:
        return law
    try:
        law.fit = fit_power(numbers, [run.value or 0 for run in used], groups)
    except ValueError as error:
        law.no_law = str(error)
        return law
    law.no_law = _against(law.fit, key, min(numbers), max(numbers))
    return law


def _not_to_be_fitted(law: Law, combinations: Sequence[str], numbers: Sequence[float]) -> str:
    """Why the numbers are not fitted; empty if they are.

    A pooled law needs a combination with three values of the key. From two values here and two others there, a difference between
    the combinations would look like a bend.

    Args:
        combinations, numbers: the combination and the value of the key of each run with a number above 0.
    """
    values: dict[str, set[float]] = {}
    for combination, number in zip(combinations, numbers, strict=True):
        values.setdefault(combination, set()).add(number)
    if law.misses_too_many:
        return f"{law.missing_words}, a third or more, which may lack it for a reason"
    if law.pooled and len(values) < 2:
        return f"{len(values) or 'no'} combination has numbers to be fitted, where a pooled law needs 2"
    if not law.runs:
        return "no run has ended"
    if (most := max(map(len, values.values()))) < 3:
        each = " in a combination, at most" if law.pooled else ""
        return f"{counted(most, 'value')} of the key{each}, where a law needs 3"
    return ""


def _against(fit: PowerFit, key: str, lowest: float, highest: float) -> str:
    """Why a fit is no law; empty if nothing speaks against it. A bent curve may have a mean slope of 0, so it comes first."""
    if _is_bent(fit):
        ends = f"{fit.first_slope:.3g} at {key.lstrip('+')}={lowest:g}, {fit.last_slope:.3g} at {highest:g}"
        return f"the slope changes: {ends} (p={fit.curvature_p:.2g})"
    if fit.low <= 0 <= fit.high:
        return f"the exponent may be 0: b={fit.exponent:.3g} [{fit.low:.3g}, {fit.high:.3g}]"
    return ""


def _is_bent(fit: PowerFit) -> bool:
    return fit.curvature_p is not None and fit.curvature_p < SIGNIFICANT


def law_lines(laws: Sequence[Law], key: str) -> list[str]:
    """A line for each fit."""
    names = [POOLED if law.pooled else label(law.combination) for law in laws]
    width = max(map(len, names), default=0)
    return [f"{name:{width}}  {_in_words(law, key)}" for name, law in zip(names, laws, strict=True)]


def _in_words(law: Law, key: str) -> str:
    fit, name = law.fit, key.lstrip("+")
    notes = [] if fit is None else [f"{counted(law.runs, 'run')} at {counted(law.key_values, 'value')} of {name}"]
    if law.missing and law.missing_words not in law.no_law:
        notes.append(f"{law.missing_words}, left out")
    if law.left_out:
        notes.append(f"{counted(law.left_out, 'combination')} left out, for want of a third of the runs or more")
    if law.not_ended:
        notes.append(f"{law.not_ended} not ended")
    if fit is not None and fit.curvature_p is None:
        notes.append("too few to test for a bend")
    if fit is None or law.no_law:
        kind = "no power law" if fit is not None and _is_bent(fit) else "no law"
        return "; ".join([f"{kind}: {law.no_law}", *notes])
    factors = "" if law.pooled else f", a={next(iter(fit.factors.values())):.3g}"
    return "; ".join([f"b={fit.exponent:.3g} [{fit.low:.3g}, {fit.high:.3g}]{factors}", *notes])


def law_rows(laws: Sequence[Law], value: str, key: str) -> list[dict[str, Any]]:
    """The rows of fits.csv. A pooled fit has no combination and no `a`, because each combination has an `a` of its own."""
    names = list(dict.fromkeys(name for law in laws for name in law.combination))
    rows = []
    for law in laws:
        fit = law.fit
        bends = fit is not None and fit.curvature_p is not None
        rows.append({
            **{name: law.combination.get(name, "") for name in names},
            "fit": POOLED if law.pooled else "alone",
            "value": value,
            "key": key,
            "law": "no" if law.no_law else "yes",
            "reason": law.no_law,
            "a": next(iter(fit.factors.values())) if fit and not law.pooled else None,
            "b": fit.exponent if fit else None,
            "b_low": fit.low if fit else None,
            "b_high": fit.high if fit else None,
            "curvature_p": fit.curvature_p if fit else None,
            "first_slope": fit.first_slope if fit and bends else None,
            "last_slope": fit.last_slope if fit and bends else None,
            "runs": law.runs,
            "key_values": law.key_values,
            "at_zero": law.at_zero,
            "without": law.without,
            "failed": law.failed,
            "not_ended": law.not_ended,
            "left_out": law.left_out,
        })  # fmt: skip
    return rows
