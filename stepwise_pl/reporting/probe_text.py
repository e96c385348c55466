"""Probes, for reading: the best of each target at each stage beside its controls, and what they say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stepwise_pl.common.text import percent, percents, table
from stepwise_pl.runs.inside import RANDOM, RAW, SHUFFLED, TRAINED, Probe

CONTROLS = (RAW, RANDOM, SHUFFLED)
KINDS = LINEAR, MLP = "linear", "mlp"
# Lines of the table, unless two for each target are more.
MOST_LINES = 100
EXPLANATION = """\
Accuracy of classes, R² of numbers, on the problems to score; [95% interval over these]. Controls: linear / one hidden layer.
gone: the token has left the CoT at this stage.
Place and layer are the best on problems held back from the fit, for each control as well, among those that have not read the target.
*: above every control of both kinds.  +: the linear probe above the linear controls."""


@dataclass
class Finding:
    """The chosen probes of a target at one checkpoint.

    Attributes:
        is_gone: whether the target is a token of the CoT that has left.
        by: the chosen probe of each source and kind.
    """

    target: str
    checkpoint: str
    is_gone: bool = False
    by: dict[tuple[str, str], Probe] = field(default_factory=dict)

    def is_above(self, kind: str, kinds: Sequence[str]) -> bool:
        """Whether the interval of a kind of probe of the states lies above those of the controls with some kinds of probe."""
        own = self.by.get((TRAINED, kind))
        controls = [
            probe for (source, of) in self.by if source in CONTROLS and of in kinds and (probe := self.by[source, of])
        ]
        return own is not None and bool(controls) and all(probe.high < own.low for probe in controls)

    @property
    def is_beyond(self) -> bool:
        """Whether a probe of the states is above every control, also above those with a hidden layer."""
        return any(self.is_above(kind, KINDS) for kind in KINDS)

    @property
    def is_linearly_beyond(self) -> bool:
        """Whether the linear probe of the states is above the linear controls."""
        return self.is_above(LINEAR, (LINEAR,))

    @property
    def stage(self) -> str:
        """The number of the stage; the name of a checkpoint that was kept of no stage."""
        return self.checkpoint if self.checkpoint in ("best", "last") else str(next(iter(self.by.values())).stage)


def findings(rows: Sequence[Probe]) -> list[Finding]:
    """The chosen probes of each target at each checkpoint, target by target, in the order of the rows."""
    targets = list(dict.fromkeys(row.target for row in rows))
    is_gone = _gone(rows)
    found: dict[tuple[str, str], Finding] = {}
    for row in rows:
        if row.chosen:
            finding = found.setdefault((row.target, row.checkpoint), Finding(row.target, row.checkpoint, is_gone(row)))
            finding.by[row.source, row.probe] = row
    with_states = [finding for finding in found.values() if (TRAINED, LINEAR) in finding.by]
    return sorted(with_states, key=lambda finding: targets.index(finding.target))


def _gone(rows: Sequence[Probe]) -> Callable[[Probe], bool]:
    """Return whether the target of a row has left the CoT at its checkpoint.

    A token that is left is a place, too. A table whose places were chosen may have no place of the CoT; then the tokens are gone if
    as many have left as the CoT has.
    """
    places = {(row.checkpoint, row.place) for row in rows}
    has_places = any(place.startswith("cot ") for _, place in places)
    numbers = [int(row.target.split()[1]) for row in rows if row.target.startswith("cot ")]
    length = max(numbers, default=0) + 1

    def is_gone(row: Probe) -> bool:
        if not row.target.startswith("cot "):
            return False
        return (row.checkpoint, row.target) not in places if has_places else row.removed_tokens >= length

    return is_gone


def probe_lines(rows: Sequence[Probe]) -> list[str]:
    """The table of the chosen probes, and the targets that can be read beyond their controls."""
    found = findings(rows)
    checkpoints = shown_checkpoints(found)
    left_out = {finding.checkpoint: finding.stage for finding in found if finding.checkpoint not in checkpoints}
    head = ("target", "stage", "", "place", "layer", "linear", "one hidden layer", *CONTROLS, "")
    return [
        *table(head, [_cells(finding) for finding in found if finding.checkpoint in checkpoints]),
        *([f"(Left out here: stage{'s' * (len(left_out) > 1)} {', '.join(left_out.values())}.)"] if left_out else []),
        "",
        *EXPLANATION.splitlines(),
        "",
        *conclusions(found),
    ]


def shown_checkpoints(found: Sequence[Finding]) -> list[str]:
    """The checkpoints that the table shows: all, or some at equal distances with the first and the last."""
    names = list(dict.fromkeys(finding.checkpoint for finding in found))
    room = max(2, MOST_LINES // max(1, len({finding.target for finding in found})))
    if len(names) <= room:
        return names
    return list(dict.fromkeys(names[round(index * (len(names) - 1) / (room - 1))] for index in range(room)))


def _cells(finding: Finding) -> list[str]:
    own = finding.by[TRAINED, LINEAR]
    controls = (" / ".join(shown(probe) for kind in KINDS if (probe := finding.by.get((of, kind)))) for of in CONTROLS)
    trained = (with_interval(probe) if (probe := finding.by.get((TRAINED, kind))) else "" for kind in KINDS)
    mark = "*" if finding.is_beyond else "+" if finding.is_linearly_beyond else ""
    gone = "gone" if finding.is_gone else ""
    return [finding.target, finding.stage, gone, own.place, str(own.layer), *trained, *controls, mark]


def shown(row: Probe) -> str:
    """A score, for reading."""
    return percent(row.score) if row.kind == "class" else f"{row.score:.3f}"


def with_interval(row: Probe) -> str:
    """A score with its interval, for reading."""
    return (
        f"{shown(row)} {percents((row.low, row.high)) if row.kind == 'class' else f'[{row.low:.3f}, {row.high:.3f}]'}"
    )


def conclusions(found: Sequence[Finding]) -> list[str]:
    """Sentences on the targets that can be read beyond every control: after they have left, and before; on those beyond the linear ones; and the others."""
    of_target: dict[str, list[Finding]] = {}
    for finding in found:
        of_target.setdefault(finding.target, []).append(finding)
    gone = _since(of_target, lambda finding: finding.is_beyond and finding.is_gone)
    beyond = _since(of_target, lambda finding: finding.is_beyond and not finding.is_gone)
    linearly = {
        name: when
        for name, when in _since(of_target, lambda finding: finding.is_linearly_beyond).items()
        if name not in beyond and name not in gone
    }
    others = [name for name in of_target if name not in beyond and name not in gone and name not in linearly]
    groups = (
        (
            "Gone from the CoT, and read better from the states than from every control: ",
            [f"{name} {when}" for name, when in gone.items()] or ["none"] * any(finding.is_gone for finding in found),
            "; ",
        ),
        (
            "Not gone, and read better from the states than from every control: ",
            [f"{name} {when}" for name, when in beyond.items()],
            "; ",
        ),
        (
            "Better than the linear controls only (a hidden layer reads as much in the tokens or in random states): ",
            [f"{name} {when}" for name, when in linearly.items()],
            "; ",
        ),
        ("No better than their controls: ", others, ", "),
    )
    return [f"{lead}{between.join(names)}." for lead, names, between in groups if names]


def _since(of_target: dict[str, list[Finding]], is_met: Callable[[Finding], bool]) -> dict[str, str]:
    """Say for each target that meets a condition at some stage at which stages, where the first time, and the scores of its best probes."""
    out = {}
    for target, stages in of_target.items():
        met = [finding for finding in stages if is_met(finding)]
        if met:
            own = met[0].by[TRAINED, LINEAR]
            best = [
                max((finding.by[TRAINED, kind] for kind in KINDS if (TRAINED, kind) in finding.by), key=_score)
                for finding in met
            ]
            ends = dict.fromkeys(shown(end(best, key=_score)) for end in (min, max))
            out[target] = f"{_stages(stages, met)} ({own.place}, layer {own.layer}: {' to '.join(ends)})"
    return out


def _score(row: Probe) -> float:
    return row.score


def _stages(stages: Sequence[Finding], met: Sequence[Finding]) -> str:
    """`at every stage`, `since stage 3`, or each of the stages."""
    names = [finding.stage for finding in met]
    if len(met) == len(stages) > 1:
        return "at every stage"
    if len(met) > 1 and list(stages[-len(met) :]) == list(met):
        return f"since stage {names[0]}"
    return f"at stage{'s' * (len(names) > 1)} {', '.join(names)}"
