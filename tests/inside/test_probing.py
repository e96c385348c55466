"""Probes of states that are known: what was planted is found at its place and after its layer, and nowhere else."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import pytest

from stepwise_pl.inside.places import Place
from stepwise_pl.inside.probing import Bench, Probed, Spot
from stepwise_pl.inside.problems import Sides
from stepwise_pl.inside.ridge import Inputs
from stepwise_pl.inside.subject import Source
from stepwise_pl.inside.targets import CLASS, NUMBER, Target
from stepwise_pl.runs.inside import NO_LAYER, SHUFFLED

FIT, SCORED = 1000, 400
PLACES = [Place("prompt", -1), Place("thought", 0), Place("cot", 5), Place("answer", 0)]
LAYERS = [0, 1, 2]
SPOTS = [(place, layer) for place in PLACES for layer in LAYERS]
# The token `cot 5` is in the view, and `cot 2` is gone.
GIVEN_FROM = [Place("cot", 5), Place("answer", 1), Place("answer", 1)]


@dataclass
class Known:
    """Inputs that are given for each place and layer."""

    states: dict[Spot, np.ndarray]
    name: str = "trained"
    read: list[Spot] = field(default_factory=list)

    @property
    def spots(self) -> list[Spot]:
        return list(self.states)

    def inputs(self, spot: Spot, sides: Sides) -> Inputs:
        self.read.append(spot)
        return self.states[spot]

    def key(self, spot: Spot) -> Hashable | None:
        return None


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def targets(rng: np.random.Generator) -> list[Target]:
    """Two digits and a number, independent of each other."""
    digits = rng.integers(0, 5, (2, FIT + SCORED)).astype(float)
    number = rng.normal(size=FIT + SCORED)
    return [
        Target("cot 5", CLASS, digits[0], Place("cot", 5), 5),
        Target("cot 2", CLASS, digits[1], Place("cot", 2), 5),
        Target("sum 0", NUMBER, number, Place("answer", 1)),
    ]


def noise(rng: np.random.Generator) -> dict[Spot, np.ndarray]:
    return {spot: rng.normal(size=(FIT + SCORED, 16)) for spot in SPOTS}


def code(target: Target) -> np.ndarray:
    """What is planted for a target, [problems, 5]."""
    if target.kind == CLASS:
        return 3 * (target.values[:, None] == np.arange(5))
    return np.outer(target.values, [3, 0, 0, 0, 0])


def bench(targets: list[Target], **settings: str) -> Bench:
    return Bench(targets, Sides.of(FIT, SCORED), **settings)


def true(found: list[Probed], name: str, probe: str = "linear") -> list[Probed]:
    return [
        each
        for each in found
        if each.labels.target.name == name and each.probe == probe and not each.labels.is_shuffled
    ]


def test_what_was_planted_is_found_there_and_nowhere_else(rng: np.random.Generator, targets: list[Target]) -> None:
    planted = {"cot 5": (Place("thought", 0), 2), "cot 2": (Place("prompt", -1), 1), "sum 0": (Place("answer", 0), 1)}
    states = noise(rng)
    for target in targets:
        states[planted[target.name]][:, :5] += code(target)
    found = bench(targets, mlp="chosen", code="chosen").probe(Known(states), GIVEN_FROM, with_shuffled=True)
    for name, spot in planted.items():
        chance = 0.2 if name.startswith("cot") else 0.0
        for each in true(found, name):
            is_there = (each.place, each.layer) == spot
            # Of 11 places without anything the most extreme is beyond 0.1 with probability below 1e-5.
            assert each.measure.score > 0.8 if is_there else abs(each.measure.score - chance) < 0.1, each
            assert each.is_chosen == is_there
            assert np.isnan(each.code.bits) != is_there
        (hidden,) = true(found, name, "mlp")
        assert (hidden.place, hidden.layer) == spot and hidden.is_chosen and hidden.measure.score > 0.8
        (chosen,) = (each for each in true(found, name) if each.is_chosen)
        assert chosen.code.bits < chosen.code.bits_uniform - 0.5
    shuffled = [each for each in found if each.source == SHUFFLED]
    assert len(shuffled) == len(SPOTS) * 3 and {each.probe for each in shuffled} == {"linear"}
    assert sum(each.is_chosen for each in shuffled) == 3
    for each in shuffled:
        assert each.measure.score < (0.3 if each.labels.target.kind == CLASS else 0.05)


def test_a_place_that_has_read_the_target_is_a_row_and_is_never_chosen(
    rng: np.random.Generator, targets: list[Target]
) -> None:
    states = {(place, 0): x for (place, layer), x in noise(rng).items() if layer == 0}
    states[Place("cot", 5), 0][:, :5] += 3 * code(targets[0])
    found = bench(targets[:1], mlp="all", code="none").probe(Known(states), GIVEN_FROM)
    for probe in ("linear", "mlp"):
        (leak,) = (each for each in true(found, "cot 5", probe) if each.place == Place("cot", 5))
        assert leak.measure.score > 0.99 and leak.is_given and not leak.is_chosen
        (chosen,) = (each for each in true(found, "cot 5", probe) if each.is_chosen)
        assert not chosen.is_given and chosen.measure.score < 0.3


def test_the_choice_does_not_look_at_problems_to_score(rng: np.random.Generator, targets: list[Target]) -> None:
    states = noise(rng)
    states[Place("thought", 0), 1][:, :5] += code(targets[1]) / 2
    # In the problems to score the information stands elsewhere, and is much clearer.
    fake = {spot: x.copy() for spot, x in states.items()}
    fake[Place("thought", 0), 1][FIT:] = rng.normal(size=(SCORED, 16))
    fake[Place("prompt", -1), 0][FIT:, :5] += 9 * code(targets[1])[FIT:]
    few = [(Place("thought", 0), 1), (Place("prompt", -1), 0)]
    for mlp, spots in (("chosen", SPOTS), ("all", few)):
        sources = (Known({spot: each[spot] for spot in spots}) for each in (states, fake))
        one, other = (bench(targets, mlp=mlp, code="none").probe(source, GIVEN_FROM) for source in sources)
        assert [(each.held, each.is_chosen) for each in one] == [(each.held, each.is_chosen) for each in other]
        assert [each.measure for each in one] != [each.measure for each in other]


def test_a_hidden_layer_finds_what_no_linear_probe_finds(rng: np.random.Generator) -> None:
    """The sum of two one-hot digits modulo 3."""
    digits = rng.integers(0, 3, (FIT + SCORED, 2))
    x = np.concatenate([np.eye(3)[digits[:, 0]], np.eye(3)[digits[:, 1]]], axis=1)
    target = Target("cot 1", CLASS, (digits.sum(1) % 3).astype(float), Place("cot", 1), 3)
    number = Target("product 0", NUMBER, (digits[:, 0] - 1.0) * (digits[:, 1] - 1), Place("answer", 1))
    spot = (Place("prompt", -1), 1)
    found = bench([target, number], code="none").probe(Known({spot: x}), [Place("answer", 1)] * 2)
    linear, hidden = (
        [true(found, name, probe)[0].measure.score for name in ("cot 1", "product 0")] for probe in ("linear", "mlp")
    )
    assert linear[0] < 0.5 and linear[1] < 0.1 and hidden[0] == 1 and hidden[1] > 0.95


def test_a_control_is_probed_where_the_states_are_too(rng: np.random.Generator, targets: list[Target]) -> None:
    """The tokens hold an exclusive or of two bits, which no linear probe sees: their own best linear place is any."""
    bits = rng.integers(0, 2, (FIT + SCORED, 2))
    target = Target("cot 2", CLASS, (bits.sum(1) % 2).astype(float), Place("cot", 2), 2)
    states = noise(rng)
    states[Place("answer", 0), 1][:, :2] += 4 * np.eye(2)[target.values.astype(int)]
    raw = {(place, NO_LAYER): rng.integers(0, 2, (FIT + SCORED, 4)).astype(float) for place in PLACES}
    raw[Place("answer", 0), NO_LAYER][:, :2] = bits
    one = bench([target], code="none")
    trained = one.probe(Known(states), [Place("answer", 1)])
    control = true(one.probe(Known(raw, "raw"), [Place("answer", 1)], beside=trained), "cot 2", "mlp")
    (chosen,) = (each for each in control if each.is_chosen)
    assert chosen.place == Place("answer", 0) and chosen.measure.score == 1


def test_equal_arguments_give_equal_numbers(rng: np.random.Generator, targets: list[Target]) -> None:
    states = noise(rng)
    states[Place("thought", 0), 1][:, :5] += code(targets[1]) + code(targets[2])
    runs = [bench(targets).probe(Known(states), GIVEN_FROM, with_shuffled=True) for _ in range(2)]
    one, other = ([(each.held, each.measure, each.code, each.is_chosen) for each in found] for found in runs)
    assert repr(one) == repr(other)


def test_states_are_read_in_order_so_that_few_have_to_be_on_the_disk(
    rng: np.random.Generator, targets: list[Target]
) -> None:
    source = Known(noise(rng))
    bench(targets).probe(source, GIVEN_FROM)
    again = source.read[len(SPOTS) :]
    assert source.read[: len(SPOTS)] == SPOTS and again == sorted(again, key=SPOTS.index) and len(again) <= 3


def test_a_probe_that_reads_nothing_says_the_most_frequent_class_or_the_mean(targets: list[Target]) -> None:
    sides = Sides.of(FIT, SCORED)
    for each in bench(targets).constant():
        known, values = (each.labels.values[rows] for rows in (sides.whole, sides.scored))
        if each.labels.target.kind == CLASS:
            most = max(range(5), key=list(known).count)
            assert each.measure.score == (values == most).mean()
        else:
            assert each.measure.error == pytest.approx(np.abs(values - known.mean()).mean()) and each.measure.score <= 0
    rows = [bench(targets).row(each, Source("best", 3, 3)) for each in bench(targets).constant()]
    assert {(row.place, row.layer, row.source, row.chosen) for row in rows} == {("", NO_LAYER, "constant", True)}
    assert {(row.num_fit, row.num_scored) for row in rows} == {(FIT, SCORED)}
