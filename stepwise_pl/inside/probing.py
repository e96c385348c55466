"""Probes of one checkpoint: of its states, of a model with random weights, and of the tokens themselves."""

import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from stepwise_pl.inside.codelength import UNKNOWN, CodeLength, code_length
from stepwise_pl.inside.controls import RawTokens, one_hot
from stepwise_pl.inside.measures import Measure, measure
from stepwise_pl.inside.mlp import mlp_probe
from stepwise_pl.inside.places import Place
from stepwise_pl.inside.problems import Sides
from stepwise_pl.inside.reader import StatesReader
from stepwise_pl.inside.ridge import Fitted, Inputs, Labels, groups_of, linear_probes, standardised
from stepwise_pl.inside.subject import Source
from stepwise_pl.inside.targets import CLASS, Target, is_given, shuffled
from stepwise_pl.runs.inside import CONSTANT, NO_LAYER, RAW, SHUFFLED, TRAINED, Probe

LINEAR, MLP = "linear", "mlp"
CHOSEN, ALL, NONE = "chosen", "all", "none"

Spot = tuple[Place, int]


class Readable(Protocol):
    """The inputs of a probe: states of a model, or tokens."""

    name: str

    @property
    def spots(self) -> list[Spot]:
        """The places and layers at which it can be read."""

    def inputs(self, spot: Spot, sides: Sides) -> Inputs:
        """Return what is read there, [problems, width]."""

    def key(self, spot: Spot) -> Hashable | None:
        """Return a key that is the same wherever the same is read, also at another checkpoint; None: there is none."""


@dataclass
class StatesSource:
    """States of a model."""

    reader: StatesReader
    name: str = TRAINED

    @property
    def spots(self) -> list[Spot]:
        return self.reader.spots

    def inputs(self, spot: Spot, sides: Sides) -> Inputs:
        return standardised(self.reader.at(*spot), sides.whole)

    def key(self, spot: Spot) -> None:
        return None


@dataclass
class RawSource:
    """The tokens that have been read."""

    raw: RawTokens
    name: str = RAW

    @property
    def spots(self) -> list[Spot]:
        return [(place, NO_LAYER) for place in self.raw.places]

    def inputs(self, spot: Spot, sides: Sides) -> Inputs:
        return one_hot(self.raw.read(spot[0]), len(sides.whole))

    def key(self, spot: Spot) -> Hashable:
        tokens = self.raw.read(spot[0])
        return tokens.shape, blake2b(tokens.tobytes()).digest()


@dataclass
class Probed:
    """A probe that was fitted, with its result.

    Attributes:
        held: the score by which the best of them is chosen.
        is_given: whether it has read the target's token.
    """

    place: Place
    layer: int
    source: str
    probe: str
    labels: Labels
    held: float
    measure: Measure
    is_given: bool
    is_chosen: bool = False
    code: CodeLength = UNKNOWN


@dataclass
class Bench:
    """Fits probes to the targets of one run.

    Attributes:
        targets: what is looked for.
        sides: which problems are for what.
        mlp: where probes with a hidden layer are fitted: `chosen`, `all` or `none`.
        code: where code lengths are computed: `chosen` or `none`.
        advance: is called after each piece of work (`num_pieces`).
    """

    targets: Sequence[Target]
    sides: Sides
    mlp: str = CHOSEN
    code: str = CHOSEN
    advance: Callable[[], Any] = lambda: None
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def num_pieces(self, spots: int, sources: int) -> int:
        """Return about how often `advance` is called for some sources with so many places and layers in all."""
        return spots + sources * len(self.targets) * ((self.mlp == CHOSEN) + (self.code == CHOSEN))

    def labels(self, with_shuffled: bool) -> list[Labels]:
        """Return the labels of the targets, and the same number of random ones. These depend on the target's name alone."""
        out = [Labels(target, target.values) for target in self.targets]
        for target in self.targets if with_shuffled else ():
            rng = np.random.default_rng([4, zlib.crc32(target.name.encode())])
            out.append(Labels(target, shuffled(target, rng), True))
        return out

    def probe(
        self, source: Readable, given_from: Sequence[Place], with_shuffled: bool = False, beside: Iterable[Probed] = ()
    ) -> list[Probed]:
        """Probe a source everywhere. Of each target the best place and layer is chosen on problems held back from the fit,
        among the places that have not read the target; of equal ones the first.

        Args:
            given_from: the place at which each target is read (`Target.given_from`).
            with_shuffled: fit linear probes to random labels as well.
            beside: probes of the states, where a control gets a probe with a hidden layer, too; the better one is chosen.
        """
        labels = self.labels(with_shuffled)
        groups = groups_of(labels, self.sides)
        found: list[Probed] = []
        for spot in source.spots:
            x = source.inputs(spot, self.sides)
            probes = self._once((LINEAR, source.key(spot)), partial(linear_probes, x, groups))
            found += [
                self._probed(source, spot, LINEAR, label, fitted, given_from)
                for label, fitted in zip(labels, probes, strict=True)
            ]
            if self.mlp == ALL:
                found += [self._mlp(source, spot, x, label, given_from) for label in labels if not label.is_shuffled]
            self.advance()
        # Random labels get no code and no hidden layer: there is nothing to be learned about them.
        chosen = [probed for probed in choose(found, LINEAR) if not probed.labels.is_shuffled]
        others = [probed for probed in beside if probed.is_chosen and probed.probe == LINEAR]
        found += self._at_chosen(source, chosen, [each for each in others if not each.labels.is_shuffled], given_from)
        choose(found, MLP)
        return found

    def _at_chosen(
        self, source: Readable, chosen: Sequence[Probed], beside: Sequence[Probed], given_from: Sequence[Place]
    ) -> Iterator[Probed]:
        """Compute the code lengths of chosen linear probes; yield probes with a hidden layer there, and where others stand."""
        # The states of a place are read again if they do not fit on the disk together.
        for spot in source.spots:
            here = [probed for probed in chosen if (probed.place, probed.layer) == spot]
            both = dict.fromkeys(
                probed.labels.target.name
                for probed in (*here, *beside)
                if probed.place == spot[0] and spot[1] in (probed.layer, NO_LAYER)
            )
            if not both or (self.mlp, self.code) == (NONE, NONE):
                continue
            x = source.inputs(spot, self.sides)
            for probed in here if self.code == CHOSEN else ():
                key = ("code", probed.labels.target.name, source.key(spot))
                probed.code = self._once(key, partial(code_length, x, probed.labels, self.sides))
                self.advance()
            for labels in self.labels(False) if self.mlp == CHOSEN else ():
                if labels.target.name in both:
                    yield self._mlp(source, spot, x, labels, given_from)
                    self.advance()

    def _mlp(self, source: Readable, spot: Spot, x: Inputs, labels: Labels, given_from: Sequence[Place]) -> Probed:
        key = (MLP, labels.target.name, source.key(spot))
        fitted = self._once(key, partial(mlp_probe, x, labels, self.sides))
        return self._probed(source, spot, MLP, labels, fitted, given_from)

    def _once(self, key: tuple[Hashable, ...], compute: Callable[[], Any]) -> Any:
        """Return what was computed for the same inputs before; a key that ends in None is not kept."""
        if key[-1] is None:
            return compute()
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def _probed(
        self, source: Readable, spot: Spot, probe: str, labels: Labels, fitted: Fitted, given_from: Sequence[Place]
    ) -> Probed:
        target = labels.target
        scored = self.sides.where(target.has).scored
        first = given_from[[each.name for each in self.targets].index(target.name)]
        return Probed(
            place=spot[0],
            layer=spot[1],
            source=SHUFFLED if labels.is_shuffled else source.name,
            probe=probe,
            labels=labels,
            held=fitted.held,
            measure=measure(target.kind, labels.values[scored], fitted.predicted),
            is_given=is_given(spot[0], first),
        )

    def constant(self) -> list[Probed]:
        """Return probes that read nothing: they say the most frequent class, or the mean."""
        out = []
        for labels in self.labels(False):
            sides = self.sides.where(labels.target.has)
            known, values = labels.values[sides.whole], labels.values[sides.scored]
            said = np.bincount(known.astype(np.int64)).argmax() if labels.target.kind == CLASS else known.mean()
            measured = measure(labels.target.kind, values, np.full(len(values), float(said)))
            out.append(Probed(Place("", 0), NO_LAYER, CONSTANT, CONSTANT, labels, 0.0, measured, False, True))
        return out

    def row(self, probed: Probed, source: Source) -> Probe:
        """Return a probe as a row of the table."""
        target, found = probed.labels.target, probed.measure
        return Probe(
            *source, probed.layer, str(probed.place) if probed.place.part else "", target.name,
            target.kind, probed.source, probed.probe, found.score, found.low, found.high, found.error, *probed.code,
            len(self.sides.where(target.has).whole), found.num_scored, probed.is_chosen, probed.is_given,
        )  # fmt: skip


def choose(found: Iterable[Probed], probe: str) -> list[Probed]:
    """Mark the best probe of a kind for each target by its score on the problems held back, also for random labels; return these."""
    best: dict[tuple[str, bool], Probed] = {}
    for probed in found:
        key = probed.labels.target.name, probed.labels.is_shuffled
        may_be = probed.probe == probe and not probed.is_given and not np.isnan(probed.held)
        if may_be and (key not in best or probed.held > best[key].held):
            best[key] = probed
    for probed in best.values():
        probed.is_chosen = True
    return list(best.values())
