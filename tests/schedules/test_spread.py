"""The places of examples around s(t): offsets follow their distribution, and mixing draws uniformly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.schedules import Linear
from stepwise_pl.schedules.spread import ALL, mixed, offsets


@pytest.mark.parametrize("smoothing", [0.5, 1.0, 4.0])
def test_offsets_follow_their_distribution(smoothing: float) -> None:
    n = 400_000
    drawn = offsets(np.arange(n), smoothing, seed=7)
    for o in range(6):
        expected = (1 - math.exp(-smoothing)) * math.exp(-smoothing * o)
        deviation = math.sqrt(expected * (1 - expected) / n)
        assert abs((drawn == o).mean() - expected) < 5 * deviation + 1e-12, o


def test_offsets_are_fresh_for_every_draw_and_seed() -> None:
    first, second = offsets(np.arange(50_000), 0.5, 0), offsets(np.arange(50_000, 100_000), 0.5, 0)
    other_seed = offsets(np.arange(50_000), 0.5, 1)
    for a, b in ((first, second), (first, other_seed), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))  # independent: five standard deviations


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=50), st.integers(0, 2**31))
def test_offsets_are_a_function_of_seed_and_draw(draws: list[int], seed: int) -> None:
    together = offsets(np.array(draws), 0.7, seed)
    assert together.tolist() == [int(offsets(np.array([d]), 0.7, seed)[0]) for d in draws]


def test_infinite_smoothing_draws_no_offset() -> None:
    assert not offsets(np.arange(1000), math.inf, 0).any()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("mix_from", ["earlier", "all"])
def test_a_share_of_the_examples_stands_at_stages_drawn_uniformly(share: float, mix_from: str) -> None:
    n, now, last = 100_000, 5, 8
    schedule = Linear(delta=0, remove_start_from=now, mix=share, mix_from=mix_from, smoothing=float("inf"))
    schedule.bind(10, last)
    stage = schedule.spread(np.arange(n), 7, seed=3)
    assert (stage.now, stage.last) == (now, last) and stage.each is not None
    count = now if mix_from == "earlier" else last + 1
    for k in range(last + 1):
        expected = share * (k < count) / count + (1 - share) * (k == now)
        deviation = (expected * (1 - expected) / n) ** 0.5
        assert abs((stage.each == k).mean() - expected) <= 5 * deviation, k
    assert (stage.units == np.where(stage.each == last, ALL, stage.each)).all()


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=30), st.integers(0, 2**31), st.floats(0, 1), st.integers(0, 9)
)
def test_mixing_is_a_function_of_seed_and_draw(draws: list[int], seed: int, share: float, count: int) -> None:
    draw = np.array(draws)
    together = mixed(np.full(len(draw), 9), draw, seed, share, count)
    one_by_one = [int(mixed(np.array([9]), np.array([d]), seed, share, count)[0]) for d in draws]
    assert together.tolist() == one_by_one
    assert all(k == 9 or 0 <= k < count for k in one_by_one)


def test_nothing_is_mixed_in_where_a_schedule_promises_a_number() -> None:
    draw = np.arange(2000)
    for settings, step, stages in (
        ({"pretrain_epochs": 2, "remove_start_from": 5}, 3, {5}),
        ({"remove_at_most": 0}, 30, {0}),
        ({"remove_at_most": 10, "delta": 8, "smoothing": float("inf")}, 300, set(range(11))),
    ):
        schedule = Linear(mix=0.5, mix_from="all", **settings)  # type: ignore[arg-type]
        schedule.bind(10, 20)
        each = schedule.spread(draw, step, 0).each
        assert each is not None and set(each.tolist()) == stages


def test_all_examples_at_earlier_stages_would_never_train_s() -> None:
    with pytest.raises(UserError, match=r"schedule\.mix=1: must be below 1 with schedule\.mix_from=earlier"):
        Linear(mix=1)
    Linear(mix=1, mix_from="all")


def test_mixing_leaves_smoothing_as_it_is() -> None:
    """The examples that are not mixed get the same offsets as without mixing."""
    plain, mixing = (Linear(delta=0, remove_start_from=4, smoothing=0.5, mix=mix) for mix in (0.0, 0.4))
    for schedule in (plain, mixing):
        schedule.bind(10, 50)
    draw = np.arange(2000)
    one, other = (schedule.spread(draw, 3, 1).each for schedule in (plain, mixing))
    assert one is not None and other is not None
    same = one == other
    assert 0.55 < same.mean() < 0.7 and (other[~same] < 4).all()
