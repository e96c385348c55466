"""Online code lengths, against what information theory says."""

import numpy as np
import pytest

from stepwise_pl.inside.codelength import EVEN, PORTIONS, code_length, portions
from stepwise_pl.inside.problems import Sides
from tests.inside.test_ridge import labels

COUNT = 2048
SIDES = Sides.of(COUNT, 10)
NOISE = np.random.default_rng(1).normal(size=(COUNT + 10, 8))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


def entropy(shares: list[float]) -> float:
    return float(-sum(share * np.log2(share) for share in shares))


def test_portions_double_and_take_every_problem_once(rng: np.random.Generator) -> None:
    rows = rng.permutation(1000)
    found = list(portions(rows))
    assert len(found) == PORTIONS and len(found[0][0]) == 0
    assert np.concatenate([portion for _, portion in found]).tolist() == rows.tolist()
    for before, portion in found[1:]:
        assert len(before) <= len(portion) <= len(before) + 1
        assert not set(before) & set(portion)
    assert len(list(portions(np.arange(3)))) == 2


def test_a_class_that_cannot_be_read_costs_its_entropy_and_one_that_can_costs_little(rng: np.random.Generator) -> None:
    shares = [0.7, 0.2, 0.1]
    digit = rng.choice(3, COUNT + 10, p=shares)
    blind = code_length(NOISE, labels("digit", digit, 3), SIDES)
    assert blind.bits_uniform == pytest.approx(entropy(shares), abs=0.05)
    assert blind.bits_uniform < blind.bits < blind.bits_uniform + 0.1  # the probe has to be learned
    seen = code_length(np.concatenate([NOISE, 4 * np.eye(3)[digit]], axis=1), labels("digit", digit, 3), SIDES)
    assert seen.bits_uniform == blind.bits_uniform
    assert -np.log2(1 - EVEN) < seen.bits < 0.2


def test_a_probe_that_needs_fewer_problems_has_fewer_bits(rng: np.random.Generator) -> None:
    digit = rng.integers(0, 4, COUNT + 10)
    state = 4 * np.eye(4)[digit]
    few, many = state + 0.1 * NOISE[:, :4], np.concatenate([state, 5 * rng.normal(size=(COUNT + 10, 60))], axis=1)
    clear, hidden = (code_length(x, labels("digit", digit, 4), SIDES).bits for x in (few, many))
    assert clear < hidden < 2


def test_a_number_costs_the_entropy_of_what_is_not_read(rng: np.random.Generator) -> None:
    """A number on a grid of whole numbers with deviation s costs about log2(s √(2πe)) bits."""
    known, rest = 40 * NOISE[:, 0], 10 * rng.normal(size=COUNT + 10)
    number = np.round(known + rest)
    found = code_length(NOISE, labels("number", number), SIDES)

    def bits(deviation: float) -> float:
        return float(np.log2(deviation * np.sqrt(2 * np.pi * np.e)))

    assert found.bits == pytest.approx(bits(10), abs=0.15)
    assert found.bits_uniform == pytest.approx(bits(np.hypot(40, 10)), abs=0.15)


def test_a_number_that_is_read_exactly_costs_almost_nothing_and_outliers_cost_little(rng: np.random.Generator) -> None:
    number = rng.integers(0, 50, COUNT + 10).astype(float)
    x = np.concatenate([NOISE, number[:, None]], axis=1)
    assert code_length(x, labels("number", number), SIDES).bits < 0.3
    number[7] = 1e6
    assert np.isfinite(code_length(x, labels("number", number), SIDES).bits)


def test_problems_to_score_and_problems_without_the_label_cost_nothing(rng: np.random.Generator) -> None:
    digit = rng.integers(0, 3, COUNT + 10).astype(float)
    digit[: COUNT // 2] = np.nan
    found = code_length(NOISE, labels("digit", digit, 3), SIDES)
    assert found.bits_uniform == pytest.approx(np.log2(3), abs=0.05)
    digit[COUNT:] = 0
    assert code_length(NOISE, labels("digit", digit, 3), SIDES) == found
