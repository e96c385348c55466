"""The tables of README.md, from the csv files beside it.

python experiments/scaling/tables.py [--check]
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from experiments import readme
from experiments.readme import NONE, alike, table
from experiments.scaling.chains import ANSWER
from experiments.scaling.collect import OVER, STUCK, THROUGH
from experiments.scaling.failure import FACTORS, FEWEST_STAGES, Ranks, combinations, difference, hardest, ranks, stops
from experiments.scaling.runs import PARITY, Run, Token, read_chains, read_runs
from stepwise_pl.common.statistics import mean_interval
from stepwise_pl.common.text import counted
from stepwise_pl.reporting.sweep_laws import laws_of

HERE = Path(__file__).resolve().parent
Rows = Iterator[list[str]]


def tasks_of(runs: Sequence[Run]) -> list[str]:
    """The tasks, in the order of the runs."""
    return list(dict.fromkeys(run.task for run in runs))


def with_interval(values: Sequence[float], write: Callable[[float], str]) -> str:
    """`12 [3, 21]`: mean and 95% t interval; without an interval where there is one value, or where all are equal."""
    if not values:
        return NONE
    mean = write(fmean(values))
    if len(values) == 1:
        return f"{mean} (one)"
    if len(set(values)) == 1:
        return f"{mean} (all equal)"
    low, high = mean_interval(values)
    return f"{mean} [{write(low)}, {write(high)}]"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}"


def share_text(share: float) -> str:
    """A share. An interval of Student's t knows nothing of its bounds."""
    return f"{100 * min(1.0, max(0.0, share)):.1f}%"


def ratio(logarithm: float) -> str:
    """A ratio, given its logarithm."""
    return f"{math.exp(logarithm):.2f}"


def rho(value: float) -> str:
    """A correlation; the ends of its interval keep within -1 and 1."""
    return f"{min(1.0, max(-1.0, value)):.2f}"


def gone_text(run: Run) -> str:
    """Tokens gone at 95%; `never`: 95% was not reached, not even with the whole CoT."""
    return "never" if run.examples_per_token is None else str(run.removed_at_95)


def map_table(runs: Sequence[Run]) -> str:
    """Tokens gone at 95% and examples until all are gone, for each task, depth and width, the seeds in their order."""
    widths = sorted({run.width for run in runs})
    rows = []
    for task, layers in dict.fromkeys((run.task, run.layers) for run in runs):
        at = [[run for run in runs if (run.task, run.layers, run.width) == (task, layers, width)] for width in widths]
        tokens = next(run.cot_tokens for run in runs if run.task == task)
        gone = [alike([gone_text(run) for run in some]) if some else NONE for some in at]
        examples = [
            alike([NONE if run.examples is None else f"{run.examples:,.0f}" for run in some]) if some else NONE
            for some in at
        ]
        rows.append([task, str(tokens), str(layers), *gone, *examples])
    head = [
        "task", "CoT tokens", "layers", *(f"gone at 95%, width {width}" for width in widths),
        *(f"examples until all gone, width {width}" for width in widths),
    ]  # fmt: skip
    return table(head, rows)


def laws_table(runs: Sequence[Run]) -> str:
    """Exponents of examples per token over depth, width and bits, with one factor for each combination of the other two.

    The second column has only runs that are through, so that each has learned the whole CoT. The others then count as missing.
    """
    groups = {task: [run for run in runs if run.task == task] for task in tasks_of(runs)}
    families = ("multiplication", PARITY, "all")
    groups |= dict(zip(families, (*by_family(runs), list(runs)), strict=True))
    asked = [*(("layers", name) for name in groups), *(("width", name) for name in families), ("bits", PARITY)]
    return table(
        ["over", "runs of", "exponent [95% interval], all runs", "the same, runs that are through"],
        (
            [key, name, law_text(groups[name], key), law_text(groups[name], key, only_through=True)]
            for key, name in asked
            if groups[name]
        ),
    )


def by_family(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs of multiplication, and those of parity."""
    return [run for run in runs if not run.is_parity], [run for run in runs if run.is_parity]


def law_text(runs: Sequence[Run], key: str, *, only_through: bool = False) -> str:
    """The exponent of the pooled law, or why there is none.

    Args:
        key: `layers`, `width`, or `bits`, for runs of parity.
        only_through: runs that are not through count as runs without a number.
    """
    measured = [run.measured("examples_per_token", with_bits=key == "bits") for run in runs]
    if only_through:
        measured = [
            one if run.is_through else replace(one, value=None) for run, one in zip(runs, measured, strict=True)
        ]
    law = laws_of(measured, key)[-1]
    if law.fit is None or law.no_law:
        return f"no law: {law.no_law}"
    left_out = f", {counted(law.left_out, 'combination')} left out" if law.left_out else ""
    exponent = f"{law.fit.exponent:.2f} [{law.fit.low:.2f}, {law.fit.high:.2f}]"
    return f"{exponent}, {law.runs} of {law.runs + law.missing} runs{left_out}"


def levels_table(runs: Sequence[Run]) -> str:
    """How runs ended and the share of tokens gone, for each depth, width and task."""
    rows = []
    for factor in FACTORS:
        for level, of_level in combinations(runs, factor).items():
            found = [run for of_seeds in of_level.values() for run in of_seeds.values()]
            shares = [fmean(run.share for run in of_seeds.values()) for of_seeds in of_level.values()]
            counts = [str(sum(run.ended == how for run in found)) for how in (THROUGH, STUCK, OVER)]
            rows.append([factor, str(level), str(len(found)), *counts, with_interval(shares, share_text)])
    return table(["by", "value", "runs", THROUGH, STUCK, OVER, "tokens gone at 95%, mean [t over combinations]"], rows)


def differences_table(runs: Sequence[Run]) -> str:
    """Each step of depth, width and task against the one before, at equal other factors and seeds."""
    multiplication, parity = by_family(runs)
    groups = {"all": list(runs), "multiplication": multiplication, PARITY: parity}
    rows = [row for factor in ("layers", "width") for name in groups for row in _steps(groups[name], factor, name)]
    rows += [row for name in ("multiplication", PARITY) for row in _steps(groups[name], "task", name)]
    head = [
        "step", "runs of", "combinations", "more, equal, fewer", "tokens gone, points [t]",
        "combinations through", "examples per token, ratio [t]",
    ]  # fmt: skip
    return table(head, rows)


def _steps(runs: Sequence[Run], factor: str, name: str) -> Rows:
    for low, high in pairwise(combinations(runs, factor)):
        found = difference(runs, factor, low, high)
        signs = [sum(share > 0 for share in found.shares), sum(share == 0 for share in found.shares)]
        signs.append(len(found.shares) - sum(signs))
        yield [
            f"{factor} {low} to {high}" if factor != "task" else f"{low} to {high}", name, str(len(found.shares)),
            ", ".join(map(str, signs)), with_interval(found.shares, points), str(len(found.log_ratios)),
            with_interval(found.log_ratios, ratio),
        ]  # fmt: skip


def ranks_table(runs: Sequence[Run], chains: dict[str, list[Token]]) -> str:
    """Rank correlations of a stage's steps with position and chain, within a run, as means over runs."""
    groups = {task: [run for run in runs if run.task == task] for task in tasks_of(runs)}
    for name, family in zip(("multiplication", PARITY), by_family(runs), strict=True):
        if len(tasks_of(family)) > 1:
            groups[name] = family
    multiplication, _ = by_family(runs)
    for layers in sorted({run.layers for run in multiplication}):
        groups[f"multiplication, {counted(layers, 'layer')}"] = [run for run in multiplication if run.layers == layers]
    rows = []
    for name, some in groups.items():
        found = [(run, ranks(run, chains.get(run.task, []))) for run in some]
        used = [one for _, one in found if one is not None]
        rows.append([name, str(len(used)), str(len(found) - len(used)), *_rank_cells(used)])
    head = [
        "runs of", "used", f"left out, fewer than {FEWEST_STAGES} stages", "steps with position", "steps with chain",
        "the same, position held", "steps with chain, without signs and shifts",
    ]  # fmt: skip
    return table(head, rows)


def _rank_cells(found: Sequence[Ranks]) -> list[str]:
    """Means over the runs that have the correlation; their number stands behind where it is not that of all runs."""
    cells = []
    for name in ("position", "chain", "chain_alone", "chain_varying"):
        values = [value for one in found if (value := getattr(one, name)) is not None]
        few = f", n = {len(values)}" if 0 < len(values) < len(found) else ""
        cells.append(with_interval(values, rho) + few)
    return cells


def hardest_table(runs: Sequence[Run], chains: dict[str, list[Token]]) -> str:
    """Numbers whose last digit took the most steps, into which the longest chain of a row goes, the digit before it, or another."""
    multiplication, _ = by_family(runs)
    groups = {task: [run for run in runs if run.task == task] for task in tasks_of(multiplication)}
    if len(groups) > 1:
        groups["multiplication"] = multiplication
    rows = []
    for name, some in groups.items():
        found = [one.places for run in some for one in hardest(run, chains[run.task])]
        counts = [sum(places == [place] for places in found) for place in (0, 1)]
        several = sum(len(places) > 1 for places in found)
        rows.append([name, *map(str, (len(found), *counts, len(found) - sum(counts) - several, several))])
    return table(["runs of", "rows and sums", "last digit", "last but one", "an earlier one", "several alike"], rows)


def stuck_table(runs: Sequence[Run], chains: dict[str, list[Token]]) -> str:
    """The token at which each stuck run stopped, and the mean over the runs."""
    rows, more = [], []
    for stop in stops(runs, chains):
        run, token = stop.run, stop.token
        name = token.name if token else f"token {stop.removed_tokens}" if stop.removed_tokens else "none has left"
        if token and stop.mean_chain is not None:
            more.append((token.chain, stop.mean_chain, token.chain - stop.mean_chain))
        rows.append([
            run.task, str(run.layers), str(run.width), str(run.seed), f"{stop.removed_tokens} of {run.cot_tokens}", name,
            f"{token.chain:.2f}" if token else NONE, NONE if stop.mean_chain is None else f"{stop.mean_chain:.2f}",
            f"{more[-1][2]:+.2f}" if token else NONE,
        ])  # fmt: skip
    if more:
        own, mean, gap = zip(*more, strict=True)
        words = with_interval(gap, "{:+.2f}".format)
        rows.append([f"mean of {counted(len(more), 'run')}", "", "", "", "", "", f"{fmean(own):.2f}", f"{fmean(mean):.2f}", words])  # fmt: skip
    head = [
        "task", "layers", "width", "seed", "tokens gone", "stopped at", "its chain", "mean of the CoT", "difference [t]",
    ]  # fmt: skip
    return table(head, rows)


def chains_table(chains: dict[str, list[Token]], answers: dict[str, list[Token]]) -> str:
    """The mean carry chain of each multiplication: of CoT tokens, of the longest, and of the answer's digits."""
    rows = []
    for task, tokens in chains.items():
        longest = max(tokens, key=lambda token: token.chain)
        varying = [token.chain for token in tokens if token.varies]
        of_answer = [token.chain for token in answers[task]]
        rows.append([
            task, str(len(tokens)), f"{fmean(token.chain for token in tokens):.2f}", f"{fmean(varying):.2f}",
            f"{longest.chain:.2f} ({longest.name})", f"{fmean(of_answer):.2f}", f"{max(of_answer):.2f}",
        ])  # fmt: skip
    head = ["task", "CoT tokens", "mean chain", "without signs and shifts", "longest", f"mean of the {ANSWER}", f"longest of the {ANSWER}"]  # fmt: skip
    return table(head, rows)


def tables(folder: Path = HERE) -> dict[str, str]:
    """The tables of the README by their names."""
    runs, chains = read_runs(folder), read_chains(folder)
    return {
        "map": map_table(runs),
        "laws": laws_table(runs),
        "levels": levels_table(runs),
        "differences": differences_table(runs),
        "chains": chains_table(chains, read_chains(folder, ANSWER)),
        "ranks": ranks_table(runs, chains),
        "hardest": hardest_table(runs, chains),
        "stuck": stuck_table(runs, chains),
    }


if __name__ == "__main__":
    sys.exit(readme.command({HERE: tables}))
