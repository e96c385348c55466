"""Probes of runs that differ in the seed alone: means and intervals over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from stepwise_pl.common.statistics import mean_interval
from stepwise_pl.common.text import percent, percents, table
from stepwise_pl.reporting.history import labelled_cells, read_runs
from stepwise_pl.reporting.probe_text import CONTROLS, KINDS, Finding, findings
from stepwise_pl.runs.inside import TRAINED, Probe

EXPLANATION = """\
Over seeds: states is the better of the two chosen probes of each seed; control, the best of all its controls. [95% interval of the mean by
Student's t.] Two seeds or three give wide intervals; seeds that agree to the last digit give none.
*: the interval of the difference lies above 0; by chance it does in 2.5% of the cases. Look at its size, too."""


@dataclass
class OverSeeds:
    """A target at one stage, over the seeds of a cell.

    Attributes:
        kind: `class`: accuracy; `number`: R².
        states: the score of the better chosen probe of each seed, [seeds].
        controls: the score of the best control of each seed, [seeds].
    """

    target: str
    stage: str
    kind: str
    is_gone: bool
    seeds: list[int | str]
    states: list[float]
    controls: list[float]

    @property
    def differences(self) -> list[float]:
        """States minus control, of each seed."""
        return [one - other for one, other in zip(self.states, self.controls, strict=True)]

    @property
    def is_beyond(self) -> bool:
        """Whether the states are above the best control, over seeds."""
        return mean_interval(self.differences)[0] > 0


def over_seeds(runs: Mapping[int | str, Sequence[Probe]]) -> list[OverSeeds]:
    """Return each target at each stage that all seeds have, in the order of the first seed; without those that lack a control.

    Args:
        runs: the rows of each seed.
    """
    found = {seed: {(one.target, one.stage): one for one in findings(rows)} for seed, rows in runs.items()}
    first = next(iter(found.values()), {})
    out = []
    for key, finding in first.items():
        of_seeds = [of_seed[key] for of_seed in found.values() if key in of_seed]
        controls = [_best(one, CONTROLS) for one in of_seeds]
        if len(of_seeds) == len(found) and None not in controls:
            kind = next(iter(finding.by.values())).kind
            states = [_best(one, (TRAINED,)) for one in of_seeds]
            out.append(OverSeeds(*key, kind, finding.is_gone, list(found), states, controls))  # type: ignore[arg-type]
    return out


def _best(finding: Finding, sources: Sequence[str]) -> float | None:
    """The best score among some sources; None if there is none."""
    scores = [probe.score for (source, kind), probe in finding.by.items() if source in sources and kind in KINDS]
    return max(scores, default=None)


def seed_lines(tables: Mapping[Path, Sequence[Probe]]) -> list[str]:
    """Return a table for each cell of several seeds; nothing if there is no such cell.

    Args:
        tables: the rows of each run folder.
    """
    runs = read_runs(list(tables))
    cells = [cell for cell in labelled_cells(runs) if len({run.seed for run in cell.runs}) == len(cell.runs) > 1]
    lines: list[str] = []
    for cell in cells:
        rows = over_seeds({run.seed: tables[run.path] for run in cell.runs})
        if rows:
            seeds = ", ".join(map(str, rows[0].seeds))
            head = ("target", "stage", "", "states", "control", "difference", "")
            lines += ["", f"{cell.label}, seeds {seeds}", "", *table(head, map(_cells, rows))]
    return [*lines, "", *EXPLANATION.splitlines()] if lines else []


def _cells(row: OverSeeds) -> list[str]:
    gone, mark = "gone" if row.is_gone else "", "*" if row.is_beyond else ""
    scores = [_shown(row, values) for values in (row.states, row.controls, row.differences)]
    return [row.target, row.stage, gone, *scores, mark]


def _shown(row: OverSeeds, scores: Sequence[float]) -> str:
    """A mean over seeds with its interval; no score is above 1."""
    low, high = mean_interval(scores)
    mean, high = fmean(scores), min(high, 1.0)
    return f"{percent(mean)} {percents((low, high))}" if row.kind == "class" else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
