"""Fourier fits: planted circles are found whole, noise as its expected share, and the controls stand beside."""

import numpy as np
import pytest

from stepwise_pl.inside.fourier import bases, fit, fourier_of_embeddings, fourier_of_states, fourier_rows
from stepwise_pl.inside.places import Place, places_of
from stepwise_pl.inside.states import write_states
from stepwise_pl.inside.tokens import digit_tokens, targets_at
from tests.inside.looking import PRODUCTS, subject

WHERE = ("removed-1", 1, 1)
RNG = np.random.default_rng(1)


def circle(digits: int, turns: int, width: int = 32) -> np.ndarray:
    """Digits on a circle in a random plane, off the origin."""
    plane = np.linalg.qr(RNG.standard_normal((width, 2))).Q.T
    angle = 2 * np.pi * turns * np.arange(digits) / digits
    return 3 * np.stack([np.cos(angle + 0.3), np.sin(angle + 0.3)], axis=1) @ plane + RNG.standard_normal(width)


def by_least_squares(vectors: np.ndarray, functions: list[np.ndarray]) -> float:
    """R² of an ordinary fit with an intercept."""
    basis = np.stack([np.ones(len(vectors)), *functions], axis=1)
    residual = vectors - basis @ np.linalg.lstsq(basis, vectors, rcond=None)[0]
    return 1 - np.square(residual).sum() / np.square(vectors - vectors.mean(0)).sum()


def test_the_bases_grow_and_never_fit_everything() -> None:
    assert {name: basis.shape[1] for name, basis in bases(10).items()} == {
        "k 1": 3, "k 1, (-1)^n": 4, "k 1-2": 5, "k 1-2, (-1)^n": 6, "k 1-3": 7, "k 1-3, (-1)^n": 8, "k 1-4": 9, "k 2": 3, "k 3": 3,
        "k 4": 3,
    }  # fmt: skip
    assert {name: basis.shape[1] for name, basis in bases(5).items()} == {"k 1": 3, "k 2": 3}
    assert {name: basis.shape[1] for name, basis in bases(7).items()} == {"k 1": 3, "k 1-2": 5, "k 2": 3, "k 3": 3}
    for digits in range(4, 11):
        for basis in bases(digits).values():
            assert basis.shape[1] < digits
            np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)


@pytest.mark.parametrize("digits,turns", [(5, 1), (5, 2), (10, 1), (10, 2), (10, 3), (7, 3)])
def test_a_planted_circle_is_fitted_whole_by_its_turns_alone(digits: int, turns: int) -> None:
    vectors = circle(digits, turns)
    for name, basis in bases(digits).items():
        low, _, high = name.removeprefix("k ").partition(",")[0].partition("-")
        has_turns = turns in range(1, int(high) + 1) if high else turns == int(low)
        assert fit(vectors, basis) == pytest.approx(float(has_turns), abs=1e-9), name


def test_alternating_vectors_need_the_alternating_function() -> None:
    vectors = (-1.0) ** np.arange(10)[:, None] * RNG.standard_normal(16)
    assert fit(vectors, bases(10)["k 1-2, (-1)^n"]) == pytest.approx(1)
    assert fit(vectors, bases(10)["k 1-2"]) == pytest.approx(0, abs=1e-9)


def test_the_fit_is_that_of_ordinary_least_squares() -> None:
    vectors, number = RNG.standard_normal((10, 7)), np.arange(10)
    waves = [wave(2 * np.pi * k * number / 10) for k in (1, 2) for wave in (np.cos, np.sin)]
    expected = by_least_squares(vectors, [*waves, (-1.0) ** number])
    assert fit(vectors, bases(10)["k 1-2, (-1)^n"]) == pytest.approx(expected)


def test_noise_is_fitted_as_its_expected_share() -> None:
    """Six functions explain 5/9 of ten random points on average, whatever the width."""
    for width in (2, 64):
        rows = {row.basis: row for row in fourier_rows(RNG.standard_normal((10, width)), "embedding", WHERE)}
        for name, basis in bases(10).items():
            share = (basis.shape[1] - 1) / 9
            assert rows[name].random_mean == pytest.approx(share, abs=0.03 if width == 2 else 0.01)
            assert rows[name].random_mean < rows[name].random_high < 1
        assert rows["k 1-2, (-1)^n"].random_mean == pytest.approx(5 / 9, abs=0.03)
    fits = [fit(RNG.standard_normal((10, 64)), bases(10)["k 1-2, (-1)^n"]) for _ in range(200)]
    assert np.mean(fits) == pytest.approx(5 / 9, abs=0.01)
    assert np.mean(np.array(fits) > rows["k 1-2, (-1)^n"].random_high) == pytest.approx(0.05, abs=0.05)


def test_vectors_on_a_line_look_like_a_wave_in_some_order_but_not_in_any() -> None:
    """Few dimensions make high fits common: the quantile over orders shows it, that of wide random vectors does not."""
    line = np.arange(10.0)[:, None] * RNG.standard_normal(64)
    row = next(row for row in fourier_rows(line, "embedding", WHERE) if row.basis == "k 1")
    assert row.random_high < 0.3 < row.shuffled_high
    circled = next(row for row in fourier_rows(circle(10, 1), "embedding", WHERE) if row.basis == "k 1")
    assert circled.fit == pytest.approx(1) and circled.shuffled_high < 0.9


def test_the_rows_are_the_same_twice_and_equal_vectors_have_none() -> None:
    vectors = RNG.standard_normal((10, 8))
    assert fourier_rows(vectors, "embedding", WHERE) == fourier_rows(vectors.copy(), "embedding", WHERE)
    assert fourier_rows(np.ones((10, 8)) * RNG.standard_normal(8), "embedding", WHERE) == []


def test_embeddings_and_the_output_if_it_is_another() -> None:
    one = subject(task=PRODUCTS)
    digits = digit_tokens(one)
    assert {row.what for row in fourier_of_embeddings(one, digits, WHERE)} == {"embedding"}
    other = subject("llama", config={"tie_word_embeddings": False})
    model, digits = other.learner.model, digit_tokens(other)
    model.get_output_embeddings().weight.data[digits] = __import__("torch").tensor(circle(5, 2)).float()
    rows = {(row.what, row.basis): row.fit for row in fourier_of_embeddings(other, digits, WHERE)}
    assert rows["output", "k 2"] == pytest.approx(1, abs=1e-5) and rows["output", "k 1"] == pytest.approx(0, abs=1e-5)
    assert rows["embedding", "k 1"] + rows["embedding", "k 2"] == pytest.approx(1)
    assert rows["embedding", "k 1"] > 0.05


def test_mean_states_by_the_digit_to_be_said(tmp_path) -> None:
    """A circle of the next digit, planted at one place and layer under noise, is found there."""
    one = subject(stage=1)
    places = places_of(one.batches(100), one.side, None)
    states = write_states(one, places, (0, 1, 2), tmp_path / "states")
    place = Place("cot", 1)
    following = targets_at(one, [place])[0].tolist()
    number = np.array([digit_tokens(one).index(token) for token in following])
    mapped = np.memmap(states.file, np.float32, "r+", shape=states.shape)
    mapped[places.index(place), 1] += 100 * circle(5, 1)[number]
    mapped.flush()
    rows = {(row.what, row.basis): row for row in fourier_of_states(one, states, digit_tokens(one), WHERE)}
    found = rows["cot 1, layer 1", "k 1"]
    assert found.fit > 0.98 > found.random_high and (found.num_basis, found.num_digits) == (3, 5)
    assert {what for what, _ in rows if what.endswith("layer 1")} == {
        f"{name}, layer 1" for name in ("prompt -1", "cot 1", "cot 2", "answer 1")
    }
