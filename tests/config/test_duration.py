"""One knob says how long a run is; the fall of the learning rate is tied to its true end."""

import math
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise_pl.common.errors import UserError
from stepwise_pl.config.duration import UNITS, Duration
from stepwise_pl.config.training import OptimizerConfig, TrainerConfig
from stepwise_pl.training.optimizers import lr_factor
from tests.config.test_config import composed

WHOLE = st.integers(1, 10**11)
PARTS = st.decimals("0.001", 10**4, places=3)
T = st.integers(1, 10**6)
BATCH = st.integers(1, 4096)


def nearest(exact: Fraction) -> set[int]:
    """The whole numbers of at least 1 that no other is nearer to than."""
    below = math.floor(exact)
    return {1} if exact <= 1 else {n for n in (below, below + 1) if abs(n - exact) <= Fraction(1, 2)}


@given(WHOLE, T, BATCH)
def test_steps_are_steps(count: int, steps_per_epoch: int, batch_size: int) -> None:
    assert Duration.parse(f"{count}steps").steps(steps_per_epoch, batch_size) == count


@given(PARTS, T, BATCH)
def test_epochs_are_the_nearest_number_of_steps(epochs: Decimal, steps_per_epoch: int, batch_size: int) -> None:
    steps = Duration.parse(f"{epochs}epochs").steps(steps_per_epoch, batch_size)
    assert steps in nearest(Fraction(epochs) * steps_per_epoch)


@given(WHOLE, T, BATCH)
def test_examples_are_the_nearest_number_of_steps(count: int, steps_per_epoch: int, batch_size: int) -> None:
    assert Duration.parse(f"{count}examples").steps(steps_per_epoch, batch_size) in nearest(Fraction(count, batch_size))


@given(st.one_of(PARTS, WHOLE), st.sampled_from(UNITS), st.booleans(), st.booleans())
def test_a_blank_and_the_singular_mean_the_same(count: Decimal | int, unit: str, blank: bool, singular: bool) -> None:
    number = count if unit == "epochs" else max(1, int(count))
    text = f"{number}{' ' * blank}{unit[:-1] if singular else unit}"
    plain = Duration.parse(f"{number}{unit}")
    assert Duration.parse(text) == plain == Duration.parse(str(plain))
    assert TrainerConfig(duration=text).duration == TrainerConfig(duration=str(plain)).duration == str(plain)


@pytest.mark.parametrize(
    "text,message",
    [
        ("600", "trainer.duration=600: must be a number with its unit: write 600steps, 600epochs or 600examples"),
        ("0.5", "write 0.5steps, 0.5epochs"),
        ("", "trainer.duration=: must be a number with its unit: write 4000steps, 4000epochs or 4000examples"),
        ("-1steps", "must be a number with its unit"),
        ("4000 tokens", "or 4000examples; trainer.max_tokens_read=<number> ends a run by tokens"),
        ("4000\nsteps", "must be a number with its unit"),
        ("1e99999999epochs", "must be a number with its unit"),
        ("٣steps", "must be a number with its unit"),
        ("0steps", "must be above 0"),
        ("0.0epochs", "must be above 0"),
        ("1.5steps", "must be a whole number; only epochs may be a part of one"),
        ("0.5examples", "must be a whole number"),
    ],
)
def test_another_form_is_refused_with_the_right_one(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        TrainerConfig(duration=text)
    assert message in str(error.value) and "\n" not in str(error.value)


# A slow machine needs more than the 200 ms that hypothesis allows an example.
@settings(deadline=None)
@given(
    st.one_of(
        st.integers(1, 3000).map("{}steps".format),
        st.decimals("0.01", 30, places=2).map("{}epochs".format),
        st.integers(1, 10**5).map("{}examples".format),
    ),
    st.integers(1, 100),
    st.integers(1, 256),
    st.decimals(0, 1, places=3),
)
def test_the_learning_rate_falls_over_its_share_of_any_run_and_is_0_only_after_the_last_step(
    text: str, steps_per_epoch: int, batch_size: int, decay: Decimal
) -> None:
    steps = Duration.parse(text).steps(steps_per_epoch, batch_size)
    optimizer = OptimizerConfig(decay=float(decay))
    rates = [lr_factor(optimizer, step, steps, 0, 0) for step in range(steps + 1)]
    assert min(rates[:-1]) > 0
    exact = Fraction(decay) * steps
    fall = [n for n in (math.floor(exact), math.ceil(exact)) if abs(n - exact) <= Fraction(1, 2)]
    # The first rate of a fall over n steps is still whole: n / n.
    assert sum(rate < 1 for rate in rates) in fall
    assert rates == sorted(rates, reverse=True) and (rates[-1] == 0) is (sum(rate < 1 for rate in rates) > 0)
    steady = [one - other for one, other in pairwise(rates) if other < 1]
    assert steady == pytest.approx([1 / len(steady)] * len(steady)) if steady else decay <= Decimal("0.5") / steps


@pytest.mark.parametrize("steps", [600, 4000, 20_000])
def test_the_quickstart_is_as_long_as_one_key_says(steps: int) -> None:
    config = composed("experiment=quickstart", f"trainer.duration={steps}steps")
    # T is 400 for the quickstart.
    assert Duration.parse(config.trainer.duration).steps(400, config.data.batch_size) == steps
    assert config.optimizer.decay_steps(steps) == steps // 4
